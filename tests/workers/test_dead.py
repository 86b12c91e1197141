"""Children that have ended: their status at once, their reaping later, one at a time."""

from __future__ import annotations

import os
import select
import signal

import pytest

from ringserve.workers.dead import DeadChildren

S = 1_000_000_000


def child(*, status: int = 0, signalled: int = 0) -> tuple[int, int]:
    """One that has ended like that: (process id, pidfd)."""
    pid = os.fork()
    if pid == 0:
        if signalled:
            os.kill(os.getpid(), signalled)
        os._exit(status)
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll()
    return pid, pidfd


def is_there(pid: int) -> bool:
    """It is, as a child of this process that can be reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return False


@pytest.mark.parametrize(
    ("status", "signalled", "expected"),
    [(0, 0, 0), (71, 0, 71), (0, signal.SIGKILL, -signal.SIGKILL), (0, signal.SIGTERM, -signal.SIGTERM)],
)
def test_how_it_ended_is_known_at_once(status: int, signalled: int, expected: int) -> None:
    dead = DeadChildren()
    pid, pidfd = child(status=status, signalled=signalled)
    assert dead.ended(pidfd, 5 * S) == expected
    os.close(pidfd)
    assert is_there(pid), "its number must stay its own for a while"
    dead.reap_all()
    assert not is_there(pid)


def test_they_are_reaped_later_one_by_one() -> None:
    dead = DeadChildren()
    assert dead.wake_ns == 0
    children = [child() for _ in range(3)]
    for number, (_, pidfd) in enumerate(children):
        dead.ended(pidfd, number)
        os.close(pidfd)
    first, second, third = (pid for pid, _ in children)
    wake_ns = dead.wake_ns
    dead.reap(wake_ns - 1)
    assert is_there(first)
    dead.reap(wake_ns + 1)
    assert [is_there(pid) for pid in (first, second, third)] == [False, True, True]
    assert dead.wake_ns == wake_ns + 1
    dead.reap(wake_ns + 1)
    assert [is_there(pid) for pid in (second, third)] == [False, True]
    assert dead.wake_ns == wake_ns + 2
    dead.reap_all()
    assert not is_there(third)
    assert dead.wake_ns == 0
