"""Orphans that stay: whose they are, and for how long they may, with real processes and made-up time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringserve.orphans import Orphans

_S_NS = 1_000_000_000
_SLEEP = (sys.executable, "-c", "import signal; signal.pause()")


@pytest.fixture
def group() -> Iterator[tuple[int, int]]:
    """Process ids of one that leads a group, and of another member."""
    with subprocess.Popen(_SLEEP, process_group=0) as leader:
        with subprocess.Popen(_SLEEP, process_group=leader.pid) as member:
            yield leader.pid, member.pid
            member.kill()
        leader.kill()


def test_one_that_stays_for_too_long_is_named_and_again_if_that_was_no_help(group: tuple[int, int]) -> None:
    leader, member = group
    orphans = Orphans(12 * _S_NS)
    orphans.leader_died(leader)
    assert orphans.look([member], 5 * _S_NS) == []
    assert orphans.wake_ns == 17 * _S_NS
    assert orphans.look([member], 17 * _S_NS - 1) == []
    assert orphans.look([member], 17 * _S_NS) == [member]
    assert orphans.look([member], 18 * _S_NS) == []
    assert orphans.wake_ns == 29 * _S_NS
    assert orphans.look([], 19 * _S_NS) == []
    assert orphans.wake_ns == 0


def test_what_others_started_is_left_alone(group: tuple[int, int]) -> None:
    """As process 1 of a container has it: a program that somebody started in there, and left."""
    _, member = group
    orphans = Orphans(12 * _S_NS)
    assert orphans.look([member], 0) == []
    assert orphans.wake_ns == 0
    assert orphans.look([member], 100 * _S_NS) == []
