"""CPU time and memory of processes, seen from /proc; and that nothing which a measurement started stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perf import processes, servers
from perf.processes import Usage

ROOT = Path(__file__).resolve().parents[2]

FAMILY = """
import ctypes, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def title(name): ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
title(b"rs-pool")
if os.fork() == 0:
    os.setpgid(0, 0)
    title(b"rs-worker-0")
    block = bytearray(b"x" * (32 << 20))
    while time.process_time() < 0.2: pass
    if os.fork() == 0:
        title(b"rs-worker-1")
        time.sleep(600)
    title(b"rs-worker-0")
    print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> servers.Child:
    (tmp_path / "family.py").write_text(FAMILY)
    return servers.Child(["family"], piped=True, folder=tmp_path)


def test_a_session_is_seen_whole_and_stopped_whole(family: servers.Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_S_MAX", 0.2)  # its members ignore SIGTERM
    try:
        assert family.process.stdout is not None
        assert family.process.stdout.readline() == "ready\n"
        family.wait_until(lambda: len(processes.usages(family.session)) == 3, "three processes")
        usages = processes.usages(family.session)
        assert sorted(usage.role for usage in usages) == ["pool", "worker", "worker"]
        spent = processes.cpu_between([], usages)
        assert spent["worker"] >= 0.19
        memories = processes.memories(family.session)
        workers = [memory for memory in memories if memory.role == "worker"]
        # The 32 MiB were made before the fork: half of them is each worker's share, and none is private.
        assert all(16 <= memory.pss_mib < 32 for memory in workers)
        assert all(memory.private_mib < 16 for memory in workers)
    finally:
        family.stop()
    assert processes.usages(family.session) == []
    family.stop()  # twice does no harm


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "idle.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    code = (
        "import os, pathlib, signal\nfrom perf.servers import Child\n"
        f"child = Child(['idle'], piped=True, folder=pathlib.Path({str(tmp_path)!r}))\n"
        "child.process.stdout.readline()\nprint(child.session, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == -signal.SIGKILL, outcome.stderr
    limit_s = time.monotonic() + 20
    while processes.usages(int(outcome.stdout)):
        assert time.monotonic() < limit_s, "it outlived its parent"
        time.sleep(0.01)  # polling a condition of another process, bounded above


def test_a_child_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such model')")
    with servers.Child(["broken"], folder=tmp_path) as child, pytest.raises(servers.ServerError) as caught:
        child.wait_until(lambda: False, "what never comes")
    assert "broken ended with 1" in str(caught.value)
    assert "no such model" in str(caught.value)


def test_cpu_of_processes_that_come_and_go() -> None:
    before = [Usage(1, "worker", 10, 5.0), Usage(2, "broker", 11, 1.0)]
    after = [Usage(1, "worker", 99, 0.5), Usage(2, "broker", 11, 1.25), Usage(3, "worker", 98, 0.25)]
    # pid 1 is another process by now: its start time differs, so all of its time is new
    assert processes.cpu_between(before, after) == {"worker": 0.75, "broker": 0.25}


@pytest.mark.parametrize(
    ("comm", "role"),
    [("rs-worker-12", "worker"), ("rs-broker", "broker"), ("rs-frontend-0", "frontend"), ("bash", "bash")],
)
def test_roles(comm: str, role: str) -> None:
    assert processes.role_of(comm) == role


def test_own_usage_is_found() -> None:
    mine = next(usage for usage in processes.usages(os.getsid(0)) if usage.pid == os.getpid())
    memory = processes.memory(mine)
    assert memory is not None
    assert memory.pss_mib >= memory.private_mib > 1
    assert processes.memory(Usage(2**22 + 1, "gone", 0, 0.0)) is None


PARENT = """
import os, sys, time
if os.fork() == 0:
    while time.process_time() < 0.3: pass
    os._exit(0)
os.wait()
print("ready", flush=True)
sys.stdin.read()
"""


def test_cpu_time_of_ended_children_is_not_lost() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        alive = sum(usage.cpu_s for usage in processes.usages(process.pid))
        assert processes.family_cpu_s(process.pid) >= alive + 0.28
        process.communicate("")


def test_time_on_cores_is_told_by_role(family: servers.Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_S_MAX", 0.2)  # as above
    try:
        assert family.process.stdout is not None
        first = processes.thread_times(family.session)
        assert family.process.stdout.readline() == "ready\n"
        times = processes.thread_times(family.session)
        assert {role for role, _, _ in times} == {"pool", "worker"}
        spent = processes.core_time(dict.fromkeys(times, (0, 0)), times)
        assert spent["worker"].run_s >= 0.19
        assert spent["worker"].wait_s >= 0.0
        assert processes.core_time(first, times).keys() <= spent.keys()
        assert processes.core_time(times, times)["pool"] == processes.CoreTime()
    finally:
        family.stop()
