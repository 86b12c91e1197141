"""Processes that hang (SIGSTOP) under load: each is found, killed and replaced, and clients lose nothing but time.

Workers that hang without being stopped are found by their leases: tests/sim and tests/broker/test_leases.py.

A frontend that hangs takes its connections with it; clients that retry as clients do see nothing of that either.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Server, wait_until
from tests.faults.retrying import Clients

_HANG_MS = 2000


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ["--model_name", "half", "--model_base_path", str(models / "half"), "--workers", "2"]
    arguments += ["--frontends", "2", "--hang_ms_max", str(_HANG_MS)]
    with Server(tmp_path_factory.mktemp("server"), *arguments) as server:
        server.wait_available("half")
        yield server


def _stop_one(server: Server, role: str) -> psutil.Process:
    victim = wait_until(lambda: server.members(role), f"a {role} to be there")[0]
    victim.send_signal(signal.SIGSTOP)
    return victim


def _wait_replaced(server: Server, role: str, victim: psutil.Process, count: int) -> None:
    def replaced() -> bool:
        pids = {process.pid for process in server.members(role)}
        return victim.pid not in pids and len(pids) == count

    wait_until(replaced, f"another {role} than {victim.pid}; the log:\n{server.log}")


def test_a_broker_that_hangs_costs_clients_nothing_but_time(server: Server) -> None:
    with Clients(server, 6, 2) as clients:
        victim = _stop_one(server, "broker")
        _wait_replaced(server, "broker", victim, 1)
        clients.wait_for_more(100)
    assert f"broker (process {victim.pid}) hangs: it has been silent for " in server.log


def test_a_pool_that_hangs_is_replaced_while_its_workers_serve(server: Server) -> None:
    workers = {process.pid for process in server.members("worker")}
    with Clients(server, 6, 2) as clients:
        victim = _stop_one(server, "pool")
        clients.wait_for_more(100)
        assert {process.pid for process in server.members("worker")} == workers
        _wait_replaced(server, "pool", victim, 1)
        wait_until(lambda: len(server.members("worker")) == 2, "both workers to be back")
        clients.wait_for_more(100)


def test_a_frontend_that_hangs_is_replaced_and_clients_that_retry_see_nothing(server: Server) -> None:
    with Clients(server, 8, 4) as clients:
        victim = _stop_one(server, "frontend")
        _wait_replaced(server, "frontend", victim, 2)
        clients.wait_for_more(100)


def test_a_worker_that_is_stopped_is_replaced_and_its_batch_is_run_by_another(server: Server) -> None:
    wait_until(lambda: len(server.members("worker")) == 2, "two workers")
    with Clients(server, 6, 2) as clients:
        for victim in server.members("worker"):
            victim.send_signal(signal.SIGSTOP)
            _wait_replaced(server, "worker", victim, 2)
            clients.wait_for_more(100)


def test_a_worker_that_is_stopped_while_it_is_idle_is_replaced_before_anybody_asks(server: Server) -> None:
    wait_until(lambda: len(server.members("worker")) == 2, "two workers")
    victim = _stop_one(server, "worker")
    _wait_replaced(server, "worker", victim, 2)
    assert f"process {victim.pid} hangs: somebody stopped it" in server.log
