"""Goal: requests that are taken together, and answers that are given together, are the same as one by one. Method: the
Predict handler with both kinds of calls and replies, and a client on real sockets whose broker and worker are the test.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, Failed, InputSpec, LaneSpec, Submit
from ringserve.config.protos import ModelSpec, PredictRequest, PredictResponse
from ringserve.frontend import client as client_module
from ringserve.frontend.grpc_api import PREDICT, make_methods
from ringserve.frontend.handler import Together
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import TOGETHER_MIN, Output, answer_all
from ringserve.frontend.shedding import Pressure
from ringserve.frontend.tally import Tally
from ringserve.shm.dtype import FLOAT
from tests.frontend.fakes import FakeCall, LoopbackClient, catalog_of, float_proto, make_output, version_info
from tests.frontend.test_client import LANE, MIB, ROW, Seen, staged, until

SECOND_NS = 1_000_000_000


class TogetherCall(FakeCall):
    """A call of an engine that finishes many at once. batches: how many each time."""

    batches: list[int] = []  # noqa: RUF012  (emptied by the tests)

    @staticmethod
    def finish_together(calls: Sequence[FakeCall], head: bytes, bodies: Sequence[bytes], tail: bytes) -> None:
        TogetherCall.batches.append(len(calls))
        for call, body in zip(calls, bodies, strict=True):
            call.finish(head + body + tail)


class TogetherClient(LoopbackClient):
    """Also a client that takes many requests at once. batches: how many each time. refused: of these the last ones."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[int] = []
        self.refused = 0

    def infer_together(
        self, lane: Lane, rows: int, payloads: Sequence[Any], timeouts_ns: Sequence[int], replies: Sequence[Any]
    ) -> list[int]:
        self.batches.append(len(replies))
        ids = []
        for number, (payload, timeout_ns, reply) in enumerate(zip(payloads, timeouts_ns, replies, strict=True)):
            if number >= len(replies) - self.refused:
                reply.fail(Code.RESOURCE_EXHAUSTED, "full")
                ids.append(-1)
            else:
                ids.append(self.infer(lane, rows, [payload], timeout_ns, reply))
        return ids


def frozen_tally() -> Tally:
    tally = Tally()
    tally.clock_ns = lambda: 5 * SECOND_NS
    return tally


def message_of(*values: float) -> bytes:
    request = PredictRequest(model_spec=ModelSpec(name="default"))
    request.inputs["x"].CopyFrom(float_proto(values, [len(values)], content=True))
    return bytes(request.SerializeToString())


def answered(kinds: list[type[FakeCall]], rows: list[int]) -> tuple[list[FakeCall], Tally]:
    """Calls of such kinds with so many rows each, answered by `answer_all`."""
    client, tally = LoopbackClient(catalog_of(version_info())), frozen_tally()
    handler = make_methods(client, tally=tally).unary[PREDICT]
    calls = [kind() for kind in kinds]
    answers, at = [], 0
    for call, count in zip(calls, rows, strict=True):
        handler(call, message_of(*range(count)))
        answers.append((client.requests[-1][4], at, count))
        at += count
    tally.clock_ns = lambda: 5 * SECOND_NS + 2_000_000
    answer_all(answers, [make_output(FLOAT, (at,), np.arange(at, dtype="<f4"), batchable=True)])
    return calls, tally


