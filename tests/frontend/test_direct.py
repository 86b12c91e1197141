"""Requests that go straight to a worker that was lent, over real sockets; the test plays broker and worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ringserve.broker import wire
from ringserve.broker.cable import Cable
from ringserve.broker.messages import Cancel, Code, Execute, Failed, Handed, Lend, Recall, Release, Returned, Submit
from ringserve.frontend import direct
from ringserve.frontend.client import Client
from ringserve.shm.segment import Segment
from tests.frontend.test_client import LANE, ROW, STRINGS, Seen, Stage, rows_in_ring, staged, until

LOAN = 1 << 32


class Lender:
    """A stage whose worker is lent to the client."""

    def __init__(self, stage: Stage, client: Client, segment: Segment, worker_id: int) -> None:
        self.stage = stage
        self.client = client
        self.segment = segment
        self.worker_id = worker_id

    @property
    def to_broker(self) -> Cable:
        assert self.stage.cable is not None
        return self.stage.cable

    def tell(self, message: Lend | Recall) -> None:
        self.to_broker.send(wire.pack(message))

    async def lend(self, loan_id: int = LOAN, rows_max: int = 8, batch_rows_max: int = 0) -> None:
        self.tell(Lend(loan_id, LANE.key, self.worker_id, rows_max, batch_rows_max))
        await until(lambda: loan_id in [loan.lend.loan_id for loan in self.client._direct._loans.values()])

    def infer(self, rows: int = 1, timeout_ns: int = 0) -> tuple[int, Seen]:
        seen = Seen()
        return self.client.infer(LANE, rows, [ROW * rows], timeout_ns, seen), seen

    async def broker_hears(self, count: int) -> list[Any]:
        return await _mail(self.to_broker, count)

    async def worker_hears(self, count: int = 1) -> list[Any]:
        """But for the records that come back: they do so by the clock, between any two other messages."""
        return await _mail(self.stage.worker_cable, count, unless=Release)

    async def answers(self, request_id: int, seen: Seen, batch_id: int = LOAN + 1) -> None:
        self.stage.answer(self.worker_id, np.array([[1.0]]), [[request_id, 0, 1, 0]], batch_id=batch_id)
        await until(lambda: seen.answers)
        assert seen.answers == [[[1.0]]]


async def _mail(cable: Cable, count: int, unless: type | tuple[()] = ()) -> list[Any]:
    """The next messages, so many and no more. unless: those of this type are passed over."""
    found: list[Any] = []

    def look() -> bool:
        found.extend(message for message in map(wire.unpack, cable.receive()) if not isinstance(message, unless))
        return len(found) >= count

    await until(look)
    assert len(found) == count, found
    return found


@asynccontextmanager
async def lent(folder: Path, monkeypatch: pytest.MonkeyPatch, tell_s: float = 30.0) -> AsyncIterator[Lender]:
    """tell_s: after which the broker is told in any case; never, in most tests."""
    monkeypatch.setattr(direct, "_TELL_NS", int(tell_s * 1e9))
    async with staged(folder) as (stage, client, segment):
        worker_id = await stage.worker_joins()
        await until(lambda: worker_id in client._link.workers)
        lender = Lender(stage, client, segment, worker_id)
        await lender.lend()
        yield lender


async def test_a_lone_request_goes_straight_to_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        frontend_id = lender.stage.frontend_ids[0]
        for number in (1, 2, 3):
            request_id, seen = lender.infer()
            (execute,) = await lender.worker_hears()
            assert execute[:2] == (LOAN + number, LANE.key)
            assert isinstance(execute, Execute)
            ((owner, part_id, rows, row_start, offset),) = execute.parts
            assert (owner, part_id, rows, row_start) == (frontend_id, request_id, 1, 0)
            assert rows_in_ring(lender.segment, [0, 1, 0, offset]) == ROW
            await lender.answers(request_id, seen, LOAN + number)
        assert lender.client.pending_count == 0
        lender.tell(Recall(LOAN))
        assert await lender.broker_hears(1) == [Returned(LOAN, LOAN + 3)], "and nothing before it"


async def test_two_at_once_go_to_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        ids = [lender.infer()[0], lender.infer()[0]]
        (submit,) = await lender.broker_hears(1)
        assert isinstance(submit, Submit)
        assert [request[0] for request in submit.groups[0][1]] == ids


async def test_a_second_one_makes_the_first_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        first_id, seen = lender.infer()
        (execute,) = await lender.worker_hears()
        second_id, _ = lender.infer()
        handed, submit = await lender.broker_hears(2)
        assert isinstance(handed, Handed)
        assert handed[:4] == (lender.stage.frontend_ids[0], lender.worker_id, LOAN + 1, LANE.key)
        assert handed.requests == [[first_id, 1, 0, execute.parts[0][4]]]
        assert submit.groups == [[LANE.key, [[second_id, 1, 0, submit.groups[0][1][0][3]]]]]
        await lender.answers(first_id, seen)
        # It is not alone before the second one is answered, too.
        third_id, _ = lender.infer()
        (submit,) = await lender.broker_hears(1)
        assert submit.groups[0][1][0][0] == third_id


@pytest.mark.parametrize("what", ["rows", "lane"])
async def test_what_is_not_lent_goes_to_the_broker(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        if what == "rows":
            lender.infer(rows=9)
        else:
            lender.client.infer(STRINGS, 1, [[b"a"]], 0, Seen())
        assert isinstance((await lender.broker_hears(1))[0], Submit)


async def test_given_back_it_is_used_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, seen = lender.infer()
        await lender.worker_hears()
        lender.tell(Recall(LOAN + LOAN))  # of another one, which this frontend does not know
        lender.tell(Recall(LOAN))
        handed, returned = await lender.broker_hears(2)
        assert (handed.batch_id, handed.requests[0][0], returned) == (LOAN + 1, request_id, Returned(LOAN, LOAN + 1))
        await lender.answers(request_id, seen)
        lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)


async def test_a_cancel_follows_what_it_cancels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, _ = lender.infer()
        await lender.worker_hears()
        lender.client.cancel(request_id)
        handed, cancel = await lender.broker_hears(2)
        assert (handed.requests[0][0], cancel) == (
            request_id,
            Cancel(lender.stage.frontend_ids[0], [[LANE.key, request_id]]),
        )


async def test_cancelled_before_it_went_it_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, _ = lender.infer()
        lender.client.cancel(request_id)
        cancel, submit = await lender.broker_hears(2)
        assert isinstance(cancel, Cancel)
        assert submit.groups[0][1][0][:3] == [request_id, 1, 1], "which the broker refuses as too late"


async def test_a_deadline_is_answered_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, seen = lender.infer(timeout_ns=20_000_000)
        await lender.worker_hears()
        await until(lambda: seen.failures)
        assert seen.failures[0][0] == Code.DEADLINE_EXCEEDED
        handed, cancel = await lender.broker_hears(2)
        assert (handed.requests[0][0], cancel.requests) == (request_id, [[LANE.key, request_id]])
        assert lender.client.pending_count == 1, "its worker reads it still"


async def test_what_takes_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch, tell_s=0.005) as lender:
        for number in (1, 2):
            request_id, seen = lender.infer()
            await lender.worker_hears()
            (handed,) = await lender.broker_hears(1)
            assert (handed.batch_id, handed.requests[0][0]) == (LOAN + number, request_id)
            await lender.answers(request_id, seen, LOAN + number)


def test_until_it_is_told_the_loop_rests() -> None:
    """Event loops take less than half a millisecond for none: what is set again for so long would be called at once,
    again and again."""
    now_ns, delays = 1_000_000_000, []

    class OneTimer:
        def call_later(self, delay_s: float, then: Callable[[], None]) -> None:
            delays.append(delay_s)
            self.then = then

    loop: Any = OneTimer()
    worker = SimpleNamespace(left=False, send=lambda data: None)
    told: list[bytes] = []
    link: Any = SimpleNamespace(frontend_id=3, workers={7: worker}, send=told.append)
    pending: dict[int, Any] = {1: ("reply",)}
    lends = direct.Direct(loop, link, pending, lambda: now_ns)
    lends.on_lend(Lend(LOAN, LANE.key, 7, 8, 0))
    assert lends.take({LANE: [[1, 1, 0, 64]]})
    for late_ns in (-400_000, -1, 0):  # the timer comes when it likes
        now_ns = 1_000_000_000 + direct._TELL_NS + late_ns
        loop.then()
    assert len(told) == 1
    assert delays[0] * 1e9 > direct._TELL_NS
    assert delays[1:] == [0.001, 0.001]


async def test_a_worker_that_left_is_named_and_the_request_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, seen = lender.infer()
        await lender.worker_hears()
        await lender.stage.worker_dies()
        handed, submit = await lender.broker_hears(2)
        assert (handed.worker_id, handed.requests[0][0]) == (lender.worker_id, request_id)
        assert (submit.again, submit.groups[0][1][0][0]) == (True, request_id)
        lender.stage.send(Failed([[request_id, Code.INTERNAL, "it ended two"]]))
        await until(lambda: seen.failures)
        # A loan of it that comes only now is not used.
        await lender.lend(2 * LOAN)
        lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)


async def test_an_answer_of_a_worker_that_left_is_taken_and_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, seen = lender.infer()
        await lender.worker_hears()
        lender.stage.answer(lender.worker_id, np.array([[1.0]]), [[request_id, 0, 1, 0]])
        await lender.stage.worker_dies()
        await until(lambda: seen.answers)
        lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)


async def test_another_broker_lends_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        request_id, _ = lender.infer()
        await lender.worker_hears()
        lender.stage.stop_broker()
        await until(lambda: not lender.client.connected)
        lender.stage.start_broker()
        await lender.stage.frontend_joins()
        await until(lambda: lender.client.connected)
        (submit,) = await lender.broker_hears(1)
        assert (submit.again, submit.groups[0][1][0][0]) == (True, request_id)
        lender.stage.send(Failed([[request_id, Code.UNAVAILABLE, "no"]]))
        await until(lambda: not lender.client.pending_count)
        lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)


# ------------------------------------------------------------------------------------------------------- several


async def batches_lent(lender: Lender, rows: int = 4) -> None:
    lender.tell(Recall(LOAN))
    await lender.broker_hears(1)
    await lender.lend(2 * LOAN, batch_rows_max=rows)


def parts_of(execute: Any) -> list[int]:
    return [part[1] for part in execute.parts]


async def test_several_go_together_and_what_comes_meanwhile_waits_for_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        await batches_lent(lender)
        first = [lender.infer()[0] for _ in range(3)]
        (execute,) = await lender.worker_hears()
        assert (execute.batch_id, parts_of(execute), execute.waits) == (2 * LOAN + 1, first, [[3, 0]])
        second = [lender.infer()[0]]
        await until(lambda: lender.client._direct.holds)
        second += [lender.infer()[0], lender.infer()[0]]
        await until(lambda: sum(count for count, _ in lender.client._direct._held) == 3)
        answers = [[request_id, row, 1, 0] for row, request_id in enumerate(first)]
        lender.stage.answer(lender.worker_id, np.ones((2, 1)), answers[:2], batch_id=2 * LOAN + 1)
        lender.stage.fail(lender.worker_id, [first[2], 3, "no", 1, 0], batch_id=2 * LOAN + 1)
        (execute,) = await lender.worker_hears()
        assert (execute.batch_id, parts_of(execute)) == (2 * LOAN + 2, second)
        ((one, longer_ns), (two, shorter_ns)) = execute.waits
        assert (one, two, longer_ns >= shorter_ns > 0) == (1, 2, True)
        lender.tell(Recall(2 * LOAN))
        handed, returned = await lender.broker_hears(2)
        assert [request[0] for request in handed.requests] == second
        assert returned == Returned(2 * LOAN, 2 * LOAN + 2)


@pytest.mark.parametrize("what", ["many", "lane", "cancel", "recall", "late"])
async def test_what_waits_goes_to_the_broker_when_that_must_decide(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lent(tmp_path, monkeypatch, tell_s=0.05 if what == "late" else 30.0) as lender:
        await batches_lent(lender)
        first_id, _ = lender.infer()
        await lender.worker_hears()
        held_id, _ = lender.infer()
        await until(lambda: lender.client._direct.holds)
        count = 2
        if what == "many":
            lender.infer(rows=4)
        elif what == "lane":
            lender.client.infer(STRINGS, 1, [[b"a"]], 0, Seen())
        elif what == "cancel":
            lender.client.cancel(held_id)
            count = 3
        elif what == "recall":
            lender.tell(Recall(2 * LOAN))
            count = 3
        handed, *between, submit = await lender.broker_hears(count)
        assert [request[0] for request in handed.requests] == [first_id]
        assert [type(message) for message in between] == {"cancel": [Cancel], "recall": [Returned]}.get(what, [])
        assert submit.groups[0][1][0][0] == held_id
        assert not lender.client._direct.holds
        # Until all that the broker has is answered, it has everything.
        lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)


async def test_a_loan_begins_when_what_the_broker_has_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        lender.tell(Recall(LOAN))
        await lender.broker_hears(1)
        first_id, seen = lender.infer()
        assert isinstance((await lender.broker_hears(1))[0], Submit)
        await lender.lend(2 * LOAN, batch_rows_max=4)
        held = [lender.infer()[0]]
        await until(lambda: lender.client._direct.holds)
        await lender.answers(first_id, seen, batch_id=1)
        (execute,) = await lender.worker_hears()
        assert parts_of(execute) == held


async def test_what_waits_for_a_worker_that_left_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lent(tmp_path, monkeypatch) as lender:
        await batches_lent(lender)
        first_ids = [lender.infer()[0], lender.infer()[0]]
        await lender.worker_hears()
        held_id, _ = lender.infer()
        await until(lambda: lender.client._direct.holds)
        await lender.stage.worker_dies()
        handed, submit, again = await lender.broker_hears(3)
        assert [request[0] for request in handed.requests] == first_ids
        assert (submit.again, submit.groups[0][1][0][0]) == (False, held_id)
        assert (again.again, [request[0] for request in again.groups[0][1]]) == (True, [*first_ids, held_id])
