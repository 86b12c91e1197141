"""What an error of a socket means between processes of one server: that the other end is gone, or that it will pass."""

from __future__ import annotations

import errno
import time
from typing import Final

_GONE: Final = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF))
#: Until the next try: such a socket is writable for all that the kernel knows, and would wake its loop without end.
_PAUSE_S: Final = 0.001


def is_gone(error: OSError) -> bool:
    """Whether nobody will ever read what could not be sent. Else try again: this has waited for a moment.

    Memory may be wanting (a control group's limit counts what sockets hold), or descriptors under way may be too many
    (ETOOMANYREFS). A message that was dropped for that would be lost, and the next taken for the rest of half a one.
    """
    if error.errno in _GONE:
        return True
    time.sleep(_PAUSE_S)
    return False
