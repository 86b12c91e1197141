"""A frontend that is out of descriptors when a broker or a worker is to be introduced: it loses no request, leaks
nothing, and comes back when there are some again."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, Failed, Submit
from ringserve.frontend import broker_link
from ringserve.frontend.client import Client
from ringserve.shm.segment import Segment, SegmentError
from tests.frontend.test_client import LANE, ROW, Seen, Stage, staged, until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_link, "_REFUSED_S", 0.05)
    monkeypatch.setattr(broker_link, "_DEAD_RING_KEPT_S", 0.1)


def _more_than(dropped: list[float], count: int) -> bool:
    return len(dropped) > count


def descriptors_count() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _serves(stage: Stage, client: Client) -> None:
    """Requests that are made now, and those from before, are answered by a worker that joins."""
    worker_id = await stage.worker_joins()
    await until(lambda: worker_id in client._link.workers)
    seen = Seen()
    request_id = client.infer(LANE, 1, [ROW], 0, seen)
    await stage.broker_mail(Submit)
    stage.answer(worker_id, np.array([[1, 2]]), [[request_id, 0, 1, 0]])
    await until(lambda: seen.answers)


async def test_no_descriptor_for_a_worker_is_a_lost_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(tmp_path) as (stage, client, _):
        no_room = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        attach, tried = Segment.attach, []

        def refuse(fd: int) -> Segment:
            tried.append(fd)
            raise SegmentError(f"descriptor {fd}: cannot map") from no_room

        monkeypatch.setattr(Segment, "attach", refuse)
        client.infer(LANE, 1, [ROW], 0, Seen())
        await stage.broker_mail(Submit)
        await stage.worker_joins()
        await until(lambda: tried)
        assert not client.connected
        monkeypatch.setattr(Segment, "attach", attach)
        await stage.frontend_joins()
        await until(lambda: client.connected and client._link.workers)
        # What is not answered is submitted again, as after the death of a broker.
        assert sum(len(requests) for _, requests in (await stage.broker_mail(Submit)).groups) == 1
        assert "Too many open files); registering again" in caplog.text


async def test_a_segment_that_is_none_is_a_bug_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context["exception"]))
    async with staged(tmp_path) as (stage, _, _):

        def refuse(fd: int) -> Segment:
            raise SegmentError("its size is not sealed")

        monkeypatch.setattr(Segment, "attach", refuse)
        await stage.worker_joins()
        await until(lambda: bugs)
    assert isinstance(bugs[0], SegmentError)


async def test_no_descriptor_to_register_with_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(tmp_path) as (stage, client, _):
        before = descriptors_count()
        dup, tried = os.dup, []

        def refuse(fd: int) -> int:
            tried.append(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(os, "dup", refuse)
        stage.stop_broker()
        await until(lambda: len(tried) == 3)
        monkeypatch.setattr(os, "dup", dup)
        assert descriptors_count() <= before
        stage.start_broker()
        await stage.frontend_joins()
        await until(lambda: client.connected)
        await _serves(stage, client)
    told = [each for each in caplog.records if "cannot register with the broker yet" in each.getMessage()]
    assert [each.levelno for each in told] == [logging.WARNING]


async def test_descriptors_that_do_not_come_through_are_asked_for_again_without_haste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path) as (stage, client, _):
        await stage.worker_joins()
        await until(lambda: client._link.workers)
        receive, dropped, is_short = socket.recv_fds, [], True

        def cut(sock: socket.socket, *arguments: Any) -> Any:
            data, fds, flags, address = receive(sock, *arguments)
            channel = client._link._channel
            if is_short and channel is not None and sock is channel._socket and len(fds) == 2:
                for fd in fds:
                    os.close(fd)
                dropped.append(asyncio.get_running_loop().time())
                fds = []
            return data, fds, flags, address

        monkeypatch.setattr(socket, "recv_fds", cut)
        client._link._disconnect("as if")
        joined: list[int] = []
        descriptors = []
        while len(dropped) < 8:
            arrivals = await stage.arrivals(lambda arrivals: bool(arrivals.joined))
            joined += [peer.peer_id for peer in arrivals.joined]
            await until(functools.partial(_more_than, dropped, len(dropped)))
            descriptors.append(descriptors_count())
        pauses_s = np.diff(dropped)
        assert pauses_s[-1] >= 0.05
        assert max(descriptors[4:]) <= max(descriptors[:4]) + 1
        is_short = False
        await stage.frontend_joins()
        await until(lambda: client.connected and client._link.workers)


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_the_next_broker_says_of_requests_arrives_though_the_last_one_removed_the_inbox(
    tmp_path: Path, times: int
) -> None:
    """A broker removes the file of who has left, and one that has only lost it registers again."""
    async with staged(tmp_path) as (stage, client, _):
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 0, seen)
        for _ in range(times):
            path = stage.frontend.hello.inbox
            stage.stop_broker()
            os.unlink(path)
            stage.start_broker()
            await stage.frontend_joins()
            assert stage.frontend.hello.inbox != path
        stage.send(Failed([[request_id, Code.INTERNAL, "no"]]))
        await until(lambda: seen.failures)
        assert seen.failures == [(Code.INTERNAL, "no")]
    assert not list(tmp_path.glob("*.inbox"))
