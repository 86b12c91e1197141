"""Connections are counted by where they come from, each until it is over."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from ringserve.frontend.addresses import Addresses


class Accepted(asyncio.BaseTransport):
    """An accepted connection from some address."""

    def __init__(self, address: str, family: int = socket.AF_INET6) -> None:
        super().__init__()
        self._sock = socket.socket(family)
        self._sock.close()
        self._address = address
        self.family = family

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": (self._address, 1, 0, 0), "socket": self if self.family else None}.get(name, default)


@pytest.mark.parametrize(
    ("addresses", "family", "welcome"),
    [
        (["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"], socket.AF_INET, [True, True, False, True]),
        (["::ffff:10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.1"], socket.AF_INET6, [True, True, False]),
        (["2001:db8::1", "2001:db8::", "2001:db8::3%x", "2001:db8:0:1::"], socket.AF_INET6, [True, True, False, True]),
        (["", "", ""], socket.AF_UNIX, [True, True, True]),
    ],
)  # fmt: skip
def test_the_limit(addresses: list[str], family: int, welcome: list[bool]) -> None:
    counted = Addresses(2)
    assert [counted.join(number, Accepted(address, family)) for number, address in enumerate(addresses)] == welcome
    for number in range(len(addresses)):
        counted.leave(number)
    assert counted.join(99, Accepted(addresses[0], family))


def test_no_limit() -> None:
    counted = Addresses(0)
    assert all(counted.join(number, Accepted("10.0.0.1", socket.AF_INET)) for number in range(1_000))