@pytest.mark.parametrize(
    ("kinds", "rows", "batches"),
    [
        ([TogetherCall] * 6, [1] * 6, [6]),
        ([TogetherCall] * 9, [2, 2, 2, 2, 1, 1, 1, 1, 1], [4, 5]),
        ([TogetherCall] * 5, [2, 2, 2, 2, 1], [4]),
        ([TogetherCall] * (TOGETHER_MIN - 1), [1] * (TOGETHER_MIN - 1), []),
        ([FakeCall] * 6, [1] * 6, []),
        ([TogetherCall, FakeCall] * 4, [1] * 8, [4]),
        ([FakeCall, TogetherCall] * 4, [1] * 8, []),
    ],
)
def test_answers_given_together_are_those_given_one_by_one(
    kinds: list[type[FakeCall]], rows: list[int], batches: list[int]
) -> None:
    TogetherCall.batches.clear()
    calls, tally = answered(kinds, rows)
    assert TogetherCall.batches == batches
    at = 0
    for call, count in zip(calls, rows, strict=True):
        assert call.message is not None
        response = PredictResponse.FromString(call.message)
        assert list(response.outputs["y"].float_val) == list(range(at, at + count))
        assert response.model_spec.version.value == 123
        at += count
    _, expected = answered([FakeCall] * len(rows), rows)
    books = [{key[:4]: counts for key, counts in each._requests.items()} for each in (tally, expected)]
    assert books[0] == books[1]
    assert tally._runs == expected._runs
    assert sum(next(iter(books[0].values()))[:-1]) == len(rows)


def test_who_has_gone_gets_no_answer() -> None:
    client, tally = LoopbackClient(catalog_of(version_info())), frozen_tally()
    handler = make_methods(client, tally=tally).unary[PREDICT]
    calls = [TogetherCall() for _ in range(6)]
    for call in calls:
        handler(call, message_of(1))
    replies = [request[4] for request in client.requests]
    for gone in (calls[0], calls[3]):
        assert gone.cancel is not None
        gone.cancel()
    output: list[Output] = [make_output(FLOAT, (6,), np.arange(6, dtype="<f4"), batchable=True)]
    answer_all([(reply, row, 1) for row, reply in enumerate(replies)], output)
    assert [call.message is not None for call in calls] == [False, True, True, False, True, True]


# ----------------------------------------------------------------------------------------------- taken together


def together_of(client: LoopbackClient, tally: Tally | None = None) -> tuple[Any, Together]:
    handler = make_methods(client, tally=tally or frozen_tally()).unary[PREDICT]
    return handler, handler.together  # type: ignore[attr-defined]


def test_requests_taken_together_are_those_taken_one_by_one() -> None:
    client = TogetherClient(catalog_of(version_info()))
    handler, together = together_of(client)
    messages = [message_of(number, number + 0.5) for number in range(5)]
    assert together.kind(messages[0]) is None  # nobody has seen its like
    for message in messages[:3]:
        handler(FakeCall(7), message)
    kind = together.kind(messages[0])
    assert kind is not None
    assert messages[4].startswith(kind.prefix)
    assert messages[4].endswith(kind.suffix)
    calls = [FakeCall(timeout_ns) for timeout_ns in (0, 5, 9, 0, 7)]
    step = len(messages[0]) + 11
    data = b"before." + b"".join(message + bytes(11) for message in messages)
    client.requests.clear()
    together.take(calls, kind, data, range(7, 7 + 5 * step, step))
    assert client.batches == [5]
    assert [request[3] for request in client.requests] == [0, 5, 9, 0, 7]
    for number, (lane, rows, payloads, _, _) in enumerate(client.requests):
        assert (lane.spec.model, rows) == ("default", 2)
        assert np.frombuffer(payloads[0], "<f4").tolist() == [number, number + 0.5]
    assert calls[2].cancel is not None
    calls[2].cancel()
    assert client.cancelled == [3]


def test_requests_refused_of_those_taken_together_are_answered_and_not_watched() -> None:
    client = TogetherClient(catalog_of(version_info()))
    client.refused = 2
    handler, together = together_of(client)
    for _ in range(3):
        handler(FakeCall(), message_of(1))
    kind, message = together.kind(message_of(1)), message_of(2)
    assert kind is not None
    calls = [FakeCall() for _ in range(4)]
    together.take(calls, kind, message * 4, range(0, 4 * len(message), len(message)))
    assert [call.failure and call.failure[0] for call in calls] == [None, None, 8, 8]
    assert [call.cancel is None for call in calls] == [False, False, True, True]


