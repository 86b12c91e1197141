"""`ringserve doctor`: each check on made-up hosts, the reading of a made-up /proc, and the command on real folders."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ringserve.cli import main
from ringserve.commands import host as hosts
from ringserve.commands.doctor_checks import host_findings, may, permission_fix, store_findings
from ringserve.commands.findings import Finding, Level, as_json, lines, worst
from ringserve.commands.host import Host
from ringserve.config.schema import GIB, MIB, Server, Settings, Workers
from tests import exporters

GOOD = Host(
    kernel="6.1.0-13-amd64",
    cpu_flags=frozenset(("avx", "avx2", "fma", "avx512f")),
    cpus_usable=8,
    cpus_online=8,
    memory_total=64 * GIB,
    memory_available=60 * GIB,
    huge_pages="madvise",
    clock_synchronized=True,
    tensorflow_version="2.18.0",
)
SETTINGS = Settings(server=Server(frontends=2), workers=Workers(workers=8))


def findings(settings: Settings = SETTINGS, weights: int = 0, **facts: Any) -> list[Finding]:
    return [each for each in host_findings(replace(GOOD, **facts), settings, weights) if each.level > Level.NOTE]


def test_a_good_host_has_nothing_to_mend() -> None:
    assert findings() == []
    # Nor one of which little is known.
    unknown = [each for each in host_findings(Host(tensorflow_version="2"), replace(
        SETTINGS, workers=Workers(workers=1)), 0) if each.level > Level.NOTE]  # fmt: skip
    assert unknown == []


@pytest.mark.parametrize(
    ("facts", "level", "what"),
    [
        ({"cpu_flags": frozenset(("sse4_2",))}, Level.ERROR, "it has no AVX"),
        ({"cpu_flags": frozenset(("avx",))}, Level.WARNING, "it has no AVX2 or FMA"),
        ({"environment": {"TF_ENABLE_ONEDNN_OPTS": "0"}}, Level.WARNING, "TF_ENABLE_ONEDNN_OPTS=0 is set"),
        ({"cpu_quota": 2.0}, Level.WARNING, "8 threads of TensorFlow (8 workers × 1) for 2 CPUs"),
        ({"cpus_usable": 4}, Level.WARNING, "8 threads of TensorFlow (8 workers × 1) for 4 CPUs"),
        ({"cpu_quota": 7.5}, Level.WARNING, "the cgroup pays for 7.5 of 8 CPUs"),
        ({"governors": frozenset(("powersave",))}, Level.WARNING, "their governor is powersave"),
        ({"load_1min": 7.0}, Level.WARNING, "7.0 processes run or wait to, on 8 CPUs"),
        ({"steal_share": 0.25}, Level.WARNING, "the hypervisor gave 25% of this machine's CPU time to others"),
        ({"environment": {"OMP_NUM_THREADS": "8"}}, Level.WARNING, "OMP_NUM_THREADS=8 is above threads_per_worker (1)"),
        ({"environment": {"KMP_AFFINITY": "compact"}}, Level.WARNING, "KMP_AFFINITY is set"),
        ({"overcommit_memory": 2}, Level.WARNING, "vm.overcommit_memory is 2"),
        ({"address_space_max": GIB}, Level.WARNING, "ulimit -v is 1.0 GiB"),
        ({"memfd_error": "Operation not permitted"}, Level.ERROR, "memfd_create fails: Operation not permitted"),
        ({"swap_total": GIB, "swappiness": 60}, Level.WARNING, "1.0 GiB of swap, with vm.swappiness 60"),
        ({"files_hard": 1024}, Level.WARNING, "a process may open 1024 files; connections_max is 10000"),
        ({"files_hard": 100}, Level.ERROR, "a process may open 100 files; connections_max is 10000"),
        ({"pids_max": 50}, Level.ERROR, "the cgroup allows 50 tasks; the server needs about 178"),
        ({"kernel": "4.18.0-553.el8"}, Level.ERROR, "Linux 4.18.0-553.el8 is too old"),
        ({"has_proc": False}, Level.ERROR, "/proc is not mounted"),
        ({"somaxconn": 128}, Level.WARNING, "net.core.somaxconn is 128"),
        ({"clock_synchronized": False}, Level.WARNING, "nothing synchronizes it"),
        ({"clock_source": "hpet"}, Level.WARNING, "its source is hpet"),
        ({"nvidia_devices": 1}, Level.WARNING, "1 NVIDIA GPU, and no driver is loaded"),
        (
            {"nvidia_devices": 2, "nvidia_driver": "550.1", "tensorflow_has_cuda": False},
            Level.WARNING,
            "2 NVIDIA GPUs with driver 550.1, and no CUDA libraries",
        ),
        (
            {"nvidia_devices": 1, "nvidia_driver": "550.1", "nvidia_nodes_readable": False},
            Level.WARNING,
            "/dev/nvidia* cannot be opened",
        ),
        ({"tensorflow_version": ""}, Level.ERROR, "it is not installed for this Python"),
    ],
)
def test_each_of_them_is_found_alone(facts: dict[str, Any], level: Level, what: str) -> None:
    (finding,) = findings(**facts)
    assert (finding.level, finding.what) == (level, what)
    assert finding.why


def test_a_slow_python_is_good_to_know() -> None:
    plain = host_findings(replace(GOOD, python_is_plain=True), SETTINGS, 0)
    told = [each for each in plain if each.subject == "Python"]
    assert [(each.level, each.what) for each in told] == [
        (Level.NOTE, "it was compiled without --enable-optimizations")
    ]
    assert not any(each.subject == "Python" for each in host_findings(GOOD, SETTINGS, 0))


@pytest.mark.parametrize(
    ("prefix", "configured", "plain"),
    [
        ("/usr", "'--enable-shared' '--prefix=/usr' '--with-computed-gotos'", False),
        ("/usr/local", "'--enable-optimizations' '--with-lto' '--enable-shared'", False),
        ("/opt/python", "'--prefix=/opt/python' '--enable-shared'", True),
    ],
)
def test_how_python_was_compiled(prefix: str, configured: str, plain: bool) -> None:
    assert hosts.is_plain(prefix, configured) is plain


def test_no_avx_is_no_matter_on_other_machines() -> None:
    assert findings(machine="aarch64", cpu_flags=frozenset(("asimd",))) == []


def test_memory_is_judged_by_the_tighter_of_host_and_cgroup() -> None:
    own = 2 * 60 * MIB + 60 * MIB + 210 * MIB + 8 * 60 * MIB
    assert findings(weights=GIB) == []
    (finding,) = findings(weights=50 * GIB)
    assert (finding.level, "60.0 GiB is what the host has free" in finding.what) == (Level.WARNING, True)
    (finding,) = findings(weights=60 * GIB)
    assert finding.level is Level.ERROR
    (finding,) = findings(weights=GIB, cgroup_memory_max=2 * GIB, cgroup_memory_used=GIB)
    assert finding.level is Level.ERROR
    assert "1.0 GiB is what the cgroup's limit of 2.0 GiB leaves, below" in finding.what
    # Not a byte before it is needed: rings, a copy in each worker, two versions at once.
    needed = own + 10 * 256 * MIB
    assert findings(memory_available=needed) == []
    assert findings(memory_available=needed - 1)[0].level is Level.WARNING
    assert findings(memory_available=own - 1)[0].level is Level.ERROR


def test_ports_among_the_ephemeral_ones() -> None:
    settings = replace(SETTINGS, server=Server(frontends=2, port=40_000))
    (finding,) = findings(settings)
    assert finding.what == "port 40000 lies in the range of ephemeral ports (32768 to 60999)"
    assert finding.fix == "sysctl -w net.ipv4.ip_local_reserved_ports=40000"
    assert findings(settings, reserved_ports="1-5,39999-40001") == []


def test_unpinned_workers_on_several_nodes() -> None:
    settings = replace(SETTINGS, workers=Workers(workers=8, pin=False))
    assert [finding.subject for finding in findings(settings, numa_nodes=2)] == ["NUMA"]
    assert findings(numa_nodes=2) == []


def test_stores() -> None:
    assert store_findings("/m", "ext4", 500.0 * MIB, GIB) == []
    assert store_findings("/m", "nfs4", None, GIB)[0].what == "it is on a network file system (nfs4)"
    (slow,) = store_findings("/m", "ext4", 50.0 * MIB, 1000 * MIB)
    assert slow.why == "Loading 1000 MiB takes 20 s at that speed."


# -------------------------------------------------------------------------------------------------------- permissions


@pytest.mark.parametrize(
    ("mode", "uid", "gids", "wanted", "allowed"),
    [
        (0o100600, 10, {5}, 4, True),  # the owner
        (0o100060, 10, {20}, 4, False),  # the owner is not helped by the group's rights
        (0o100040, 11, {20}, 4, True),
        (0o100004, 11, {20}, 4, False),  # nor the group by the others'
        (0o100004, 11, {5}, 4, True),
        (0o040744, 11, {5}, 5, False),
        (0o040755, 11, {5}, 5, True),
        (0o100000, 0, {0}, 4, True),
        (0o040000, 0, {0}, 5, True),
    ],
)
def test_who_may(mode: int, uid: int, gids: set[int], wanted: int, allowed: bool) -> None:
    assert may(mode, 10, 20, uid, frozenset(gids), wanted) is allowed


def test_the_fix_gives_the_least_right() -> None:
    assert permission_fix("/m", 0o040700, 10, 20, 11, frozenset({20}), 5) == "chmod g+rx /m"
    assert permission_fix("/m/$(f)", 0o100600, 10, 20, 11, frozenset({5}), 4) == "chmod o+r '/m/$(f)'"
    assert permission_fix("/", 0o040600, 10, 20, 10, frozenset({5}), 1) == "chmod u+x /"


# ------------------------------------------------------------------------------------------------------------ reading


def test_looking_at_a_made_up_proc(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    500 kB\nSwapTotal:   7 kB\nHugePages_Total: 3\n",
        "proc/cpuinfo": "processor : 0\nmodel name : A CPU\nflags : sse avx\n\nprocessor : 1\nflags : sse avx\n",
        "proc/stat": "cpu  50 0 25 0 0 0 0 25 0 0\ncpu0 1 2 3\n",
        "proc/sys/vm/swappiness": "60\n",
        "proc/sys/net/core/somaxconn": "128\n",
        "proc/sys/net/ipv4/ip_local_port_range": "1000\t2000\n",
        "proc/self/cgroup": "0::/a.slice/b.service\n",
        "sys/fs/cgroup/a.slice/memory.max": "5000\n",
        "sys/fs/cgroup/a.slice/memory.current": "2000\n",
        "sys/fs/cgroup/a.slice/b.service/memory.max": "max\n",
        "sys/fs/cgroup/a.slice/b.service/pids.max": "77\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/devices/system/node/node0/x": "",
        "sys/devices/system/node/node1/x": "",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",  # its sound
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = hosts.look(str(tmp_path))
    assert (host.memory_total, host.memory_available, host.swap_total) == (1000 * 1024, 500 * 1024, 7 * 1024)
    assert (host.cpu_model, sorted(host.cpu_flags), host.steal_share) == ("A CPU", ["avx", "sse"], 0.25)
    assert (host.swappiness, host.somaxconn, host.ephemeral_ports) == (60, 128, (1000, 2000))
    assert (host.cgroup_memory_max, host.cgroup_memory_used, host.pids_max) == (5000, 2000, 77)
    assert (host.huge_pages, host.numa_nodes, host.clock_source, host.nvidia_devices) == ("madvise", 2, "hpet", 1)


def test_looking_at_nothing_and_at_this_host(tmp_path: Path) -> None:
    empty = hosts.look(str(tmp_path))
    assert (empty.memory_total, empty.numa_nodes, empty.cgroup_memory_max) == (-1, 1, None)
    assert not empty.has_proc
    real = hosts.look()
    assert real.has_proc
    assert real.memory_total > real.memory_available > 0
    assert real.cpu_flags
    assert real.tensorflow_version == exporters.tensorflow().__version__
    assert real.memfd_error == ""


def test_file_systems() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nhost:/x /mnt nfs4 rw 0 0\nt /mnt/a\\040b tmpfs rw 0 0\n"
    assert hosts.file_system("/etc", mounts) == "ext4"
    assert hosts.file_system("/mnt/models", mounts) == "nfs4"
    assert hosts.file_system("/mntx", mounts) == "ext4"
    assert hosts.file_system("/mnt/a b/c", mounts) == "tmpfs"


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporters.half(tmp_path_factory.mktemp("models") / "half" / "1").parent


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on a good host, whatever this one is."""
    monkeypatch.setattr(hosts, "look", lambda: replace(GOOD, cpus_usable=64, cpus_online=64))

    def run(*arguments: object) -> tuple[int, Any]:
        words = ["doctor", "--json", "--port=0", "--rest_api_port=-1", "--workers=1", *map(str, arguments)]
        result = CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if result.stdout.startswith("{") else result.output

    return run


