"""When workers are replaced for their age or their memory, and how often at most."""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import pairwise

import pytest

from ringserve.broker.members import Member
from ringserve.broker.processes import private_bytes
from ringserve.broker.renewal import Renewal

S = 1_000_000_000
NOW_NS = 10_000 * S
MIB = 1 << 20


def member(pid: int, generation: int = 0, born_ns: int = NOW_NS) -> Member:
    return Member(pid, pid, generation, 0, 0, born_ns)


def test_age() -> None:
    renewal = Renewal("g", bytes_max=0, age_ns_max=100 * S)
    limit_ns = renewal.age_limit_ns(0)
    assert 80 * S <= limit_ns <= 100 * S
    young, old = member(1), member(2, born_ns=NOW_NS - S)
    assert renewal.look([young, old], {}, NOW_NS + limit_ns - S - 1) == ""
    assert renewal.look([young, old], {}, NOW_NS + limit_ns - S) == "age"
    assert renewal.look([], {}, NOW_NS + 1_000 * S) == ""


def test_a_generation_that_stays_is_named_once_a_minute() -> None:
    renewal = Renewal("g", bytes_max=0, age_ns_max=5 * S)
    named = [second for second in range(100) if renewal.look([member(1)], {}, NOW_NS + second * S)]
    assert len(named) == 2
    assert named[1] - named[0] == 60
    assert renewal.look([member(2, generation=1)], {}, NOW_NS + 100 * S) == "age"


def test_groups_and_generations_do_not_go_at_the_same_time() -> None:
    limits = {Renewal(name, bytes_max=0, age_ns_max=1_000 * S).age_limit_ns(n) for name in "abcd" for n in range(4)}
    assert len(limits) == 16
    assert max(limits) - min(limits) > 50 * S


def test_without_limits_nothing_is_renewed() -> None:
    renewal = Renewal("g", bytes_max=0, age_ns_max=0)
    assert renewal.look([member(1, born_ns=0)], {1: 1 << 60}, 1 << 62) == ""


def test_memory() -> None:
    renewal = Renewal("g", bytes_max=10 * MIB, age_ns_max=0)
    assert renewal.look([member(1), member(2)], {1: 10 * MIB}, NOW_NS) == ""
    assert renewal.look([member(1), member(2)], {1: MIB, 2: 10 * MIB + 1}, NOW_NS) == "memory"


def test_a_leak_that_is_faster_than_the_renewals_is_not_chased(caplog: pytest.LogCaptureFixture) -> None:
    renewal = Renewal("g", bytes_max=MIB, age_ns_max=0)
    with caplog.at_level(logging.WARNING):
        seconds = range(4 * 3_600)
        times = [second for second in seconds if renewal.look([member(1)], {1: 2 * MIB}, NOW_NS + second * S)]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]
    assert len(caplog.messages) == len(times)  # said once for each pause
    assert "worker_bytes_max" in caplog.text


def test_a_slow_leak_is_renewed_each_time(caplog: pytest.LogCaptureFixture) -> None:
    renewal = Renewal("g", bytes_max=MIB, age_ns_max=0)
    for hour in range(5):
        assert renewal.look([member(1)], {1: 2 * MIB}, NOW_NS + hour * 3_600 * S) == "memory"
        assert renewal.look([member(2)], {2: MIB}, NOW_NS + hour * 3_600 * S + S) == ""
    assert caplog.messages == []


def test_private_memory_is_read_from_the_kernel() -> None:
    """Of another process, where nobody else gives memory back meanwhile."""
    code = "import os; print(flush=True); input(); block = bytearray(os.urandom(32 << 20)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = private_bytes(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        assert private_bytes(process.pid) - before > 24 * MIB
    assert private_bytes(2**22 + 1) == 0
