"""The supervisor as a real process over stand-in children: readiness, restarts, the order of stopping, deaths."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringserve.config.schema import Server
from tests.cli.served import PATIENCE_S, Served, alive, wait_for_it
from tests.folders import removed

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(
        *,
        frontends: int = 2,
        port: int = 0,
        hang_ms_max: int = 0,
        start_ms_max: int = 0,
        watchdog_s: float = 0,
        stderr: int = -1,
        pool_stop_ms: int = 12_000,
        **behaviours: str,
    ) -> Served:
        server = Server(
            host="127.0.0.1", port=port, rest_api_port=-1, frontends=frontends, drain_ms_max=20_000,
            hang_ms_max=hang_ms_max, start_ms_max=start_ms_max,
        )  # fmt: skip
        by_name = {name.replace("_", "-"): what for name, what in behaviours.items()}
        served = Served(tmp_path, server, by_name, watchdog_s, stderr, pool_stop_ms)
        started.append(served)
        return served

    yield start
    for served in started:
        served.notices.close()
        if served.process.poll() is None:
            os.killpg(served.process.pid, signal.SIGKILL)
            served.process.wait()
        for pid in served.all_pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def _is_file(path: Path, about: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), about)
    except OSError:  # its process has closed it since it was listed
        return False


def _fds(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def test_starts_all_tells_ready_and_stops_frontends_then_pool_then_broker(serve: Serve) -> None:
    served = serve()
    served.wait_ready()
    assert {name for event, name in served.diary if event == "started"} == {
        "broker", "pool", "frontend-0", "frontend-1",
    }  # fmt: skip
    assert served.stop() == 0
    stops = [name for event, name in served.diary if event == "asked-to-stop"]
    assert set(stops[:2]) == {"frontend-0", "frontend-1"}
    assert stops[2:] == ["pool", "broker"]


def test_run_dir_is_private_and_children_inherit_its_lock(serve: Serve) -> None:
    served = serve(frontends=1)
    served.wait_ready()
    assert served.run_dir.stat().st_mode & 0o777 == 0o700
    (pool,) = served.pids("started", "pool")
    assert str(served.run_dir / "lock") in [os.readlink(path) for path in _fds(pool)]
    assert served.stop() == 0


def test_a_child_that_served_is_replaced_and_the_others_stay(serve: Serve) -> None:
    served = serve(frontends=1)
    served.wait_ready()
    (broker,) = served.pids("started", "broker")
    os.kill(broker, signal.SIGKILL)
    served.wait_for("started", "broker", 2)
    served.wait_log(f"broker (process {broker}) ended with signal SIGKILL")
    assert len(served.pids("started", "pool")) == 1
    assert served.stop() == 0


@pytest.mark.parametrize("name", ["broker", "frontend-0"])
def test_once_its_files_were_replaced_a_death_ends_all_in_order_with_status_1(serve: Serve, name: str) -> None:
    """Whatever took its place would be of the new release, and need not understand the others."""
    served = serve(frontends=2)
    served.wait_ready()
    served.installed_path.unlink()
    served.installed_path.write_text("the new release")
    assert served.process.poll() is None
    os.kill(served.pids("started", name)[0], signal.SIGKILL)
    assert served.end() == 1
    assert len(served.pids("started", name)) == 1
    assert f"{name} ended, and ringserve was installed anew" in served.log
    assert served.diary.count(("stopped", "frontend-1")) == 1


def test_a_child_that_keeps_dying_after_ready_is_started_again_each_time(serve: Serve) -> None:
    served = serve(frontends=1, frontend_0="die")
    served.wait_for("started", "frontend-0", 5)  # more often than start_failures_max
    assert served.stop() == 0


def test_a_child_that_fails_to_start_again_and_again_ends_the_server_with_its_status(serve: Serve) -> None:
    served = serve(frontends=1, pool="fail")
    assert served.end() == 3
    assert served.diary.count(("started", "pool")) == 3
    assert "pool failed to start 3 times in a row, at last with status 3" in served.log
    # The broker may still have been on its way.
    assert {name for what, name in served.diary if what == "started"} - {"pool"} == {
        name for what, name in served.diary if what == "stopped"
    }


def test_a_child_that_cannot_work_as_configured_is_not_started_again(serve: Serve) -> None:
    served = serve(frontends=1, pool="config")
    assert served.end() == 78
    assert served.diary.count(("started", "pool")) == 1


def test_a_child_that_says_why_the_server_must_end_ends_it_in_order(serve: Serve) -> None:
    served = serve(frontends=1, broker="fatal")
    assert served.end() == 69
    assert "failed: UNKNOWN: 1 servable(s) did not: {{}}\n" in served.log
    assert served.diary.count(("started", "broker")) == 1
    assert served.diary.count(("stopped", "pool")) == 1


def test_without_a_grpc_port_none_is_taken(serve: Serve) -> None:
    served = serve(frontends=1, port=-1)
    served.wait_ready()
    settings_path = next(path for path in _fds(served.process.pid) if "memfd:ringserve-settings" in os.readlink(path))
    assert json.loads(settings_path.read_text())["server"]["port"] == -1
    assert "gRPC port none" in served.log
    assert served.stop() == 0


def test_a_run_directory_that_was_removed_is_made_anew(serve: Serve) -> None:
    served = serve(frontends=1)
    served.wait_ready()
    wait_for_it(lambda: removed(served.run_dir), lambda: "files are made anew faster than they are removed")
    os.kill(served.pids("started", "broker")[0], signal.SIGKILL)
    served.wait_for("started", "broker", 2)
    wait_for_it(lambda: served.log.count("broker is ready") == 2, lambda: f"it does not get ready\n{served.log}")
    assert served.run_dir.stat().st_mode & 0o777 == 0o700
    assert len(served.pids("started", "pool")) == 1
    (_, broker) = served.pids("started", "broker")
    lock = (served.run_dir / "lock").stat()
    assert any(_is_file(path, lock) for path in _fds(broker)), "which is a new one"
    assert served.stop() == 0


def test_no_child_is_started_from_a_directory_that_others_may_write_to_and_what_runs_goes_on(serve: Serve) -> None:
    served = serve(frontends=1, hang_ms_max=2000)
    served.wait_ready()
    served.run_dir.chmod(0o777)
    os.kill(served.pids("started", "broker")[0], signal.SIGKILL)
    served.wait_log("no process is started with the run directory")
    time.sleep(3)  # in which a child that is not heard would be killed
    assert len(served.all_pids()) == 3
    assert "hangs" not in served.log
    served.run_dir.chmod(0o700)
    served.wait_for("started", "broker", 2)
    assert served.stop() == 0


def test_whoever_stops_reading_the_log_stops_nobody(serve: Serve) -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(into, b"." * 512)
    os.set_blocking(into, True)
    served = serve(frontends=1, stderr=into, frontend_0="die")
    served.wait_for("started", "frontend-0", 5)
    assert served.stop() == 0
    os.close(into)
    os.close(out)


def test_a_child_that_hangs_is_killed_and_replaced_and_the_others_stay(serve: Serve) -> None:
    served = serve(frontends=1, hang_ms_max=2000, pool="hang")
    served.wait_for("started", "pool", 2)
    (hung, _) = served.pids("started", "pool")
    assert f"pool (process {hung}) hangs: it has been silent for " in served.log
    served.wait_log(f"pool (process {hung}) ended with signal SIGKILL")
    assert served.diary.count(("started", "broker")) == served.diary.count(("started", "frontend-0")) == 1
    assert served.stop() == 0


def test_a_child_that_hangs_while_it_starts_is_killed_and_replaced(serve: Serve) -> None:
    served = serve(frontends=1, start_ms_max=3000, broker="hang-at-start")
    served.wait_ready()
    assert "hangs: it is not ready after " in served.log
    assert served.diary.count(("started", "broker")) == 2
    assert served.stop() == 0


def test_a_supervisor_that_was_stopped_itself_kills_nobody(serve: Serve) -> None:
    served = serve(frontends=1, hang_ms_max=2000)
    served.wait_ready()
    for pid in (served.process.pid, *served.all_pids()):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)  # the very thing that is tested: time passes for nobody
    os.kill(served.process.pid, signal.SIGCONT)
    time.sleep(0.3)  # it looks before the children can have spoken
    for pid in served.all_pids():
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)  # and once more
    assert "hangs" not in served.log
    assert len(served.all_pids()) == 3
    assert served.stop() == 0


def test_it_tells_systemd_that_it_lives_only_while_all_children_do(serve: Serve) -> None:
    served = serve(frontends=1, watchdog_s=1, pool="hang", hang_ms_max=3000)
    served.wait_ready()
    assert served.notices.recv(100) == b"WATCHDOG=1"
    served.wait_for("started", "pool", 2)
    assert served.notices.recv(100) == b"WATCHDOG=1"
    (hung, _) = served.pids("started", "pool")
    os.kill(hung := served.pids("started", "broker")[0], signal.SIGSTOP)
    served.wait_log(f"broker (process {hung}) hangs")
    served.wait_for("started", "broker", 2)
    assert served.notices.recv(100) == b"WATCHDOG=1"
    assert served.stop() == 0


def test_it_tells_systemd_nothing_while_the_canary_is_not_answered(serve: Serve) -> None:
    served = serve(frontends=1, watchdog_s=1, frontend_0="mute")
    served.wait_ready()
    served.wait_log("the canary was not answered")
    wait_for_it(lambda: served.log.count("the canary was not answered") > 4, lambda: f"too few calls\n{served.log}")
    served.notices.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            served.notices.recv(100)  # of the time before
    served.notices.settimeout(2)  # two such messages are due in that time
    with pytest.raises(TimeoutError):
        served.notices.recv(100)
    assert served.stop() == 0


def test_stop_waits_for_a_draining_frontend_before_it_touches_the_rest(serve: Serve) -> None:
    served = serve(frontend_0="drain")
    served.wait_ready()
    served.process.send_signal(signal.SIGTERM)
    served.wait_for("asked-to-stop", "frontend-0")
    served.wait_for("stopped", "frontend-1")
    assert ("asked-to-stop", "pool") not in served.diary
    (served.diary_path.parent / "go").touch()
    assert served.end() == 0
    assert served.diary.index(("stopped", "frontend-0")) < served.diary.index(("asked-to-stop", "pool"))


@pytest.mark.parametrize("name", ["pool", "broker"])
def test_who_dies_while_frontends_drain_is_replaced_since_they_need_it(serve: Serve, name: str) -> None:
    served = serve(frontend_0="drain")
    served.wait_ready()
    served.process.send_signal(signal.SIGTERM)
    served.wait_for("asked-to-stop", "frontend-0")
    served.wait_for("stopped", "frontend-1")
    os.kill(served.pids("started", name)[0], signal.SIGKILL)
    served.wait_for("started", name, 2)
    (served.diary_path.parent / "go").touch()
    assert served.end() == 0
    assert served.diary.index(("stopped", "frontend-0")) < served.diary.index(("asked-to-stop", "pool"))
    assert len(served.pids("started", "frontend-1")) == 1


def test_notices_are_read_during_a_drain_so_that_nobody_waits_to_be_heard(serve: Serve) -> None:
    served = serve(frontend_0="drain")
    served.wait_ready()
    served.process.send_signal(signal.SIGTERM)
    served.wait_for("asked-to-stop", "frontend-0")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE_S)
        sender.connect(str(served.run_dir / "notify.sock"))
        for _ in range(50):  # the kernel keeps ten
            sender.send(b"WATCHDOG=1")
    (served.diary_path.parent / "go").touch()
    assert served.end() == 0


def test_a_second_signal_ends_everything_at_once(serve: Serve) -> None:
    served = serve(frontend_0="deaf")
    served.wait_ready()
    served.process.send_signal(signal.SIGINT)
    served.wait_for("stopped", "frontend-1")
    served.process.send_signal(signal.SIGINT)
    assert served.end() == 0
    assert ("asked-to-stop", "pool") not in served.diary


def test_children_end_when_the_supervisor_is_killed(serve: Serve) -> None:
    served = serve()
    served.wait_ready()
    served.process.kill()
    served.process.wait()
    for name in ("broker", "pool", "frontend-0", "frontend-1"):
        served.wait_for("supervisor-gone", name)
    wait_for_it(lambda: not any(map(alive, served.all_pids())), lambda: "children live on")


def test_orphans_are_ended_with_the_server(serve: Serve) -> None:
    served = serve(frontends=1, pool="parent")
    served.wait_ready()
    (pool,) = served.pids("started", "pool")
    os.kill(pool, signal.SIGKILL)
    served.wait_for("started", "pool", 2)
    grandchildren = [
        int(event.partition("=")[2]) for event, _ in served.diary if event.startswith("grandchild=")
    ]
    assert alive(grandchildren[0])
    assert served.stop() == 0
    assert not any(map(alive, grandchildren))


def test_an_orphan_that_hangs_is_ended_while_the_server_goes_on(serve: Serve) -> None:
    served = serve(frontends=1, pool="parent", pool_stop_ms=1000)
    served.wait_ready()
    (pool,) = served.pids("started", "pool")
    (grandchild,) = [int(event.partition("=")[2]) for event, _ in served.diary if event.startswith("grandchild=")]
    os.kill(grandchild, signal.SIGSTOP)
    os.kill(pool, signal.SIGKILL)
    wait_for_it(lambda: not alive(grandchild), lambda: f"it lives on\n{served.log}")
    served.wait_log(f"orphan process {grandchild} hangs")
    served.wait_for("started", "pool", 2)
    (_, another) = [int(event.partition("=")[2]) for event, _ in served.diary if event.startswith("grandchild=")]
    assert alive(another), "whose parent lives"
    assert served.stop() == 0


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        # A server that would share its port with us is found all the same.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        served = Served(tmp_path, Server(host="127.0.0.1", port=port, frontends=1), {})
        served.notices.close()
        assert served.end() == 1
    assert f"--port: port {port} of 127.0.0.1 is in use by another program" in served.log
    assert "--port=NUMBER" in served.log
    assert served.diary == []
