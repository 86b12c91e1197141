"""Environment and cores before TensorFlow is there, and what a worker settles before its first session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringserve.workers import device
from tests.no_gpu_driver import NoGpuDriver

ROOT = Path(__file__).parents[2]


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    ours = ("TF_", "OMP_", "OPENBLAS_", "MKL_", "CUDA_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SHOW = "; print(*(os.environ.get(k) for k in ('TF_CPP_MIN_LOG_LEVEL', 'OMP_NUM_THREADS', 'TF_ENABLE_ONEDNN_OPTS')))"


def test_defaults_and_threads() -> None:
    code = "import os; from ringserve.workers import device; device.prepare(threads=3)" + SHOW
    assert run(code) == "2 3 None"


def test_what_the_user_set_stays() -> None:
    code = "import os; from ringserve.workers import device; device.prepare(threads=1)" + SHOW
    assert run(code, TF_CPP_MIN_LOG_LEVEL="0", TF_ENABLE_ONEDNN_OPTS="0", OMP_NUM_THREADS="5") == "0 5 0"


def test_pin() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    code = (
        f"import os; from ringserve.workers import device; device.pin([{allowed[-1]}]); "
        "print(os.sched_getaffinity(0), device.pin([]), device.pin([100000]), os.sched_getaffinity(0))"
    )
    assert run(code) == f"{{{allowed[-1]}}} True False {{{allowed[-1]}}}"


def test_device_imports_no_tensorflow() -> None:
    code = (
        "import sys; from ringserve.workers import device; print('tensorflow' in sys.modules, 'numpy' in sys.modules)"
    )
    assert run(code) == "False False"


# ---------------------------------------------------------------------------------------------------------- in a worker

SETTLE = """
import os, sys
from ringserve.config.schema import Workers
from ringserve.workers import device
device.settle([], {arguments})
print(*(os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "TF_GPU_ALLOCATOR")))
print(tuple(device.settled()), "tensorflow" in sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ("", {}, ("-1 PCI_BUS_ID None", (-1, 0, 0.0))),
        ("-1", {"CUDA_VISIBLE_DEVICES": "2,3"}, ("-1 PCI_BUS_ID None", (-1, 0, 0.0))),
        ("0", {}, ("0 PCI_BUS_ID None", (0, 0, 0.0))),
        ("3, 2**30", {}, ("3 PCI_BUS_ID None", (3, 2**30, 0.0))),
        ("1", {"CUDA_VISIBLE_DEVICES": "2,3"}, ("3 PCI_BUS_ID None", (1, 0, 0.0))),
        ("1", {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, ("GPU-b PCI_BUS_ID None", (1, 0, 0.0))),
        ("0", {"CUDA_VISIBLE_DEVICES": "MIG-x"}, ("MIG-x PCI_BUS_ID None", (0, 0, 0.0))),
        ("0", {"CUDA_VISIBLE_DEVICES": ""}, ("-1 PCI_BUS_ID None", (0, 0, 0.0))),
        ("5", {"CUDA_VISIBLE_DEVICES": "0"}, ("-1 PCI_BUS_ID None", (5, 0, 0.0))),
        ("0", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, ("0 FASTEST_FIRST None", (0, 0, 0.0))),
        ("0, 0, Workers(gpu_allocator='cuda_malloc_async')", {}, ("0 PCI_BUS_ID cuda_malloc_async", (0, 0, 0.0))),
        (
            "0, 0, Workers(gpu_allocator='cuda_malloc_async')",
            {"TF_GPU_ALLOCATOR": "cuda_malloc"},
            ("0 PCI_BUS_ID cuda_malloc", (0, 0, 0.0)),
        ),
        ("0, 0, Workers(gpu_bytes_max=7)", {}, ("0 PCI_BUS_ID None", (0, 7, 0.0))),
        ("0, 9, Workers(gpu_bytes_max=7)", {}, ("0 PCI_BUS_ID None", (0, 9, 0.0))),
        ("0, 0, Workers(per_process_gpu_memory_fraction=0.5)", {}, ("0 PCI_BUS_ID None", (0, 0, 0.5))),
        ("0, 9, Workers(per_process_gpu_memory_fraction=0.5)", {}, ("0 PCI_BUS_ID None", (0, 9, 0.0))),
    ],
)
def test_what_a_worker_settles(
    arguments: str, environment: dict[str, str], expected: tuple[str, tuple[int, int, float]]
) -> None:
    assert run(SETTLE.format(arguments=arguments), **environment) == f"{expected[0]}\n{expected[1]} False"


@pytest.mark.parametrize(("before", "setting", "after"), [(0, 5, 5), (0, 0, 0), (7, 5, 7)])
def test_a_worker_is_as_nice_as_the_setting_says_or_as_its_server(before: int, setting: int, after: int) -> None:
    """Nicer than it was only: the other way needs a privilege."""
    code = (
        "import os; from ringserve.config.schema import Workers; from ringserve.workers import device; "
        f"os.nice({before}); device.settle([], workers=Workers(worker_niceness={setting})); print(os.nice(0))"
    )
    assert run(code) == str(after)


FORKS = """
import os, pathlib, sys
from ringserve.config.schema import Workers
from ringserve.workers import device
device.prepare(threads=1)
import ringserve.workers.opening, ringserve.workers.profile, ringserve.workers.serve
ringserve.workers.opening.tflite.available()
from ringserve.workers import session
import tensorflow as tf
assert not pathlib.Path(os.environ["NO_GPU_DRIVER_LOG"]).exists(), "the import opened the driver"
for gpu, workers in ((-1, Workers()), (0, Workers()), (1, Workers(gpu_allocator="cuda_malloc_async"))):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            device.settle([], gpu, 0, workers)
            session.start_threads(1)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(pid)
"""


def test_only_a_workers_first_session_starts_cuda_and_it_reads_what_the_worker_settled(tmp_path: Path) -> None:
    driver = NoGpuDriver(tmp_path)
    pids = run(FORKS, **driver.environment, CUDA_VISIBLE_DEVICES="5,GPU-b").split()
    seen = (("-1", "PCI_BUS_ID", "unset"), ("5", "PCI_BUS_ID", "unset"), ("GPU-b", "PCI_BUS_ID", "cuda_malloc_async"))
    assert driver.looks() == [
        (int(pid), what, environment)
        for pid, environment in zip(pids, seen, strict=True)
        for what in ("opened", "cuInit")
    ]


def test_memory_growth_and_limits_in_the_sessions_options(tf: Any) -> None:
    from ringserve.workers import session

    free = session.gpu_options(device.Settled(0))
    assert free.allow_growth
    assert not free.experimental.virtual_devices
    by_bytes = session.gpu_options(device.Settled(0, 3 * 2**29))
    assert by_bytes.allow_growth
    assert [list(one.memory_limit_mb) for one in by_bytes.experimental.virtual_devices] == [[1536.0]]
    assert by_bytes.per_process_gpu_memory_fraction == 0  # TensorFlow refuses both together
    by_part = session.gpu_options(device.Settled(0, 0, 0.25))
    assert by_part.per_process_gpu_memory_fraction == 0.25
    assert not by_part.experimental.virtual_devices
    assert session.gpu_options(device.Settled(-1, 2**30, 0.5)) == session.gpu_options(device.Settled())


WITHOUT = """
import logging, os
logging.basicConfig(format="%(message)s")
from ringserve.workers import device
device.prepare(threads=1)
device.settle([], {gpu}, 2**30)
from ringserve.workers.quiet import quiet
with quiet("info"):
    from ringserve.workers import session
    session.start_threads(1)
from ringserve.workers.servable import Servable
import numpy as np
print(Servable.load({path!r}, "mlp", 1).name)
"""


@pytest.mark.parametrize("gpu", [-1, 0])
def test_a_worker_whose_gpu_is_not_there_says_so_and_serves(model_path: Callable[[str], Path], gpu: int) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU")
    code = WITHOUT.format(gpu=gpu, path=str(model_path("mlp")))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mlp"
    assert ("GPU 0 is not to be had, so this worker runs on the CPU" in done.stderr) is (gpu == 0)


# ---------------------------------------------------------------------------------------------------------------- NUMA


def machine_of(folder: Path, *cpulists: str) -> str:
    for node, cpulist in enumerate(cpulists):
        (folder / f"devices/system/node/node{node}").mkdir(parents=True)
        (folder / f"devices/system/node/node{node}/cpulist").write_text(cpulist)
    return str(folder)


NUMA = """
from ringserve.workers import numa
print(numa.stay_on_node({cpus}, sys={sys!r}), numa.memory_policy())
"""


def memory_policy() -> int:
    return int(run("from ringserve.workers import numa; print(numa.memory_policy())"))


@pytest.mark.parametrize("cpus", [[], [0, 2], [7]])
def test_no_policy_without_one_node(tmp_path: Path, cpus: list[int]) -> None:
    sys_folder = machine_of(tmp_path, "0-1", "2-3")
    assert run(NUMA.format(cpus=cpus, sys=sys_folder)) == f"-1 {memory_policy()}"


def test_no_policy_on_a_machine_of_one_node(tmp_path: Path) -> None:
    assert run(NUMA.format(cpus=[0], sys=machine_of(tmp_path, "0-3"))).startswith("-1 ")


def test_the_memory_of_a_node_is_preferred(tmp_path: Path) -> None:
    """The node is this machine's 0, whatever else it has; a second worker's call finds a policy and leaves it."""
    if memory_policy() != 0 or run("from ringserve.workers import numa; print(numa.prefer_node(0))") != "True":
        pytest.skip("this system lets nobody set memory policies")
    code = NUMA.format(cpus=[0, 1], sys=machine_of(tmp_path, "0-1", "2-3"))
    assert run(code) == "0 1"
    assert run(code + code).splitlines() == ["0 1", "-1 1"]
    assert run("from ringserve.workers import numa; print(numa.prefer_node(1000), numa.memory_policy())") == "False 0"
