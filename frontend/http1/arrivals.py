"""For how long a request has lain in its socket before anybody read it: the kernel knows, for TCP.

A connection has one request at a time, and each is small: how much is left in the socket, which tells it for HTTP/2,
says nothing here. When the last bytes came does.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Final

#: Where Linux's `struct tcp_info` has `tcpi_last_data_recv`: milliseconds since data came.
_LAST_DATA: Final = slice(52, 56)
#: The clock that it is counted with goes in steps; so much of an age may be none. (Python has no name for this clock.)
_CLOCK_MONOTONIC_COARSE: Final = 6
_STEP_NS: Final = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)


def waited_ns(sock: socket.socket) -> int:
    """How long ago the last bytes came, at least; 0 where nobody can tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA.stop)
    except OSError:  # no TCP, or closed
        return 0
    age_ns = int.from_bytes(info[_LAST_DATA], sys.byteorder) * 1_000_000
    return max(0, age_ns - _STEP_NS)
