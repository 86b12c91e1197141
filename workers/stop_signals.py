"""SIGTERM and SIGINT as a worker takes them: without a handler.

oneDNN's matrix products use the stack pointer's register for addresses inside the heap, and the kernel writes the frame
of a signal that has a handler right there, on whichever thread it interrupts: malloc's records are gone, and the
process aborts soon after. So no signal has a handler in a process that runs TensorFlow. These two are blocked and wait
until the worker asks; all others are left to the kernel, which ends the process, or ignores them, without a frame.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import Final

_STOPS: Final = frozenset((signal.SIGTERM, signal.SIGINT))
#: A `sigset_t` of any C library: the kernel reads its beginning.
_SET_BYTES: Final = 128


class StopSignals:
    """Make it in the main thread before there are others: threads inherit it. fd: readable once one has come."""

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        self.fd = _signal_fd(_STOPS)

    def wanted(self) -> bool:
        """Whether this process is to stop. It stays so: nobody takes the signal."""
        return not _STOPS.isdisjoint(signal.sigpending())


def _signal_fd(numbers: Iterable[int]) -> int:
    """signalfd(2), which Python does not have."""
    words = (ctypes.c_ulong * (_SET_BYTES // ctypes.sizeof(ctypes.c_ulong)))()
    for number in numbers:
        words[0] |= 1 << (number - 1)
    fd = int(ctypes.CDLL(None, use_errno=True).signalfd(-1, words, os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd
