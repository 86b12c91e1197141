"""Parts of the programs about reloads, memory and starts that need no server."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import psutil
import pytest

from perf import answers, processes, sampling, start
from perf.changes import Repeated, Versions
from perf.loadgen import Exchange
from perf.models import PerfModel
from ringserve.config import protos


def response(values: list[float], version: int = 1, name: str = "mlp") -> bytes:
    message = protos.PredictResponse()
    message.model_spec.name, message.model_spec.version.value = name, version
    tensor = message.outputs["scores"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add().size = len(values)
    tensor.float_val.extend(values)
    data: bytes = message.SerializeToString()
    return data


def test_answers_are_compared_by_meaning() -> None:
    packed = protos.PredictResponse.FromString(response([1.0, 2.0]))
    packed.outputs["scores"].ClearField("float_val")
    packed.outputs["scores"].tensor_content = b"\x00\x00\x80\x3f\x01\x00\x00\x40"
    assert answers.difference(response([1.0, 2.0]), packed.SerializeToString()) == ""
    assert "output scores is" in answers.difference(response([1.0, 2.0]), response([1.0, 2.01]))
    assert "another dtype or shape" in answers.difference(response([1.0]), response([1.0, 1.0]))
    assert "model_spec" in answers.difference(response([1.0]), response([1.0], version=2))


@pytest.mark.parametrize("version", [1, 2, 127, 128, 300, 2**40])
def test_an_answer_of_another_version(version: int) -> None:
    changed = protos.PredictResponse.FromString(answers.of_version(response([1.0, 2.0]), version))
    assert changed == protos.PredictResponse.FromString(response([1.0, 2.0], version))


def made(tmp_path: Path, name: str, value: float) -> PerfModel:
    version_path = tmp_path / name / "1"
    version_path.mkdir(parents=True)
    (version_path / "saved_model.pb").write_text(name)
    exchanges = (Exchange(b"ask", response([value])),)
    return PerfModel("mlp", version_path.parent, version_path, exchanges, exchanges)


def test_versions_appear_whole_and_answer_in_turn(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "base", (made(tmp_path, "odd", 1.0), made(tmp_path, "even", 2.0)))
    versions.appear()
    versions.appear()
    found = {path.name: (path / "saved_model.pb").read_text() for path in versions.base_path.iterdir()}
    assert found == {"1": "odd", "2": "even", "3": "odd"}
    (exchange,) = versions.exchanges(5)
    expected = [protos.PredictResponse.FromString(body) for body in (exchange.expected or b"", *exchange.others)]
    assert [message.model_spec.version.value for message in expected] == [3, 4, 5]
    assert [list(message.outputs["scores"].float_val) for message in expected] == [[1.0], [2.0], [1.0]]


def test_changes_are_repeated_and_an_error_is_not_lost() -> None:
    seen: list[int] = []
    third = Event()

    def change() -> None:
        seen.append(len(seen))
        if len(seen) == 3:
            third.set()

    with Repeated(change) as repeated:
        repeated.start()
        assert third.wait(10)
    after = len(seen)
    assert after >= 3

    def fail() -> None:
        raise ValueError("it cannot be changed")

    with pytest.raises(ValueError, match="it cannot be changed"), Repeated(fail) as repeated:
        repeated.start()
    assert len(seen) == after


def test_only_so_many_changes() -> None:
    seen: list[int] = []
    over = Event()

    def change() -> None:
        seen.append(1)
        if len(seen) == 2:
            over.set()

    with Repeated(change, count_max=2) as repeated:
        repeated.start()
        assert over.wait(10)
    assert len(seen) == 2


LOG = """  pool (TensorFlow)    1 ×   210 MiB =    210 MiB
2026-11-21T10:27:58.416Z info supervisor: started broker (process 6024)
2026-11-21T10:28:02.891Z info supervisor: pool is ready
2026-11-21T10:28:02.906Z info pool: forked worker 0 (process 6058)
2026-11-21T10:28:02.918Z info pool: forked worker 1 (process 6059)
"""


def test_steps_are_read_from_the_log() -> None:
    steps = start.steps_of(LOG, 1795256878.0)
    assert steps == {
        "supervisor runs": pytest.approx(0.416),
        "pool has TensorFlow": pytest.approx(4.891),
        "first worker forked": pytest.approx(4.906),
    }


HOLDER = """
import mmap, os, sys
size = 8 << 20
held = os.memfd_create("weights")
os.truncate(held, size)
if sys.argv[1] == "unmapped":
    os.write(held, bytes(size))
else:
    memory = mmap.mmap(held, size)
    memory[:] = b"x" * size
os.dup(held)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("how", "unmapped_mib"), [("unmapped", 8.0), ("mapped", 0.0)])
def test_shared_memory_is_counted_once_mapped_or_not(how: str, unmapped_mib: float) -> None:
    command = [sys.executable, "-c", HOLDER, how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        one = sampling.sample(process.pid)
        mapped_mib = sum(memory.shm_mib for memory in processes.memories(process.pid))
        shared = processes.shared_files(processes.usages(process.pid), mapped_mib)
        process.communicate("")
    assert shared.count == 1
    assert shared.allocated_mib == pytest.approx(8.0)
    assert one.unmapped_mib == pytest.approx(unmapped_mib)
    assert 8.0 <= one.made_mib <= one.total_mib
    assert one.processes_count == 1


def test_samples_over_time(tmp_path: Path) -> None:
    with sampling.Sampler(os.getsid(0), 0.01) as sampler:
        limit_s = time.monotonic() + 20
        while len(sampler.samples) < 3 and time.monotonic() < limit_s:
            time.sleep(0.01)  # polls, with a limit, another thread's progress
    samples = sampler.samples
    assert len(samples) >= 3
    assert all(earlier.at_s < later.at_s for earlier, later in itertools.pairwise(samples))
    assert sampler.between(samples[1].at_s, samples[2].at_s) == [samples[1]]
    sampling.write_tsv(tmp_path / "memory.tsv", samples, samples[0].at_s)
    lines = [line.split("\t") for line in (tmp_path / "memory.tsv").read_text().splitlines()]
    assert len(lines) == len(samples) + 1
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[1][0] == "0.00"


def test_the_machine_tells_its_memory() -> None:
    told = processes.machine_memory()
    assert told.available_mib == pytest.approx(psutil.virtual_memory().available / 2**20, rel=0.2)
    ours_mib = psutil.Process().memory_full_info().uss / 2**20
    assert told.group_mib == 0.0 or told.group_mib > ours_mib  # the group holds this process at least
