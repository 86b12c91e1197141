"""Stopped children: who is late and who is not, with real processes and made-up time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringserve.workers.stopped import StoppedChildren, is_stopped
from tests.workers.broker_end import wait_for

_S_NS = 1_000_000_000


@pytest.fixture
def stopped() -> Iterator[StoppedChildren]:
    children = StoppedChildren(_S_NS)
    yield children
    children.leave()


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process.pid
        process.kill()


def _readable(stopped: StoppedChildren) -> bool:
    poller = select.poll()
    poller.register(stopped.fd, select.POLLIN)
    return bool(poller.poll(60_000))


def test_one_that_stays_stopped_is_late(stopped: StoppedChildren, child: int) -> None:
    assert stopped.look([child], 0) == []
    assert stopped.wake_ns == 0
    os.kill(child, signal.SIGSTOP)
    assert _readable(stopped)  # the kernel told us
    wait_for(lambda: is_stopped(child) or None, "the child to be stopped")
    assert stopped.look([child], 5 * _S_NS) == []
    assert stopped.wake_ns == 6 * _S_NS
    assert stopped.look([child], 6 * _S_NS - 1) == []
    assert stopped.look([child], 6 * _S_NS) == [child]
    assert stopped.look([], 7 * _S_NS) == []
    assert stopped.wake_ns == 0


def test_one_that_is_continued_has_its_whole_time_again(stopped: StoppedChildren, child: int) -> None:
    for begun_ns in (0, 10 * _S_NS):
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: is_stopped(child) or None, "the child to be stopped")
        assert stopped.look([child], begun_ns) == []
        os.kill(child, signal.SIGCONT)
        wait_for(lambda: not is_stopped(child) or None, "the child to go on")
        assert stopped.look([child], begun_ns + 9 * _S_NS) == []
        assert stopped.wake_ns == 0


def test_one_that_is_gone_is_not_stopped(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, os.WNOHANG)
    wait_for(lambda: not is_stopped(child) or None, "it to be gone")
