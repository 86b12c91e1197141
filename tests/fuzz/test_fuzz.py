"""Goal: nothing that a stranger may send raises anything but what is documented. Method: the corpus, then hypothesis
from scratch and by damage to good inputs, then, where it is installed, atheris for a bounded number of runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

#: Inputs that once reached something new, or failed: one folder per target.
CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).resolve().parents[2]
every_target = pytest.mark.parametrize("name", TARGETS)
#: Environment variable: how many inputs atheris tries for each target.
RUNS = os.environ.get("RINGSERVE_FUZZ_RUNS", "2000")


@every_target
def test_the_corpus(name: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    for data in (b"", *TARGETS[name].seeds, *inputs):
        TARGETS[name].run(data)


@every_target
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@every_target
@settings(max_examples=250, deadline=None)
@given(chance=st.data())
def test_damaged_inputs(name: str, chance: st.DataObject) -> None:
    """Good inputs with pieces changed, left out, repeated and put together."""
    seeds = st.sampled_from(TARGETS[name].seeds)
    data = chance.draw(seeds)
    for _ in range(chance.draw(st.integers(1, 4))):
        at = chance.draw(st.integers(0, len(data)))
        stop = chance.draw(st.integers(at, min(len(data), at + 8)))
        piece = chance.draw(st.one_of(st.binary(max_size=4), st.just(b"\xff" * 4), st.just(data[at:stop] * 3), seeds))
        data = data[:at] + piece + data[stop:]
    TARGETS[name].run(data)


@pytest.fixture(scope="module")
def guide() -> Iterator[subprocess.Popen[str]]:
    """The process that runs targets under atheris: to instrument all code takes longer than the runs do."""
    command = [sys.executable, "-m", "tests.fuzz.run"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@every_target
def test_guided(name: str, tmp_path: Path, guide: subprocess.Popen[str]) -> None:
    assert guide.stdin is not None
    assert guide.stdout is not None
    found, output = tmp_path / "found", tmp_path / "output"
    found.mkdir()
    for number, seed in enumerate(TARGETS[name].seeds):
        (found / f"seed-{number}").write_bytes(seed)
    if (CORPUS / name).is_dir():
        shutil.copytree(CORPUS / name, found, dirs_exist_ok=True)
    order = [str(output), name, str(found), f"-runs={RUNS}", "-seed=1", "-max_len=600"]
    order += [f"-artifact_prefix={tmp_path}/", "-timeout=30", "-rss_limit_mb=2048"]
    guide.stdin.write(json.dumps(order) + "\n")
    guide.stdin.flush()
    assert guide.stdout.readline() == "0\n", output.read_text(errors="replace")[-6_000:]
