"""A worker that hangs before it has registered ends, even inside C code, and one that has registered lives on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Fork, Ready
from ringserve.workers import pool as pools
from ringserve.workers.pool import Pool
from ringserve.workers.vault import Vault


def _hang(*_: Any) -> int:
    while True:
        signal.pause()


def test_one_that_never_registers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REGISTER_S_MAX", 1)
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # as it is in a real pool
            pool = Pool.__new__(Pool)
            pool._vault, pool._life_read, pool._run_worker = Vault(), -1, _hang
            pool._be_worker(Fork(0, 0, [], 1, [], -1, 0))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_one_that_has_registered_is_left_alone(tf: Any) -> None:
    from tests.workers.broker_end import BrokerEnd, WorkerEnd, short_directory

    with short_directory() as name:
        broker = BrokerEnd(Path(name) / "b")
        signal.alarm(1000)
        worker = WorkerEnd(Path(name), [], lambda _: pytest.fail("there is nothing to load"))
        broker.accept(11)
        broker.until(Ready([], True))  # it loads, and so it has registered
        assert signal.alarm(0) == 0
        worker.close()
        broker.close()