def test_nothing_is_wrong(doctor: Any, half: Path) -> None:
    assert doctor("--model_base_path", half)[0] == 0


def test_wrong_settings_are_told_as_serve_does(doctor: Any) -> None:
    assert doctor()[0] == 78
    assert doctor("--model_base_path=/m", "--user", "nobody-of-this-name")[0] == 1


def test_models_that_are_not_there_or_not_whole(doctor: Any, half: Path, tmp_path: Path) -> None:
    status, told = doctor("--model_base_path", tmp_path / "gone")
    assert (status, told["status"]) == (2, "error")
    (finding,) = [each for each in told["findings"] if each["level"] == "error"]
    assert finding["fix"] == f"mkdir -p {tmp_path}/gone/1"
    status, told = doctor("--model_base_path", half, "--model_version_policy", "5,6")
    assert "none of the versions asked for" in told["findings"][0]["what"]


def test_a_port_that_is_taken(doctor: Any, half: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, told = doctor("--model_base_path", half, "--host", "127.0.0.1", "--rest_api_port", port)
    errors = [each for each in told["findings"] if each["level"] == "error"]
    assert status == 2
    assert errors[0]["what"] == f"rest_api_port {port} of 127.0.0.1 cannot be had: Address already in use"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root knows what others may")
def test_rights_of_the_service_s_user(doctor: Any, half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "1"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes((half / "1/saved_model.pb").read_bytes())
    (folder / "saved_model.pb").chmod(0o600)
    folder.chmod(0o700)
    status, told = doctor("--model_base_path", folder.parent, "--user", "nobody")
    # (That the folders above are pytest's own and private is found, too.)
    fixes = [each["fix"] for each in told["findings"] if str(folder) in each["fix"]]
    assert status == 2
    assert fixes == [f"chmod o+rx {folder}", f"chmod o+r {folder}/saved_model.pb"]


def test_findings_are_shown_the_worst_first() -> None:
    error = Finding(Level.ERROR, "c", "d", "why", "fix")
    found = [Finding(Level.NOTE, "a", "b"), error, Finding(Level.WARNING, "e", "f")]
    text = "\n".join(lines(found))
    assert text.index("error") < text.index("warning") < text.index("note")
    assert "→ fix" in text
    assert (worst(found), worst([])) == (Level.ERROR, Level.NOTE)
    assert as_json(found)[1] == {"level": "error", "subject": "c", "what": "d", "why": "why", "fix": "fix"}


def test_places_that_the_server_writes_to_are_looked_at(doctor: Any, half: Path) -> None:
    with tempfile.NamedTemporaryFile() as file:  # pytest's own folders have names too long for a run directory
        status, told = doctor("--model_base_path", half, "--run_dir", file.name)
    assert status == 2, told
    assert [each["subject"] for each in told["findings"] if each["level"] == "error"] == ["run_dir"]
