"""The units under a real systemd, in a container: TEST_SYSTEMD_ROOT=DIR names its root (see host.py).

Held here, for the one service and for the parts: install, the sandbox that TensorFlow runs in, every process killed,
the watchdog when processes are stopped, a reload, an upgrade to another protocol without a failed call, keys as
credentials, the access log's folder, a stop that leaves nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.config.process import WORKER_POINTS
from tests.e2e.server import wait_until
from tests.frontend.http2.certificates import HAS_OPENSSL, certificates
from tests.systemd.caller import NO_WORKER
from tests.systemd.host import Host, missing

_ROOT = Path(os.environ.get("TEST_SYSTEMD_ROOT", "/nowhere"))
_WHY = "TEST_SYSTEMD_ROOT is not set (.ci/real does it)" if str(_ROOT) == "/nowhere" else missing(_ROOT)

pytestmark = [pytest.mark.skipif(bool(_WHY), reason=f"no real systemd here: {_WHY}"), pytest.mark.timeout(600)]

_WATCHDOG = "[Service]\nWatchdogSec=5\n"
_TLS = 'tls_cert_file = "/etc/ringserve/tls.crt"'
_KEYS = "[Service]\nLoadCredential=tls.key:/etc/ringserve/tls.key\nEnvironment=RINGSERVE_TLS_KEY_FILE=%d/tls.key\n"


class Calls:
    """`tests.systemd.caller` inside the host. outcomes: filled in at the end."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.outcomes: dict[str, int] = {}
        self.longest_s = 0.0

    def __enter__(self) -> Calls:
        words = ["env", "PYTHONPATH=/opt/src:/opt/site", "python3", "-m", "tests.systemd.caller", "half"]
        self._process = subprocess.Popen(
            self._host.words(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        assert any("calling" in line for line in self._process.stderr)
        time.sleep(1)  # some calls before whatever is tested
        return self

    def __exit__(self, *exception: object) -> None:
        time.sleep(1)  # and some after it
        told = json.loads(self._process.communicate(timeout=100)[0])
        self.outcomes, self.longest_s = told["outcomes"], told["longest_s"]
        sys.stderr.write(f"calls: {told}\n")

    @property
    def failed(self) -> dict[str, int]:
        return {what: count for what, count in self.outcomes.items() if not what.endswith(" ok")}

    @property
    def failed_otherwise(self) -> dict[str, int]:
        """Than for want of workers, for which calls wait half a minute: TensorFlow's import may take longer."""
        return {what: count for what, count in self.failed.items() if what != NO_WORKER}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    code = "import sys, pathlib; from tests import exporters; exporters.half(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder / "half" / "1")], check=True, timeout=170)
    subprocess.run(["chmod", "-R", "o+rX", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def one(models: Path) -> Iterator[Host]:
    """A host with the one service installed."""
    with Host(_ROOT, models) as host:
        host.run("ringserve", "systemd", "install", "--model", "half=/models/half")
        yield host


@pytest.fixture(scope="module")
def parts(models: Path) -> Iterator[Host]:
    """A host with the server in parts installed, with two frontends."""
    with Host(_ROOT, models) as host:
        host.put("/etc/ringserve/server.toml", _TOML)
        host.run("ringserve", "systemd", "install", "--split")
        yield host


_TOML = '[server]\nfrontends = 2\n[workers]\nworkers = 2\n[[models]]\nname = "half"\nbase_path = "/models/half"\n'


def ask(host: Host, model: str = "half") -> Any:
    """One call; it waits as long as nobody accepts."""
    url = f"http://127.0.0.1:8501/v1/models/{model}:predict"
    text = host.run("curl", "-sS", "-m", "100", "-d", '{"instances":[2.0,4.0]}', url, check=False)
    return json.loads(text).get("predictions") if text.startswith("{") else text


def pids(host: Host, title: str) -> list[str]:
    return host.run("pgrep", "-x", title, check=False).split()


def wait_serving(host: Host) -> None:
    wait_until(lambda: ask(host) == [3.0, 4.0], "answers")


def wait_new(host: Host, title: str, old: list[str]) -> None:
    wait_until(lambda: set(pids(host, title)) - set(old), f"another {title}", 120)
    wait_serving(host)


def sandbox(host: Host, title: str) -> tuple[str, ...]:
    """(user is root, capabilities, no new privileges, seccomp) of a process."""
    pid = pids(host, title)[0]
    lines = host.run("cat", f"/proc/{pid}/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    root = "root" if status["Uid"].split()[0] == "0" else "nobody special"
    return (root, *(status[name].strip() for name in ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp")))


_CONFINED = ("nobody special", "0" * 16, "0" * 16, "1", "2")


# -------------------------------------------------------------------------------------------------------- one service


def test_it_serves_and_is_confined(one: Host) -> None:
    wait_serving(one)
    for title in ("rs-supervisor", "rs-broker", "rs-pool", "rs-frontend-0", "rs-worker-0"):
        assert sandbox(one, title) == _CONFINED
    pid = pids(one, "rs-worker-0")[0]
    assert one.run("nsenter", "-m", "-t", pid, "sh", "-c", "touch /etc/x || echo refused", check=False) == "refused"


def test_a_worker_may_offer_itself_to_the_oom_killer(one: Host) -> None:
    wait_serving(one)
    pool, worker = (
        int(one.run("cat", f"/proc/{pids(one, title)[0]}/oom_score_adj")) for title in ("rs-pool", "rs-worker-0")
    )
    assert worker == min(pool + WORKER_POINTS, 1000)


def test_a_second_install_changes_nothing_and_an_edited_file_is_left(one: Host) -> None:
    before = pids(one, "rs-supervisor")
    told = one.run("ringserve", "systemd", "install", "--model", "half=/models/half")
    assert "write" not in told
    assert pids(one, "rs-supervisor") == before
    one.run("sh", "-c", "echo '# mine' >> /etc/systemd/system/ringserve.slice")
    told = one.run("sh", "-c", "ringserve systemd install --model half=/models/half 2>&1 || true")
    assert "ringserve.slice" in told
    assert "--force" in told
    assert "mine" in one.run("cat", "/etc/systemd/system/ringserve.slice")
    one.run("ringserve", "systemd", "install", "--model", "half=/models/half", "--force")
    wait_serving(one)


@pytest.mark.parametrize("title", ["rs-broker", "rs-pool", "rs-worker-0"])
def test_a_process_that_is_killed_costs_no_call(one: Host, title: str) -> None:
    wait_serving(one)
    with Calls(one) as calls:
        old = pids(one, title)
        one.run("kill", "-9", *old)
        if title != "rs-worker-0":
            wait_new(one, title, old)
        wait_serving(one)
    assert not (calls.failed_otherwise if title == "rs-pool" else calls.failed)


def test_who_connects_while_the_killed_server_comes_back_waits(one: Host) -> None:
    old, frontends = pids(one, "rs-supervisor"), pids(one, "rs-frontend-0")
    one.run("kill", "-9", *old)
    # Until it has noticed, a frontend of the killed server may accept, and end with the connection.
    wait_until(lambda: not set(pids(one, "rs-frontend-0")) & set(frontends), "its frontend to end")
    assert ask(one) == [3.0, 4.0]
    assert pids(one, "rs-supervisor") != old
    assert int(one.show("ringserve.service", "NRestarts")) >= 1


def test_a_reload_takes_over_the_models(one: Host) -> None:
    wait_until(lambda: one.show("ringserve.service", "ActiveState") == "active", "the service")
    before = pids(one, "rs-supervisor")
    one.put("/etc/ringserve/server.toml", _TOML + '[[models]]\nname = "more"\nbase_path = "/models/half"\n')
    one.run("systemctl", "reload", "ringserve.service")
    assert ask(one, "more") == [3.0, 4.0]
    assert pids(one, "rs-supervisor") == before
    one.put("/etc/ringserve/server.toml", _TOML + "[[models]]\nname = 5\n")
    assert "fail" in one.run("sh", "-c", "systemctl reload ringserve.service 2>&1 || echo failed")
    assert ask(one, "more") == [3.0, 4.0]
    one.put("/etc/ringserve/server.toml", _TOML)
    one.run("systemctl", "reload", "ringserve.service")


def test_an_upgrade_costs_no_call(one: Host) -> None:
    wait_serving(one)
    before = pids(one, "rs-supervisor")
    with Calls(one) as calls:
        one.install_later_release()
        one.run("ringserve", "systemd", "upgrade")
    assert not calls.failed
    assert calls.outcomes["gRPC ok"] > 10
    assert not set(pids(one, "rs-supervisor")) & set(before)
    assert one.run("systemctl", "is-active", "ringserve-standby.service", check=False) == "inactive"


def test_a_restart_refuses_nobody(one: Host) -> None:
    wait_serving(one)
    with Calls(one) as calls:
        one.run("systemctl", "restart", "ringserve.service")
        wait_serving(one)
    assert not {what for what in calls.failed if what.startswith("REST")}


def test_the_watchdog_ends_a_server_that_is_stuck(one: Host) -> None:
    one.put("/etc/systemd/system/ringserve.service.d/quick.conf", _WATCHDOG)
    one.run("systemctl", "daemon-reload")
    one.run("systemctl", "restart", "ringserve.service")
    wait_serving(one)
    old = pids(one, "rs-supervisor")
    one.run("kill", "-STOP", *old)
    wait_new(one, "rs-supervisor", old)
    assert "Watchdog timeout" in one.journal("ringserve.service")
    one.run("rm", "-r", "/etc/systemd/system/ringserve.service.d")
    one.run("systemctl", "daemon-reload")
    one.run("systemctl", "restart", "ringserve.service")


def test_a_stop_is_orderly_and_closes_the_ports(one: Host) -> None:
    wait_serving(one)
    one.run("systemctl", "stop", "ringserve*")
    assert one.show("ringserve.service", "Result") == "success"
    assert one.run("systemctl", "is-active", "ringserve-frontend.socket", check=False) == "inactive"
    assert "Failed to connect" in one.run("sh", "-c", "curl -sS http://127.0.0.1:8501/ 2>&1 || true")
    assert one.run("sh", "-c", "ls /run | grep ringserve || true") == ""
    one.run("systemctl", "start", "ringserve.service")
    wait_serving(one)


@pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")
def test_keys_that_only_root_can_read_are_credentials_and_the_access_log_has_a_folder(one: Host) -> None:
    one.put("/etc/ringserve/tls.crt", certificates().server.cert)
    one.put("/etc/ringserve/tls.key", certificates().server.key)
    one.run("chmod", "600", "/etc/ringserve/tls.key")
    before = one.run("cat", "/etc/ringserve/server.toml")
    access_log = '[access_log]\nto = "/var/log/ringserve/access.log"\n'
    one.put("/etc/ringserve/server.toml", f"{_TOML}{access_log}".replace("[server]", f"[server]\n{_TLS}"))
    # For the standby, too, or there could be no upgrade.
    for folder in ("ringserve.service.d", "ringserve-.service.d"):
        one.put(f"/etc/systemd/system/{folder}/keys.conf", _KEYS)
    one.run("ringserve", "systemd", "install")
    one.run("systemctl", "restart", "ringserve.service")
    url = "https://127.0.0.1:8501/v1/models/half:predict"

    def asked() -> bool:
        text = one.run("curl", "-sSk", "-m", "100", "-d", '{"instances":[2.0]}', url, check=False)
        return "predictions" in text

    wait_until(asked, "an answer over TLS")
    one.run("ringserve", "systemd", "upgrade")
    wait_until(asked, "an answer after an upgrade")
    assert "path=/v1/models/half:predict" in one.run("cat", "/var/log/ringserve/access.log")
    one.put("/etc/ringserve/server.toml", before + "\n")
    one.run("sh", "-c", "rm -r /etc/systemd/system/ringserve*.service.d")
    one.run("systemctl", "daemon-reload")
    one.run("systemctl", "restart", "ringserve.service")
    wait_serving(one)


def test_uninstall_leaves_the_configuration_only(one: Host) -> None:
    one.run("ringserve", "systemd", "uninstall")
    assert not pids(one, "rs-supervisor")
    left = one.run("sh", "-c", "find /etc -name '*ringserve*'")
    assert left == "/etc/ringserve"


# -------------------------------------------------------------------------------------------------------------- parts


def test_the_parts_serve_and_are_confined(parts: Host) -> None:
    wait_serving(parts)
    for title in ("rs-broker", "rs-pool", "rs-frontend-0", "rs-frontend-1", "rs-worker-0"):
        assert sandbox(parts, title) == _CONFINED
    assert parts.run("stat", "-c", "%a %U", "/run/ringserve") == "700 ringserve"


@pytest.mark.parametrize("title", ["rs-broker", "rs-pool", "rs-worker-0"])
def test_a_part_that_is_killed_costs_no_call(parts: Host, title: str) -> None:
    wait_serving(parts)
    with Calls(parts) as calls:
        old = pids(parts, title)
        parts.run("kill", "-9", *old)
        if title != "rs-worker-0":
            wait_new(parts, title, old)
        wait_serving(parts)
    assert not (calls.failed_otherwise if title == "rs-pool" else calls.failed)


def test_a_killed_frontend_costs_its_own_connections_only(parts: Host) -> None:
    wait_serving(parts)
    with Calls(parts) as calls:
        old = pids(parts, "rs-frontend-0")
        parts.run("kill", "-9", *old)
        wait_new(parts, "rs-frontend-0", old)
    assert sum(calls.failed.values()) <= 3, "those that it held"


def test_each_part_is_restarted_without_a_failed_call(parts: Host) -> None:
    wait_serving(parts)
    with Calls(parts) as calls:
        for name in ("frontend@0", "frontend@1", "broker", "workers"):
            parts.run("systemctl", "restart", f"ringserve-{name}.service")
    assert not calls.failed_otherwise


def test_the_watchdog_ends_a_broker_that_is_stuck(parts: Host) -> None:
    parts.put("/etc/systemd/system/ringserve-broker.service.d/quick.conf", _WATCHDOG)
    parts.run("systemctl", "daemon-reload")
    parts.run("systemctl", "restart", "ringserve-broker.service")
    wait_serving(parts)
    old = pids(parts, "rs-broker")
    parts.run("kill", "-STOP", *old)
    wait_new(parts, "rs-broker", old)
    assert "Watchdog timeout" in parts.journal("ringserve-broker.service")


def test_a_reload_of_the_broker_takes_over_the_models(parts: Host) -> None:
    before = pids(parts, "rs-broker")
    parts.put("/etc/ringserve/server.toml", _TOML + '[[models]]\nname = "more"\nbase_path = "/models/half"\n')
    parts.run("systemctl", "reload", "ringserve-broker.service")
    wait_until(lambda: ask(parts, "more") == [3.0, 4.0], "the model")
    assert pids(parts, "rs-broker") == before


def test_an_upgrade_of_all_parts_costs_no_call(parts: Host) -> None:
    wait_serving(parts)
    before = pids(parts, "rs-broker")
    with Calls(parts) as calls:
        parts.install_later_release()
        parts.run("ringserve", "systemd", "upgrade")
    assert not calls.failed
    assert not set(pids(parts, "rs-broker")) & set(before)


def test_a_stop_of_the_target_stops_all_parts(parts: Host) -> None:
    parts.run("systemctl", "stop", "ringserve.target")
    wait_until(lambda: not parts.run("pgrep", "rs-", check=False), "all of them to be gone")
    wait_until(lambda: parts.run("sh", "-c", "ls /run | grep ringserve || true") == "", "the run directory to be gone")
    assert "Failed to connect" in parts.run("sh", "-c", "curl -sS http://127.0.0.1:8501/ 2>&1 || true")
    parts.run("systemctl", "start", "ringserve.target")
    wait_serving(parts)


def test_one_form_takes_the_place_of_the_other(parts: Host) -> None:
    parts.run("ringserve", "systemd", "install", "--no-split")
    wait_serving(parts)
    assert pids(parts, "rs-supervisor")
    assert "ringserve-broker.service" not in parts.run("ls", "/etc/systemd/system").split()
