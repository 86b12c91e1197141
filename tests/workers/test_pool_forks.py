"""A pool for which the system has no process left: it says so to the broker, keeps its workers, and forgets nothing."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest

from ringserve.broker.control import ControlChannel, ControlMessage
from ringserve.broker.messages import Author, Authored, Exited, Fork, LoadOrder
from ringserve.workers.pool import Pool


@pytest.fixture
def pool_and_broker() -> Iterator[tuple[Pool, ControlChannel]]:
    """A pool that is connected, and the broker's end."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stop_fd = os.eventfd(0)
    pool = Pool("", lambda *_: 0, lambda *_: 0, stop_fd=stop_fd, leave=lambda: None)
    pool._channel, broker = ControlChannel(near), ControlChannel(far)
    yield pool, broker
    pool._channel.close()
    broker.close()
    os.close(stop_fd)


def no_process() -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def told(broker: ControlChannel) -> ControlMessage:
    (received,) = broker.receive()
    return received.message


def test_a_worker_that_cannot_be_forked_is_told_of_like_one_that_ended(
    pool_and_broker: tuple[Pool, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, broker = pool_and_broker
    monkeypatch.setattr(os, "fork", no_process)
    before = descriptors()
    pool._fork(Fork(3, 0, [], 1, []))
    exited = told(broker)
    assert isinstance(exited, Exited)
    assert (exited.pid, exited.worker_index) == (0, 3)
    assert exited.status > 0
    assert descriptors() == before


def test_weights_whose_author_cannot_be_forked_are_not_shared(
    pool_and_broker: tuple[Pool, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, broker = pool_and_broker
    monkeypatch.setattr(os, "fork", no_process)
    before = descriptors()
    pool._author(Author(7, False, [], 1, LoadOrder("m", 2, "/m/2", False, [], 7)))
    authored = told(broker)
    assert isinstance(authored, Authored)
    assert (authored.weights_id, authored.status, authored.error_code, authored.bytes_shared) == (7, 0, 0, 0)
    assert "private to each worker: no process" in authored.notes[0]
    assert descriptors() == before


def test_a_process_that_cannot_be_watched_is_ended(
    pool_and_broker: tuple[Pool, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left for its end to be seen by: nobody would ever know what became of it."""
    pool, broker = pool_and_broker

    def no_descriptor(pid: int, flags: int = 0) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    pool._fork(Fork(3, 0, [], 1, []))
    assert isinstance(told(broker), Exited)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_dead_make_room_for_the_next(
    pool_and_broker: tuple[Pool, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are reaped a while after their end, and count against a limit of processes until then."""
    pool, broker = pool_and_broker
    pool._fork(Fork(3, 0, [], 1, []))
    while pool._workers:
        pool._wait(None, 1_000)
    assert isinstance(told(broker), Exited)
    fork = os.fork

    def fork_where_one_may_be() -> int:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return fork()
        no_process()

    monkeypatch.setattr(os, "fork", fork_where_one_may_be)
    pool._fork(Fork(4, 0, [], 1, []))
    assert list(pool._workers.values()) == [4]
    while pool._workers:
        pool._wait(None, 1_000)
    assert isinstance(told(broker), Exited)
    pool._dead.reap_all()