def test_a_catalog_that_changed_makes_nothing_alike() -> None:
    client = TogetherClient(catalog_of(version_info()))
    handler, together = together_of(client)
    for _ in range(3):
        handler(FakeCall(), message_of(1))
    assert together.kind(message_of(1)) is not None
    client.catalog.update([version_info(version=124)])
    assert together.kind(message_of(1)) is None


def test_a_client_that_sees_each_request_is_given_each() -> None:
    handler = make_methods(LoopbackClient(catalog_of(version_info()))).unary[PREDICT]
    assert not hasattr(handler, "together")


async def test_the_client_submits_them_in_one_go_with_a_record_and_a_deadline_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(LANE.spec)
    async with staged(tmp_path) as (stage, client, segment):
        worker_id = await stage.worker_joins()
        now_ns = stop_clock(monkeypatch)
        seen = [Seen() for _ in range(5)]
        payloads = [np.full(4, number, np.float32).tobytes() for number in range(5)]
        ids = client.infer_together(lane, 1, payloads, [0, 60 * SECOND_NS, 0, 90 * SECOND_NS, 0], seen)
        ((key, requests),) = (await stage.broker_mail(Submit)).groups
        assert key == lane.key
        due = [0, now_ns + 60 * SECOND_NS, 0, now_ns + 90 * SECOND_NS, 0]
        assert [request[:3] for request in requests] == [[each, 1, at] for each, at in zip(ids, due, strict=True)]
        assert [bytes(segment.data[at : at + 16]) for _, _, _, at in requests] == payloads
        assert lane.pressure.rows == 5
        client.cancel(ids[1])
        assert client.infer(LANE, 1, [ROW], 0, Seen()) > ids[-1]
        rows = np.arange(5, dtype=np.float32).reshape(5, 1)
        stage.answer(worker_id, rows, [[each, row, 1, 0] for row, each in enumerate(ids)])
        await until(lambda: seen[4].answers)
        assert [one.answers for one in seen] == [[[[0.0]]], [], [[[2.0]]], [[[3.0]]], [[[4.0]]]]
        assert (client.pending_count, lane.pressure.rows) == (1, 0)


def stop_clock(monkeypatch: pytest.MonkeyPatch) -> int:
    """The client's clock stands still from here on. When."""
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
    return now_ns


