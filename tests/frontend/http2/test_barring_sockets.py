"""Goal: official clients keep their messages while their connection is barred, and none of their calls is lost or
answered wrongly by it; a loop that is asked for far too much bars its clients, and lets them go when that is over.
Method: the official client against an engine that bars it by chance, and against one that really is too slow.
"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from ringserve.frontend.handler import Call, EngineLimits, Methods
from ringserve.frontend.http2 import protocol
from ringserve.frontend.http2.connection import Connection
from ringserve.frontend.http2.shares import Shares
from tests.frontend.http2.service import NATIVE, PREFIX, Running, Service, connect
from tests.frontend.http2.test_parts import noise
from tests.frontend.http2.test_taking import SomeKind


class Gathering(Service):
    """Takes calls together, and keeps count of how."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def methods(self) -> Methods:
        found = super().methods()
        echo = found.unary[PREFIX + "Echo"]

        def unary(call: Call, message: Any) -> None:
            echo(call, message)

        unary.together = self  # type: ignore[attr-defined]
        self._echo = unary
        return Methods({**found.unary, PREFIX + "Echo": unary}, heavy=frozenset((PREFIX + "Echo",)))

    def kind(self, message: bytes) -> SomeKind | None:
        return SomeKind(len(message), b"", b"") if len(message) < 5_000 else None

    def take(self, calls: Sequence[Call], kind: SomeKind, data: bytes, places: Sequence[int]) -> None:
        self.taken.append(len(calls))
        for call, place in zip(calls, places, strict=True):
            self._echo(call, data[place : place + kind.size])


class ByTurns(Shares):
    """Whether a connection is barred is left to chance."""

    chosen = random.Random(5)

    def bars(self, now_ns: int, read_bytes: int, taken: int, refused: int) -> bool:
        return self.chosen.random() < 0.5


def test_the_official_client_is_barred_and_free_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "Shares", ByTurns)
    monkeypatch.setattr(Connection, "room_left", lambda self, room, now_ns: 1 if self.let_in else 8)
    service = Gathering()
    server = Running(NATIVE, service, EngineLimits(), socket.AF_INET, "")
    engine = server.engine
    monkeypatch.setattr(type(engine.rush), "is_on", lambda self, now_ns: True)

    def calls(seed: int) -> list[grpc.StatusCode]:
        chosen, codes = random.Random(seed), []
        bodies = [noise(seed, chosen.choice((3, 2_000, 2_000, 100_000, 1_000_000))) for _ in range(30)]
        futures = [(body, echo.future(body, timeout=60 if chosen.random() < 0.9 else None)) for body in bodies]
        for body, future in futures:
            try:
                assert future.result() == body
            except grpc.RpcError as error:
                codes.append(error.code())
        return codes

    try:
        with connect(server.target) as channel, ThreadPoolExecutor(6) as pool:
            echo = channel.unary_unary(PREFIX + "Echo")
            codes = [code for found in pool.map(calls, range(12)) for code in found]
        assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert 0 < len(codes) < 360
    finally:
        server.stop()
    assert not service.bugs


class Slow(Service):
    """An echo that holds up its whole loop for two milliseconds a call."""

    def methods(self) -> Methods:
        found = super().methods()
        echo = found.unary[PREFIX + "Echo"]

        def unary(call: Call, message: Any) -> None:
            time.sleep(0.002)  # as work that has the loop for itself
            echo(call, message)

        return Methods({**found.unary, PREFIX + "Echo": unary}, heavy=frozenset((PREFIX + "Echo",)))


def test_a_loop_that_is_asked_for_far_too_much_bars_its_client_and_lets_it_go_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states: list[bool] = []
    bar = Connection.bar

    def noted(self: Connection, is_barring: bool) -> None:
        states.append(is_barring)
        bar(self, is_barring)

    monkeypatch.setattr(Connection, "bar", noted)
    service = Slow()
    server = Running(NATIVE, service, EngineLimits(concurrent_streams_max=10_000), socket.AF_INET, "")
    body = noise(7, 3_000)
    codes: Counter[grpc.StatusCode] = Counter()
    try:
        with connect(server.target) as channel:
            echo = channel.unary_unary(PREFIX + "Echo")
            for _ in range(50):
                for future in [echo.future(body, timeout=0.8) for _ in range(1_500)]:
                    codes[future.code()] += 1
                if True in states:
                    break
            assert True in states
            assert set(codes) <= {
                grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
            }  # fmt: skip
            assert codes[grpc.StatusCode.OK], "somebody is let in"
            while states[-1]:
                time.sleep(0.15)  # the rush is over when nobody was refused for a while
                assert echo(body, timeout=20) == body
    finally:
        server.stop()
    assert not service.bugs
