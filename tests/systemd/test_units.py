"""The unit files: systemd finds nothing to say against them, and each confines its process (exposure below 2.0).

Held here, too: what `ringserve systemd install` writes, for both forms, other ports and a user's own systemd; that it
runs twice without a change, leaves edited files, and takes the other form's files away.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringserve.cli import main
from ringserve.commands import units
from ringserve.config.schema import Server, Settings
from tests.frontend.http2.certificates import HAS_OPENSSL, certificates

_UNITS = Path(__file__).resolve().parents[2] / "systemd"
_FILES = sorted(path for path in _UNITS.iterdir() if path.suffix != ".sysusers")
_SERVICES = [path for path in _FILES if path.suffix == ".service"]
_KEY = re.compile(r"^(?!#)(\w+)=(.*)$", re.MULTILINE)

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt-get install systemd)"
)


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in _KEY.findall(text):
        found.setdefault(name, []).append(value)
    return found


@analyze
@pytest.mark.parametrize("form", ["one", "parts"])
def test_systemd_finds_nothing_to_say(tmp_path: Path, form: str) -> None:
    """On what it says of mistakes, some releases exit with 0."""
    where = units.places(user=False, root=Path("/"))
    texts = units.unit_files(where, Server(), split=form == "parts", user=False)
    paths = []
    for path, text in texts.items():
        if path.suffix != ".conf":
            paths.append(tmp_path / path.name)
            # Only the command must be there, and this one is everywhere.
            paths[-1].write_text(text.replace(units.command(), "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in (ran.stdout + ran.stderr).splitlines() if "ringserve" in line] == []


@analyze
@pytest.mark.parametrize("path", _SERVICES, ids=lambda path: path.name)
def test_each_service_is_confined(path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("path", _SERVICES, ids=lambda path: path.name)
def test_what_tensorflow_needs_is_not_taken_away(path: Path) -> None:
    found = keys(path.read_text())
    assert "MemoryDenyWriteExecute" not in found, "oneDNN and XLA make code while they run"
    assert "~@resources" not in " ".join(found["SystemCallFilter"]), "processes bind themselves to CPUs"
    assert "ProcSubset" not in found, "XNNPACK reads /proc/cpuinfo"


@pytest.mark.parametrize("path", _SERVICES, ids=lambda path: path.name)
def test_a_service_has_the_time_to_drain(path: Path) -> None:
    found = keys(path.read_text())
    drains = "serve" in found["ExecStart"][0].split() or "frontend" in found["ExecStart"][0].split()
    if drains:
        assert int(found["TimeoutStopSec"][0]) * 1000 >= Settings().server.drain_ms_max + 20_000


def test_the_sockets_are_named_as_the_processes_know_them() -> None:
    from ringserve.activation import NAMES

    named = {keys(path.read_text())["FileDescriptorName"][0] for path in _FILES if path.suffix == ".socket"}
    assert named == set(NAMES)


# ------------------------------------------------------------------------------------------------------------ install


def install(root: Path, *arguments: str) -> Result:
    """Into a folder; enabling is systemctl's, which is stood in for: what is under test are the files."""
    result = CliRunner().invoke(main, ["systemd", "install", "--root", str(root), "--no-start", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("systemctl", "systemd-sysusers"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/ran\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_install_writes_the_service_its_sockets_and_the_configuration(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert install(root, "--model", "digits=/models/digits", "--model", 'odd"=/a b').exit_code == 0
    found = files(root)
    assert sorted(found) == [
        "etc/ringserve/server.toml",
        "etc/systemd/system/ringserve-frontend-rest.socket",
        "etc/systemd/system/ringserve-frontend.socket",
        "etc/systemd/system/ringserve-standby.service",
        "etc/systemd/system/ringserve.service",
        "etc/systemd/system/ringserve.slice",
    ]
    from ringserve.config.load import load_settings

    settings = load_settings({}, {}, str(root / "etc/ringserve/server.toml"))
    models = [(model.name, model.base_path) for model in settings.models]
    assert models == [("digits", "/models/digits"), ('odd"', "/a b")]
    service = found["etc/systemd/system/ringserve.service"]
    assert f"ExecStart={units.command()} serve --config /etc/ringserve/server.toml\n" in service
    assert str(root) not in "".join(found.values())
    assert "Service=ringserve.service" in found["etc/systemd/system/ringserve-frontend.socket"]
    ran = (tmp_path / "ran").read_text()
    names = "ringserve-frontend.socket ringserve-frontend-rest.socket ringserve.service"
    assert ran == f"systemctl --root={root} enable {names}\n"


def test_install_twice_changes_nothing_and_an_edited_file_stops_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "--model", "m=/m")
    before = files(root)
    assert "write" not in install(root, "--model", "m=/m").output
    assert files(root) == before
    edited = root / "etc/systemd/system/ringserve.service"
    edited.write_text(edited.read_text().replace("RestartSec=1", "RestartSec=2"))
    result = install(root, "--model", "m=/m")
    assert result.exit_code == 1
    assert str(edited) in result.output
    assert "RestartSec=2" in edited.read_text()
    assert install(root, "--model", "m=/m", "--force").exit_code == 0
    assert files(root) == before


def test_a_configuration_that_is_there_stays_and_gives_the_ports(tmp_path: Path) -> None:
    root = tmp_path / "root"
    config = root / "etc/ringserve/server.toml"
    config.parent.mkdir(parents=True)
    model = '[[models]]\nname = "m"\nbase_path = "/m"\n'
    config.write_text(f'[server]\nhost = "::1"\nport = 9000\nrest_api_port = 0\n{model}')
    assert install(root).exit_code == 0
    found = files(root)
    assert "ListenStream=[::1]:9000" in found["etc/systemd/system/ringserve-frontend.socket"]
    assert "etc/systemd/system/ringserve-frontend-rest.socket" not in found
    service = keys(found["etc/systemd/system/ringserve.service"])
    assert service["Sockets"] == ["ringserve-frontend.socket"]
    assert config.read_text().startswith("[server]")
    assert install(root, "--model", "m=/m").exit_code == 1, "it is not ours to write over"


@pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")
@pytest.mark.parametrize("form", ["ringserve", "ringserve-"])
def test_what_drop_ins_set_counts(tmp_path: Path, form: str) -> None:
    """As a key that is a credential: what the file alone says would not do."""
    root = tmp_path / "root"
    split = ["--split"] if form == "ringserve-" else []
    config = root / "etc/ringserve/server.toml"
    config.parent.mkdir(parents=True)
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate.write_text(certificates().server.cert)
    key.write_text(certificates().server.key)
    config.write_text(f'[server]\ntls_cert_file = "{certificate}"\n[[models]]\nname = "m"\nbase_path = "/m"\n')
    assert install(root, *split).exit_code == 78
    drop_in = root / f"etc/systemd/system/{form}.service.d/keys.conf"
    drop_in.parent.mkdir(parents=True)
    environment = 'RINGSERVE_TLS_KEY_FILE=%d/tls.key "RINGSERVE_PORT=9000"'
    drop_in.write_text(f"[Service]\nLoadCredential=tls.key:{key}\nEnvironment={environment}\n")
    assert install(root, *split).exit_code == 0
    assert "ListenStream=0.0.0.0:9000" in files(root)["etc/systemd/system/ringserve-frontend.socket"]


@pytest.mark.parametrize("text", ["[server]\nport = 0\n", "[server]\nprot = 1\n"])
def test_a_configuration_that_cannot_work_ends_with_78(tmp_path: Path, text: str) -> None:
    config = tmp_path / "root/etc/ringserve/server.toml"
    config.parent.mkdir(parents=True)
    config.write_text(text)
    assert install(tmp_path / "root").exit_code == 78
    assert list(files(tmp_path / "root")) == ["etc/ringserve/server.toml"]


def test_without_a_model_and_a_configuration_there_is_nothing_to_install(tmp_path: Path) -> None:
    assert install(tmp_path / "root").exit_code == 2


def test_the_parts_take_the_place_of_the_one_service_and_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "--model", "m=/m")
    one = files(root)
    assert install(root, "--split").exit_code == 0
    names = {Path(path).name for path in files(root)}
    assert {"ringserve.target", "ringserve-broker.service", "ringserve-workers.service"} <= names
    assert "ringserve.service" not in names
    assert "ringserve.conf" in names
    assert "enable ringserve-frontend.socket ringserve-frontend-rest.socket ringserve-broker.service" in (
        tmp_path / "ran"
    ).read_text()
    parts = files(root)
    assert install(root).exit_code == 0
    assert files(root) == parts, "nobody has asked for another form"
    assert install(root, "--no-split").exit_code == 0
    assert files(root) == one


def test_a_dry_run_writes_nothing_and_says_all(tmp_path: Path) -> None:
    result = install(tmp_path / "root", "--model", "m=/m", "--dry-run")
    assert result.exit_code == 0
    assert "would write: " in result.output
    assert "ExecStart=" in result.output
    assert not (tmp_path / "root").exists()
    assert not (tmp_path / "ran").exists()


def test_a_users_own_systemd_gets_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/srv/me/.config")
    root = tmp_path / "root"
    assert install(root, "--user", "--model", "m=/m").exit_code == 0
    found = files(root)
    service = keys(found["srv/me/.config/systemd/user/ringserve.service"])
    assert service["ExecStart"] == [f"{units.command()} serve --config /srv/me/.config/ringserve/server.toml"]
    assert service["WantedBy"] == ["default.target"]
    assert not {"User", "DynamicUser", "PrivateTmp", "ProtectSystem", "CapabilityBoundingSet"} & set(service)
    assert service["NoNewPrivileges"] == ["yes"]
    assert install(root, "--user", "--split", "--model", "m=/m").exit_code == 2


def test_uninstall_takes_the_units_away_and_leaves_the_configuration(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "--model", "m=/m")
    result = CliRunner().invoke(main, ["systemd", "uninstall", "--root", str(root)])
    assert result.exit_code == 0
    assert list(files(root)) == ["etc/ringserve/server.toml"]
