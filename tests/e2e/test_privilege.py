"""Goal: no process of a server holds more than it needs. Method: a whole server of an ordinary user (another one, where
the tests run as root), with TLS, keys and a secret in its environment, while a client is connected; then a look at
everything that /proc shows of each process: user, capabilities, descriptors, memory maps, sockets, environment.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.ordinary_user import command_as, free_uid
from tests.e2e.server import Server, wait_until
from tests.frontend.http2.certificates import HAS_OPENSSL, certificates

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")

_IS_ROOT = os.geteuid() == 0
_SECRET = b"SOME_SECRET_ACCESS_KEY=nobody-may-know"
_TOKEN = "0" * 64
ROLES = ("supervisor", "broker", "pool", "frontend", "worker")
every_role = pytest.mark.parametrize("role", ROLES)


def _runs_as(uid: int) -> bool:
    return subprocess.run(command_as(uid, ["true"]), capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def uid() -> int:
    if not _IS_ROOT:
        return os.geteuid()
    found = free_uid()
    if not _runs_as(found):
        pytest.skip("no other user can run this interpreter")
    return found


@pytest.fixture(scope="module")
def home(uid: int, models: Path) -> Iterator[Path]:
    """A folder of that user: a model, a certificate, its key, the keys of clients."""
    with tempfile.TemporaryDirectory(prefix="rs-user-") as name:  # pytest's own folders are root's alone
        folder = Path(name)
        shutil.copytree(models / "mlp", folder / "mlp")
        server = certificates().server
        for file, text in (("tls.crt", server.cert), ("tls.key", server.key)):
            (folder / file).write_text(text)
        (folder / "keys.toml").write_text(f'[[keys]]\nname = "a"\nsha256 = "{_TOKEN}"\nscopes = ["admin"]\n')
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, -1)
        (folder / "tls.key").chmod(0o600)
        yield folder


@pytest.fixture(scope="module")
def server(uid: int, home: Path) -> Iterator[Server]:
    arguments = ["--model_name", "mlp", "--model_base_path", f"{home}/mlp", "--workers", "2"]
    arguments += ["--tls_cert_file", f"{home}/tls.crt", "--tls_key_file", f"{home}/tls.key", "--tls_ports", "grpc"]
    arguments += ["--keys_file", f"{home}/keys.toml", "--anonymous", "predict,status"]
    name, _, value = _SECRET.decode().partition("=")
    with Server(home, *arguments, environment={name: value}, uid=uid if _IS_ROOT else None) as server:
        server.wait_available("mlp")
        host, _, port = server.rest_url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /v1/models/mlp HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            yield server


def _status(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _descriptors(process: psutil.Process) -> list[tuple[str, bool]]:
    """What each descriptor is of, and whether it can write."""
    found = []
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        about = Path(f"/proc/{process.pid}/fdinfo/{fd}").read_text()
        flags = int(re.search(r"flags:\s*(\d+)", about)[1], 8)  # type: ignore[index]
        found.append((os.readlink(f"/proc/{process.pid}/fd/{fd}"), flags & os.O_ACCMODE != os.O_RDONLY))
    return found


def _maps(process: psutil.Process) -> list[tuple[str, str]]:
    """Protection and file of each mapping of a file."""
    rows = [line.split(None, 5) for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    return [(row[1], row[5]) for row in rows if len(row) > 5]


def _inet(process: psutil.Process) -> list[str]:
    return [connection.status for connection in process.net_connections("inet")]


def test_there_is_one_of_each(server: Server) -> None:
    """Else the other tests would hold for nobody."""
    wait_until(
        lambda: [len(server.members(role)) for role in ROLES] == [1, 1, 1, 1, 2] and len(server.family()) == 6,
        "one process of each role and two workers, and nobody else",
    )


@every_role
def test_everyone_is_the_ordinary_user_and_can_become_nobody_else(role: str, uid: int, server: Server) -> None:
    for process in server.members(role):
        status = _status(process)
        assert status["Uid"].split() == [str(uid)] * 4
        assert not _IS_ROOT or "0" not in (status["Gid"] + " " + status["Groups"]).split()
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
        assert status["NoNewPrivs"] == "1"
        assert status["Umask"] == "0077"


def test_whoever_holds_the_private_key_leaves_no_core_dump(server: Server) -> None:
    for process in server.members("frontend"):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)


@every_role
def test_secrets_in_the_environment_reach_only_those_that_load_models(role: str, server: Server) -> None:
    for process in server.members(role):
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert (_SECRET in environment) == (role in ("supervisor", "pool", "worker"))
        assert any(word.startswith(b"PATH=") for word in environment)


@every_role
def test_only_frontends_hold_sockets_of_clients(role: str, server: Server) -> None:
    """The supervisor keeps the ports by sockets that do not listen."""
    for process in server.members(role):
        states = _inet(process)
        if role == "frontend":
            assert states.count("LISTEN") == 2
            assert "ESTABLISHED" in states
        else:
            assert "LISTEN" not in states
            assert "ESTABLISHED" not in states
            assert not states or role == "supervisor"


@every_role
def test_nobody_keeps_files_of_models_keys_or_certificates_open(role: str, home: Path, server: Server) -> None:
    for process in server.members(role):
        names = [name for name, _ in _descriptors(process)] + [name for _, name in _maps(process)]
        assert not [name for name in names if name.startswith(str(home)) and name != str(home / "server.log")]


@every_role
def test_rings_are_written_by_their_owners_only(role: str, server: Server) -> None:
    for process in server.members(role):
        own = f"memfd:{process.name().removeprefix('rs-')}-"
        rings = re.compile(r"memfd:(frontend|worker)-\d+-(requests|results)")
        mapped = [(how, name) for how, name in _maps(process) if rings.search(name)]
        opened = [(name, writes) for name, writes in _descriptors(process) if rings.search(name)]
        assert not [name for how, name in mapped if "w" in how and own not in name]
        assert not [name for name, writes in opened if writes and own not in name]
        assert bool(mapped) == (role in ("frontend", "worker"))
        assert len({name for _, name in mapped}) == {"frontend": 3, "worker": 2}.get(role, 0)


@every_role
def test_weights_and_tensorflow_are_where_models_run_only(role: str, server: Server) -> None:
    runs_models = role in ("pool", "worker")
    for process in server.members(role):
        maps, opened = _maps(process), _descriptors(process)
        assert any("tensorflow" in name for _, name in maps) == runs_models
        assert any("memfd:weights" in name for name, _ in opened) == runs_models
        assert any("memfd:weights" in name for _, name in maps) == (role == "worker")
        assert not [name for how, name in maps if "memfd:weights" in name and "w" in how]
        assert not [name for name, writes in opened if "memfd:weights" in name and writes]


@every_role
def test_counts_of_keys_requests_are_the_frontends(role: str, server: Server) -> None:
    for process in server.members(role):
        held = any("memfd:ringserve-rates" in name for name, _ in _descriptors(process))
        assert held == (role in ("frontend", "supervisor"))


def test_files_are_the_users_alone(uid: int, server: Server) -> None:
    assert stat.S_IMODE(server.run_dir.stat().st_mode) == 0o700
    paths = list(server.run_dir.rglob("*"))
    assert {path.name for path in paths} >= {"settings.json", "broker.sock", "admin.sock", "notify.sock", "lock"}
    for path in paths:
        about = path.lstat()
        assert about.st_uid == uid
        assert not about.st_mode & 0o077, path


def test_the_settings_that_all_are_given_hold_no_secret(home: Path, server: Server) -> None:
    (process,) = server.members("supervisor")
    paths = Path(f"/proc/{process.pid}/fd").iterdir()
    text = next(path for path in paths if "memfd:ringserve-settings" in os.readlink(path)).read_text()
    assert text == (server.run_dir / "settings.json").read_text()
    assert str(home / "tls.key") in text
    assert _TOKEN not in text
    assert "PRIVATE KEY" not in text
    assert _SECRET.partition(b"=")[2].decode() not in text


@every_role
def test_command_lines_hold_no_secret(role: str, server: Server) -> None:
    for process in server.members(role):
        assert not re.search(rf"{_TOKEN}|PRIVATE KEY|nobody-may-know", " ".join(process.cmdline()))


def test_nothing_is_said_of_root(server: Server) -> None:
    assert "RUNNING AS ROOT" not in server.log
