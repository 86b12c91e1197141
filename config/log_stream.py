"""Standard error that nobody waits for: what its reader does not take is lost, and counted.

A pipe, socket or terminal whose reader stands still (a log driver, the journal, a terminal after Ctrl-S) would else
stop every process of a server that has a line to say, and with the supervisor the one that is to notice. A thread that
writes would do as well, but the pool must have none when it forks. O_NONBLOCK is never set on the descriptor that came:
it would hold for all processes that share it. The same pipe or terminal, opened once more, takes its place, so that
TensorFlow's C++ code, which writes to the number, does not wait either.

    stream = take_over(note)       # sys.stderr from now on; again after a fork: forget what the parent has lost
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

#: PIPE_BUF: a pipe takes as much whole or not at all, and at once if it polls writable.
_PIECE_BYTES_MAX: Final = 4096
_FLAGS: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: How long code that is not ours waits for the journal: struct timeval, in seconds and microseconds.
_JOURNAL_WAIT: Final = struct.pack("ll", 0, 10_000)

#: From the number of lines that are lost to the line that says so, without its end.
Note = Callable[[int], str]


class LogStream(io.TextIOWrapper):
    """Text to a descriptor, line by line; no call of it waits or fails."""

    def __init__(self, fd: int, note: Note, encoding: str = "utf-8") -> None:
        self._unwaited = _Unwaited(fd, note)
        super().__init__(self._unwaited, encoding, "backslashreplace", line_buffering=True)

    def begin_anew(self, note: Note) -> None:
        """Forget what was lost."""
        self._unwaited.begin_anew(note)

    def catch_up(self) -> None:
        """End the line that was begun, and say what was lost, if that is possible now: for times without lines. No
        part of `flush`, which follows every line: the note would take the little room that a line finds too little."""
        self._unwaited.catch_up()


def take_over(note: Note) -> TextIO | None:
    """Put a LogStream in the place of sys.stderr, so that tracebacks and warnings do not wait either; or find it there.

    Returns what sys.stderr is then: None without a standard error, and what others (a test) have put there stays.
    """
    if isinstance(sys.stderr, LogStream):
        sys.stderr.begin_anew(note)
    elif sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        never_wait(sys.__stderr__.fileno())
        sys.stderr = LogStream(sys.__stderr__.fileno(), note, sys.__stderr__.encoding)
        atexit.register(catch_up)
    return sys.stderr


def never_wait(fd: int) -> None:
    """Writes to this number never wait from now on, whoever's they are, as far as that can be had: not for a socket,
    nor for what belongs to another user. Children that inherit the number have that, too."""
    with contextlib.suppress(OSError):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or os.isatty(fd):
            own_fd = _open_again(fd)
            os.dup2(own_fd, fd)
            os.close(own_fd)


def wait_briefly(fd: int) -> None:
    """Writes to the journal's socket, which cannot be opened once more, give up soon. That holds for all processes that
    have it, which are this service's."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    with socket.socket(fileno=os.dup(fd)) as own_socket:
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _JOURNAL_WAIT)


def _open_again(fd: int) -> int:
    """The same pipe or terminal with flags of its own."""
    return os.open(f"/proc/self/fd/{fd}", _FLAGS)


def catch_up() -> None:
    """`LogStream.catch_up` of what `take_over` has put there."""
    if isinstance(sys.stderr, LogStream):
        sys.stderr.catch_up()


class _Unwaited(io.RawIOBase):
    """`write` takes all that it is given. Of what cannot be written, lines that were begun are kept and ended later."""

    name = "<stderr>"

    def __init__(self, fd: int, note: Note) -> None:
        self._fd = fd
        self._note = note
        self._rest = b""
        self._lost_lines = 0
        self._send, self._close_own = _sender(fd)

    def begin_anew(self, note: Note) -> None:
        self._note, self._rest, self._lost_lines = note, b"", 0

    def write(self, data: Any, /) -> int:
        taken = bytes(data)
        # Taken off before anything is written: another thread, or a signal's handler, must not write it as well.
        rest, self._rest = self._rest, b""
        lost_lines, self._lost_lines = self._lost_lines, 0
        note = f"{self._note(lost_lines)}\n".encode(errors="backslashreplace") if lost_lines else b""
        piece = rest + note + taken
        size = self._put(piece)
        if size == len(piece):
            return len(taken)
        if size > len(rest):
            self._rest = piece[size:]
        else:
            self._rest = rest[size:]
            self._lost_lines += lost_lines + (taken.count(b"\n") or bool(taken))
        return len(taken)

    def _put(self, piece: bytes) -> int:
        """Write as much as is taken now. Returns how many bytes."""
        size = 0
        try:
            while size < len(piece):
                size += self._send(piece[size:])
        except OSError:  # it is full, or its reader is gone, or the disk is full: all are lost lines
            pass
        return size

    def catch_up(self) -> None:
        if self._rest or self._lost_lines:
            self.write(b"")

    def close(self) -> None:
        """Without the descriptor, which is not ours."""
        if not self.closed:
            super().close()
            self._close_own()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def _sender(fd: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """What writes to `fd` and raises BlockingIOError instead of waiting, and what closes that.

    A file takes what it is given, as far as one can tell.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        own_socket = socket.socket(fileno=os.dup(fd))
        return lambda data: own_socket.send(data, socket.MSG_DONTWAIT), own_socket.close
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return lambda data: os.write(fd, data), lambda: None
    try:
        own_fd = _open_again(fd)
    except OSError:
        return lambda data: _write_polled(fd, data), lambda: None
    return lambda data: os.write(own_fd, data), lambda: os.close(own_fd)


def _write_polled(fd: int, data: bytes) -> int:
    """For a pipe of another user's, which cannot be opened: should another process take the last room between the two
    calls, this one waits all the same."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError
    return os.write(fd, data[:_PIECE_BYTES_MAX])
