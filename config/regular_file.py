"""Files that are read again and again while the server runs: what lies at their path may have become anything.

Opening a pipe waits until somebody writes to it, which may be never, and reading a device need not end. Whoever looks
after such a file would not look again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

#: /dev/null, which people name where a file must be named.
_NULL: Final = os.makedev(1, 3)


def regular_only(path: str, flags: int) -> int:
    """An opener for `open`. Raises OSError at once for what is no regular file, and says in its strerror what it is."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno != errno.ENXIO:  # what opening a socket says
            raise
        raise _refused(path, os.stat(path).st_mode) from error
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) or (stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL):
        return fd
    os.close(fd)
    raise _refused(path, found.st_mode)


def _refused(path: str, mode: int) -> OSError:
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = next((text for is_kind, text in _KINDS if is_kind(mode)), "something else")
    return OSError(errno.EINVAL, f"not a regular file but {kind}", path)
