"""How many connections each client address has open, where that is limited."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from ipaddress import IPv6Address, ip_address


class Addresses:
    """The count of one server. limit: connections of one address; 0: none is counted, all are welcome.

    Of IPv6 the first half of the address counts, because a client has all of the other half. UNIX sockets never count.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[bytes] = Counter()
        self._places: dict[object, bytes] = {}

    def join(self, connection: object, transport: asyncio.BaseTransport) -> bool:
        """Counts a connection. False: its address has too many; it still has to `leave`."""
        place = _place(transport) if self._limit else b""
        if not place:
            return True
        self._places[connection] = place
        self._counts[place] += 1
        return self._counts[place] <= self._limit

    def leave(self, connection: object) -> None:
        """A connection is over, welcome or not."""
        place = self._places.pop(connection, b"")
        if place:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]


def _place(transport: asyncio.BaseTransport) -> bytes:
    sock = transport.get_extra_info("socket")
    peer = transport.get_extra_info("peername")
    if sock is None or sock.family == socket.AF_UNIX or not peer:
        return b""
    address = ip_address(peer[0].partition("%")[0])
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed
