"""Requests that nobody waits for any more: deadlines and cancels at the client, over real sockets and rings."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ringserve.broker.messages import Cancel, Code, Failed, Submit
from ringserve.frontend import deadlines
from tests.frontend.test_client import LANE, ROW, Seen, staged, until


async def test_a_deadline_is_answered_here_and_the_broker_is_told(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 100_000_000, seen)
        ((_, (request,)),) = (await stage.broker_mail(Submit)).groups
        assert request[2] > 0
        await until(lambda: seen.failures)
        # The broker has not said that it is queued.
        assert seen.failures == [(Code.DEADLINE_EXCEEDED, deadlines.RUNNING_TEXT)]
        assert (await stage.broker_mail(Cancel)).requests == [[LANE.key, request_id]]
        assert client.pending_count == 1, "its records belong to the data plane until the terminal message"
        stage.answer(worker_id, np.array([[1.0]]), [[request_id, 0, 1, 0]])
        await until(lambda: client.pending_count == 0)
        assert seen.answers == []


async def test_of_an_expired_request_the_broker_says_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_GRACE_S", 30.0)  # a slow machine may not be quick enough
    async with staged(tmp_path) as (stage, client, _):
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 100_000_000, seen)
        await stage.broker_mail(Submit)
        await stage.broker_mail(Cancel)
        stage.send(Failed([[request_id, Code.DEADLINE_EXCEEDED, "it was here"]]))
        await until(lambda: client.pending_count == 0)
        assert seen.failures == [(Code.DEADLINE_EXCEEDED, "it was here")]


async def test_without_a_broker_a_deadline_holds_all_the_same(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        await stage.worker_joins()
        stage.stop_broker()
        await until(lambda: not client.connected)
        seen = Seen()
        client.infer(LANE, 1, [ROW], 20_000_000, seen)
        await until(lambda: seen.failures)
        text = "Timed out waiting for notification: the broker was being replaced"
        assert seen.failures == [(Code.DEADLINE_EXCEEDED, text)]
        stage.start_broker()


async def test_what_is_late_on_arrival_is_not_submitted(tmp_path: Path) -> None:
    async with staged(tmp_path) as (_, client, _):
        seen = Seen()
        assert client.infer(LANE, 1, [ROW], -1, seen) == -1
        text = "Timed out waiting for notification: the deadline had passed before the request was read"
        assert seen.failures == [(Code.DEADLINE_EXCEEDED, text)]
        assert client.pending_count == 0
        assert client.ring_statistics().records_count == 0


async def test_no_deadline_is_further_away_than_the_server_allows(tmp_path: Path) -> None:
    async with staged(tmp_path, timeout_ns_max=10**9) as (stage, client, _):
        for timeout_ns in (0, 10**12, 10**9, 10**7):
            client.infer(LANE, 1, [ROW], timeout_ns, Seen())
        now_ns = time.monotonic_ns()
        ((_, requests),) = (await stage.broker_mail(Submit)).groups
        assert all(now_ns - 10**9 < request[2] <= now_ns + 10**9 for request in requests[:3])
        assert requests[3][2] <= now_ns + 10**7


async def test_cancelled_before_it_was_submitted(tmp_path: Path) -> None:
    """It is submitted nevertheless, as only the broker's word gives its records back; but as one that is too late."""
    async with staged(tmp_path) as (stage, client, _):
        request_id = client.infer(LANE, 1, [ROW], 0, Seen())
        client.cancel(request_id)
        ((_, (request,)),) = (await stage.broker_mail(Submit)).groups
        assert request[2] == 1


async def test_a_cancel_holds_at_the_next_broker(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = [Seen(), Seen(), Seen()]
        ids = [client.infer(LANE, 1, [ROW], 0, each) for each in seen]
        await stage.broker_mail(Submit)
        client.cancel(ids[0])
        await stage.broker_mail(Cancel)
        stage.stop_broker()
        await until(lambda: not client.connected)
        client.cancel(ids[1])  # nobody is there to be told
        stage.start_broker()
        await stage.frontend_joins()
        ((_, requests),) = (await stage.broker_mail(Submit)).groups
        assert [request[:3] for request in requests] == [[ids[0], 1, 1], [ids[1], 1, 1], [ids[2], 1, 0]]
        stage.send(Failed([[request_id, Code.DEADLINE_EXCEEDED, "late"] for request_id in ids[:2]]))
        await until(lambda: client.pending_count == 1)
        assert not seen[0].failures
        assert not seen[1].failures


async def test_an_answered_request_does_not_expire(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen, later = Seen(), Seen()
        request_id = client.infer(LANE, 1, [ROW], 200_000_000, seen)
        stage.answer(worker_id, np.array([[1.0]]), [[request_id, 0, 1, 0]])
        await until(lambda: seen.answers)
        client.infer(LANE, 1, [ROW], 250_000_000, later)
        await until(lambda: later.failures)
        assert seen.failures == []


async def test_a_cancelled_request_is_never_answered(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 0, seen)
        client.cancel(request_id)
        client.cancel(12345)
        assert (await stage.broker_mail(Cancel)).requests == [[LANE.key, request_id]]
        stage.send(Failed([[request_id, Code.CANCELLED, "cancelled"]]))
        await until(lambda: client.pending_count == 0)
        assert seen.failures == []
