"""Which processes of a server start CUDA: the workers alone, and those of CPUs without any GPU in sight."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.server import Server, wait_until
from tests.no_gpu_driver import NoGpuDriver


def test_workers_of_cpus_look_for_no_gpu_and_nobody_else_looks(models: Path, tmp_path: Path) -> None:
    driver = NoGpuDriver(tmp_path)
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "2"]
    with Server(tmp_path, *arguments, environment=driver.environment | {"CUDA_VISIBLE_DEVICES": "0,1"}) as server:
        server.wait_available("mlp")
        body = json.dumps({"instances": [[0.0] * 784]}).encode()
        assert server.post("/v1/models/mlp:predict", body)[0] == 200
        (pool,) = server.members("pool")
        # A worker's own children (TensorFlow asks around after a driver that fails) are called like it at first.
        workers = {process.pid for process in pool.children() if process.name().startswith("rs-worker")}
        assert len(workers) == 2
        # The model is available when the first of them has loaded it.
        wait_until(lambda: workers <= {look.pid for look in driver.looks()}, "both workers to have looked")
        looks = driver.looks()
        others = {process.pid for process in server.family()} - workers
    assert workers <= {look.pid for look in looks}
    assert not others & {look.pid for look in looks}
    assert {look.environment[0] for look in looks} == {"-1"}
