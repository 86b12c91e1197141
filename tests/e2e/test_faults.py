"""Processes are killed under load: clients of the others notice nothing."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until


class Load:
    """Threads that call Predict without pause and count what comes back."""

    def __init__(self, server: Server, threads: int = 8) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(server.grpc_target)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        rng = np.random.default_rng(7)
        self._requests = [make_request("mlp", x=rng.random((1 + n % 3, 784), np.float32)) for n in range(16)]
        self._expected = [outputs_of(self._call(request)) for request in self._requests]
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _call(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        return self._stub.Predict(request, timeout=60)

    def _run(self, seed: int) -> None:
        number = seed
        while not self._stop.is_set():
            number += 1
            index = number % len(self._requests)
            try:
                got = outputs_of(self._call(self._requests[index]))
                same = all(np.allclose(got[k], v, rtol=1e-4, atol=1e-6) for k, v in self._expected[index].items())
                outcome = "ok" if same else "wrong"
            except grpc.RpcError as error:
                outcome = f"{error.code().name}: {error.details()}"
            with self._lock:
                self.outcomes[outcome] += 1

    def wait_for_more(self, count: int) -> None:
        seen = self.outcomes["ok"]
        wait_until(lambda: self.outcomes["ok"] >= seen + count, f"{count} more answers; so far {self.outcomes}")

    def finish(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()
        return self.outcomes


@pytest.mark.parametrize("role", ["worker", "broker", "pool"])
def test_a_killed_process_costs_no_client_anything(models: Path, tmp_path: Path, role: str) -> None:
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "2"]
    with Server(tmp_path, *arguments) as server:
        server.wait_available("mlp")
        load = Load(server)
        load.wait_for_more(50)
        for _ in range(3):
            victim = wait_until(lambda: server.members(role), f"a {role} to be there")[0]
            victim.kill()
            wait_until(functools.partial(_gone, victim), "the victim to be gone")
            load.wait_for_more(50)
        wait_until(lambda: len(server.members("worker")) == 2, "both workers to be back")
        load.wait_for_more(50)
        assert set(load.finish()) == {"ok"}, load.outcomes


def test_a_killed_frontend_breaks_its_own_connections_and_comes_back(models: Path, tmp_path: Path) -> None:
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "1"]
    with Server(tmp_path, *arguments) as server:
        server.wait_available("mlp")
        load = Load(server)
        load.wait_for_more(50)
        server.members("frontend")[0].kill()
        load.wait_for_more(50)
        outcomes = load.finish()
        assert outcomes["wrong"] == 0
        assert all(outcome.startswith(("ok", "UNAVAILABLE")) for outcome in outcomes), outcomes


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