class Recorded:
    """What a recorder sees."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def see(self, lane: Lane, rows: int, payloads: Sequence[Any], api: str) -> None:
        self.seen.append(bytes(payloads[0]))


async def test_they_are_recorded_like_others(tmp_path: Path) -> None:
    async with staged(tmp_path) as (_, client, _):
        recorder: Any = Recorded()
        client.recorder = recorder
        payloads = [np.full(4, number, np.float32).tobytes() for number in range(5)]
        assert min(client.infer_together(LANE, 1, payloads, [0] * 5, [Seen() for _ in payloads])) > 0
        assert recorder.seen == payloads


async def test_no_request_takes_longer_than_any_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, timeout_ns_max=50 * SECOND_NS) as (stage, client, _):
        now_ns = stop_clock(monkeypatch)
        client.infer_together(LANE, 1, [ROW] * 4, [0, 40 * SECOND_NS, 60 * SECOND_NS, 0], [Seen() for _ in range(4)])
        ((_, requests),) = (await stage.broker_mail(Submit)).groups
        assert [(request[2] - now_ns) // SECOND_NS for request in requests] == [50, 40, 50, 50]


async def test_where_the_lane_leaves_axes_open_each_record_says_its_shape(tmp_path: Path) -> None:
    spec = LaneSpec("m", 1, "s", (InputSpec("x", FLOAT, (-1,)),), ("y",), True)
    own = LaneSpec("m", 1, "s", (InputSpec("x", FLOAT, (4,)),), ("y",), True)
    lane = Lane(spec, own)
    assert lane.heads is not None
    async with staged(tmp_path) as (stage, client, segment):
        client.infer_together(lane, 1, [ROW] * 4, [0] * 4, [Seen() for _ in range(4)])
        ((_, requests),) = (await stage.broker_mail(Submit)).groups
        (expected,) = lane.with_heads(1, [ROW])
        for _, _, _, at in requests:
            assert bytes(segment.data[at : at + len(expected)]) == expected


async def test_no_more_are_held_than_may_be(tmp_path: Path) -> None:
    async with staged(tmp_path) as (_, client, _):
        client._requests_max = 6
        seen = [Seen() for _ in range(8)]
        ids = client.infer_together(LANE, 1, [ROW] * 4, [0] * 4, seen[:4])
        ids += client.infer_together(LANE, 1, [ROW] * 4, [0] * 4, seen[4:])
        assert [request_id > 0 for request_id in ids] == [True] * 6 + [False] * 2
        assert "already holds 6 requests" in seen[7].failures[0][1]
        assert client.pending_count == 6


async def test_what_has_no_room_in_the_ring_is_refused_one_by_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = [Seen() for _ in range(6)]
        big = bytes(MIB // 4)
        ids = client.infer_together(LANE, MIB // 64, [big] * 6, [0] * 6, seen)
        taken = [request_id for request_id in ids if request_id > 0]
        assert 3 <= len(taken) < 6
        assert ids[len(taken) :] == [-1] * (6 - len(taken))
        assert [bool(one.failures) for one in seen] == [request_id < 0 for request_id in ids]
        ((_, requests),) = (await stage.broker_mail(Submit)).groups
        assert [request[0] for request in requests] == taken


async def test_who_is_late_or_would_wait_too_long_is_refused_and_the_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(LANE.spec)
    async with staged(tmp_path) as (stage, client, _):
        stop_clock(monkeypatch)
        seen = [Seen() for _ in range(4)]
        ids = client.infer_together(lane, 1, [ROW] * 4, [0, -1, 60 * SECOND_NS, 0], seen)
        assert [request_id > 0 for request_id in ids] == [True, False, True, True]
        assert [code for code, _ in seen[1].failures] == [Code.DEADLINE_EXCEEDED]
        stage.send(Failed([[ids[2], Code.RESOURCE_EXHAUSTED, "full"]], [[lane.key, 50 * SECOND_NS]]))
        await until(lambda: seen[2].failures)
        after = [Seen() for _ in range(4)]
        later = client.infer_together(lane, 1, [ROW] * 4, [10 * SECOND_NS, 0, 10 * SECOND_NS, 0], after)
        assert [request_id > 0 for request_id in later] == [False, True, False, True]
        assert after[0].failures == [(Code.RESOURCE_EXHAUSTED, lane.pressure.text)]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("room", [-2.0, 0.0, 0.3, 1.0, 4.5, 7.0, 100.0])
async def test_as_many_go_as_would_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, room: float
) -> None:
    row = [np.zeros(4 * rows, np.float32).tobytes()]
    admitted = []
    for together in (True, False):
        lane = Lane(LANE.spec)
        (tmp_path / str(together)).mkdir()
        async with staged(tmp_path / str(together)) as (_, client, _):
            lane.pressure.told(SECOND_NS, time.monotonic_ns())
            monkeypatch.setattr(Pressure, "room", lambda pressure, *_: room - pressure.rows)
            seen = [Seen() for _ in range(6)]
            if together:
                ids = client.infer_together(lane, rows, row * 6, [SECOND_NS] * 6, seen)
            else:
                ids = [client.infer(lane, rows, row, SECOND_NS, one) for one in seen]
            assert [not one.failures for one in seen] == [request_id > 0 for request_id in ids]
            admitted.append(sum(request_id > 0 for request_id in ids))
    assert admitted[0] == admitted[1] == min(6, max(0, -int(-room // rows)))
