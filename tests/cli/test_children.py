"""What the end of a child leads to: pure decisions, with made-up time."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

import pytest

from ringserve.children import Child, ChildSpec, Fatal, Stage, describe_status, shell_status
from ringserve.config.process import Exit
from ringserve.config.schema import Workers

_MS = 1_000_000
_LIMITS = Workers(restart_wait_ms_min=100, restart_wait_ms_max=1000, start_failures_max=4)


@pytest.fixture
def child() -> Child:
    return Child(ChildSpec("pool", Stage.POOL, (), ()))


def _waits_ms(child: Child, *, ready: bool, count: int, now_ms: int = 0) -> list[int]:
    waits = []
    for _ in range(count):
        if ready:
            child.became_ready()
        assert child.after(1, now_ms * _MS, _LIMITS) is None
        waits.append(child.due_ns // _MS - now_ms)
    return waits


def test_pauses_double_up_to_the_limit_while_it_dies_young(child: Child) -> None:
    assert _waits_ms(child, ready=True, count=7) == [0, 100, 200, 400, 800, 1000, 1000]


def test_one_that_served_long_is_replaced_at_once_again(child: Child) -> None:
    _waits_ms(child, ready=True, count=4)
    assert _waits_ms(child, ready=True, count=1, now_ms=1000) == [0]


def test_one_that_never_became_ready_waits_from_the_first_time(child: Child) -> None:
    assert _waits_ms(child, ready=False, count=3) == [100, 100, 200]


def test_too_many_failed_starts_in_a_row_are_fatal(child: Child) -> None:
    _waits_ms(child, ready=False, count=3)
    fatal = child.after(-signal.SIGSEGV, 0, _LIMITS)
    assert fatal == Fatal(
        "pool failed to start 4 times in a row, at last with signal SIGSEGV (see its last lines)", 128 + signal.SIGSEGV
    )


def test_a_start_that_succeeds_forgives_the_failures_before(child: Child) -> None:
    _waits_ms(child, ready=False, count=3)
    _waits_ms(child, ready=True, count=1)
    _waits_ms(child, ready=False, count=3)


def test_what_the_system_has_no_room_for_is_tried_again_and_never_fatal(child: Child) -> None:
    waits = []
    for _ in range(6):
        child.could_not_start(0, _LIMITS)
        waits.append(child.due_ns // _MS)
    assert waits == [100, 100, 200, 400, 800, 1000]


def test_a_process_that_cannot_be_watched_is_ended(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(pid: int, flags: int = 0) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    with pytest.raises(OSError, match="Too many open files"):
        child.start([sys.executable, "-c", "import signal; signal.pause()"], dict(os.environ), 0)
    assert not child.alive
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("status", [Exit.CONFIG, Exit.FATAL])
def test_some_statuses_are_fatal_at_once(child: Child, status: Exit) -> None:
    child.became_ready()
    fatal = child.after(status, 0, _LIMITS)
    assert fatal is not None
    assert fatal.status == status


@pytest.mark.parametrize(
    ("status", "text", "shell"),
    [(3, "status 3", 3), (0, "status 0", 1), (-9, "signal SIGKILL", 137), (-35, "signal 35", 163)],
)
def test_statuses(status: int, text: str, shell: int) -> None:
    assert describe_status(status) == text
    assert shell_status(status) == shell
