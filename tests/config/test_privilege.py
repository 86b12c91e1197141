"""What a process gives up when it begins, tried in processes of their own, as it cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringserve.config.privilege import environment

_ROOT = Path(__file__).resolve().parents[2]
#: Leaves root but keeps its rights, as a service with ambient capabilities has them, and begins.
_BEGIN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
if os.geteuid() == 0 and sys.argv[2] != "root":
    import ringserve.config.process
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setresuid(48611, 48611, 48611)
from ringserve.config import process
process.begin(sys.argv[1], "info", "text")
print(open("/proc/self/status").read())
print("core", __import__("resource").getrlimit(4))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process rights")


def begun(name: str, user: str = "ordinary") -> tuple[dict[str, str], str]:
    """What /proc says of a process that has begun under that name, and its log."""
    command = [sys.executable, "-c", _BEGIN, name, user]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=_ROOT)
    lines = (line.partition(":") for line in ended.stdout.splitlines())
    return {key: value.strip() for key, _, value in lines} | {"core": ended.stdout.splitlines()[-1]}, ended.stderr


@needs_root
@pytest.mark.parametrize("name", ["broker", "pool", "worker-1", "author-3"])
def test_who_opens_no_port_keeps_no_capabilities(name: str) -> None:
    status, _ = begun(name)
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == int(status["CapInh"], 16) == 0


@needs_root
@pytest.mark.parametrize("name", ["supervisor", "frontend-0"])
def test_who_opens_ports_keeps_what_it_was_given(name: str) -> None:
    status, _ = begun(name)
    assert int(status["CapPrm"], 16) & 1 << 10  # CAP_NET_BIND_SERVICE


@needs_root
def test_root_keeps_its_rights_and_is_warned_once() -> None:
    status, log = begun("broker", "root")
    assert int(status["CapEff"], 16)
    assert not log
    assert begun("supervisor", "root")[1].count("RUNNING AS ROOT") == 1


@pytest.mark.parametrize("name", ["supervisor", "broker", "pool", "frontend-0", "worker-0"])
def test_everyone_gives_up_new_rights_and_others_files(name: str) -> None:
    status, _ = begun(name)
    assert (status["NoNewPrivs"], status["Umask"]) == ("1", "0077")
    assert (status["core"] == "core (0, 0)") == name.startswith("frontend")


def test_an_environment_without_what_is_secret() -> None:
    secrets = ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "DB_PASSWORD",
               "github_token", "API_KEY", "TLS_PRIVATE_KEY", "MYAPIKEY"]  # fmt: skip
    others = ["PATH", "HOME", "LANG", "NOTIFY_SOCKET", "RINGSERVE_KEYS_FILE", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH"]
    environ = dict.fromkeys([*secrets, *others], "x")
    for name in ("broker", "frontend-0"):
        assert list(environment(name, environ)) == others
    for name in ("pool", "supervisor"):
        assert environment(name, environ) == environ
