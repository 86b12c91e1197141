"""TensorFlow's C++ log without its noise: what it says at import and at the first look for devices on every machine.

TensorFlow writes to descriptor 2, and before its own logging is set up it heeds no level. While `quiet` lasts that
descriptor is a pipe to a small child process, which passes on what may matter. A child, and not a buffer here: should
TensorFlow end this process meanwhile, its last words still come out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

#: Levels I and W of both of TensorFlow's formats, and what it logs as an error on a machine where nothing is wrong.
_NOISE: Final = re.compile(
    rb"[IW]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IW] |INFO: |"
    rb"WARNING: All log messages before absl::InitializeLog|To enable the following instructions:|"
    rb".*(Unable to register cu\w+ (factory|plugin)|failed call to cuInit|Could not find cuda drivers)"
)
_READ_BYTES: Final = 65536


@contextlib.contextmanager
def quiet(log_level: str) -> Iterator[None]:
    """Keep TensorFlow's noise off standard error for the while, unless `log_level` is debug.

    Only while this process has no other thread that may log or take locks: it forks.
    """
    if log_level == "debug":
        yield
        return
    out, into = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no room for one more: its noise is no reason to end this one
        os.close(out)
        os.close(into)
        yield
        return
    if child == 0:
        try:
            os.close(into)
            _pass_on(out)
        finally:
            os._exit(0)
    os.close(out)
    kept = os.dup(2)
    os.dup2(into, 2)
    os.close(into)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.waitpid(child, 0)


def _pass_on(out: int) -> None:
    """Copy to standard error all lines but the noise, until the other end is closed."""
    rest = b""
    while data := os.read(out, _READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        _say(b"".join(line + b"\n" for line in lines if not _NOISE.match(line)))
    if not _NOISE.match(rest):
        _say(rest)


def _say(text: bytes) -> None:
    """What standard error does not take is lost: who reads here must go on, or TensorFlow waits."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(2, text) :]
