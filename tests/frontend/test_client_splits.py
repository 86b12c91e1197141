"""A request that the broker cut, as its frontend sees it: joined, or told once and kept until no part of it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ringserve.broker.messages import Cancel, Code, Failed
from tests.frontend.test_client import LANE, ROW, Seen, staged, until


async def test_parts_of_a_split_request_are_joined_in_row_order(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen = Seen()
        request_id = client.infer(LANE, 5, [ROW * 5], 0, seen)
        stage.answer(worker_id, np.array([[4.0], [5.0]]), [[request_id, 0, 2, 3]])
        stage.answer(worker_id, np.array([[4.0], [5.0]]), [[request_id, 0, 2, 3]], 64)  # the batch ran twice
        stage.answer(worker_id, np.array([[9.0], [1.0], [2.0], [3.0]]), [[request_id, 1, 3, 0]], 128)
        await until(lambda: seen.answers)
        assert seen.answers == [[[1.0], [2.0], [3.0], [4.0], [5.0]]]
        assert client.pending_count == 0


async def test_records_of_a_split_request_that_failed_are_others_when_all_its_parts_have_run(tmp_path: Path) -> None:
    """Its client is told at once. Until the last part is over workers read what it sent."""
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen = Seen()
        request_id = client.infer(LANE, 6, [ROW * 6], 0, seen)
        used = client.ring_statistics().used_bytes
        stage.fail(worker_id, [request_id, Code.INVALID_ARGUMENT, "bad row", 2, 2])
        await until(lambda: seen.failures)
        assert seen.failures == [(Code.INVALID_ARGUMENT, "bad row")]
        assert (await stage.broker_mail(Cancel)).requests == [[LANE.key, request_id]]
        stage.answer(worker_id, np.array([[1.0], [2.0]]), [[request_id, 0, 2, 0]])
        stage.fail(worker_id, [request_id, Code.INVALID_ARGUMENT, "bad row", 1, 2])  # it ran twice
        await until(lambda: client._joins[request_id]._parts.keys() == {0, 2})
        assert (client.pending_count, client.ring_statistics().used_bytes) == (1, used)
        stage.answer(worker_id, np.array([[1.0], [2.0]]), [[request_id, 0, 2, 4]], 64)
        await until(lambda: not client.pending_count)
        assert client.ring_statistics().used_bytes == 0
        assert (len(seen.failures), seen.answers) == (1, [])


async def test_what_the_broker_says_of_the_rest_ends_a_split_request_that_failed(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen = Seen()
        request_id = client.infer(LANE, 6, [ROW * 6], 0, seen)
        stage.fail(worker_id, [request_id, Code.INVALID_ARGUMENT, "bad row", 2, 2])
        await until(lambda: seen.failures)
        assert client.pending_count == 1
        stage.send(Failed([[request_id, Code.CANCELLED, "cancelled"]]))
        await until(lambda: not client.pending_count)
        assert client.ring_statistics().used_bytes == 0
        assert len(seen.failures) == 1
