"""The canary: what its call needs, and when a server counts as well.

Held here: a whole server answers it while it loads, without any model, and under load; stopped workers that are idle
leave it unanswered; a supervisor tells systemd that it lives only while it is answered.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve import canary
from tests.e2e import operator
from tests.e2e.server import Server, wait_until
from tests.e2e.traffic import Traffic


class Answering:
    """A UNIX socket that answers each request with this status, or never (0)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.status = 200
        self.asked = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.recv(4096)
            if self.status:
                connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\ntext" % self.status)
                connection.close()
            else:
                self._kept.append(connection)
            self.asked += 1

    def close(self) -> None:
        self._listener.close()
        for connection in self._kept:
            connection.close()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    made = Answering(tmp_path / "s")
    yield made
    made.close()


def test_the_call_says_what_is_wrong(answering: Answering, tmp_path: Path) -> None:
    assert canary.ask(answering.path, 10) == ""
    answering.status = 503
    assert canary.ask(answering.path, 10) == "HTTP 503: text"
    answering.status = 0
    assert "imed out" in canary.ask(answering.path, 0.1)
    assert "No such file" in canary.ask(str(tmp_path / "nowhere"), 10)


def test_it_is_well_until_calls_have_failed_for_three_periods(answering: Answering) -> None:
    period_ns = 50_000_000
    bird = canary.Canary(answering.path, period_ns)
    began_ns = time.monotonic_ns()
    assert bird.is_well(began_ns)
    wait_until(lambda: answering.asked >= 3, "calls")
    answering.status = 503
    wait_until(lambda: not bird.is_well(time.monotonic_ns()), "it to be unwell")
    answering.status = 200
    wait_until(lambda: bird.is_well(time.monotonic_ns()), "it to be well again")
    bird.close()
    wait_until(lambda: threading.active_count() == 2 or not _named("canary"), "the thread to end")


def _named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_without_a_watchdog_no_call_is_made(answering: Answering) -> None:
    bird = canary.Canary(answering.path, 0)
    assert bird.is_well(time.monotonic_ns())
    assert not _named("canary")
    assert answering.asked == 0


def test_a_server_answers_while_it_works_and_not_when_its_workers_are_stuck(half: Path, tmp_path: Path) -> None:
    """The pool is stopped, too: it would replace workers that somebody stopped."""
    model = ["--model_name", "half", "--model_base_path", str(half), "--workers", "2", "--hang_ms_max", "0"]
    with Server(tmp_path, *model) as server:
        path = str(server.run_dir / "admin.sock")
        wait_until(lambda: "operators at UNIX socket" in server.log, "the socket")
        wait_until(lambda: canary.ask(path, 60) == "", "the broker; it may load the model still")
        server.wait_available("half")
        wait_until(lambda: len(server.members("worker")) == 2, "both workers")
        assert canary.ask(path, 60) == ""
        workers = server.members("worker")
        with Traffic(server, "half"):
            assert canary.ask(path, 60) == ""
        # A worker tells the broker of a batch after the clients: stopped in between it runs one, as far as is known.
        wait_until(lambda: not operator.state(server)["lanes"], "no batch to run")
        (pool,) = server.members("pool")
        for stuck in (pool, *workers):
            stuck.send_signal(signal.SIGSTOP)
        assert "imed out" in canary.ask(path, 1)
        workers[0].send_signal(signal.SIGCONT)
        wait_until(lambda: canary.ask(path, 1) == "", "one worker to be enough")
        for stuck in (pool, workers[1]):
            stuck.send_signal(signal.SIGCONT)
        assert '"GET /ringserve/v1/canary"' not in server.log, "operators' log is for what they do"


def test_a_server_without_a_model_answers(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with Server(tmp_path, "--model_name", "m", "--model_base_path", str(base), "--workers", "1") as server:
        wait_until(lambda: "operators at UNIX socket" in server.log, "the socket")
        wait_until(lambda: canary.ask(str(server.run_dir / "admin.sock"), 30) == "", "the broker")
        assert os.path.exists(server.run_dir)
