"""The frame of every process: log lines, stopping on signals and on the supervisor's death, sd_notify, the heap."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from ringserve.config import process

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def watch() -> Iterator[process.StopWatch]:
    watch = process.StopWatch()
    yield watch
    watch.close()


def test_nothing_is_wanted_at_first(watch: process.StopWatch) -> None:
    assert watch.wait(0) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_wakes_and_says_its_name(watch: process.StopWatch, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert watch.wait() == process.Stop(number.name, at_once=False)
    assert watch.wait() == process.Stop(number.name, at_once=False)


def test_the_supervisors_death_wakes_and_is_urgent() -> None:
    reading, writing = os.pipe()
    watch = process.StopWatch(reading)
    assert watch.wait(0) is None
    os.close(writing)
    assert watch.wait() == process.Stop("the supervisor is gone", at_once=True)
    watch.close()
    os.close(reading)


def test_a_death_during_an_orderly_stop_makes_it_urgent() -> None:
    reading, writing = os.pipe()
    watch = process.StopWatch(reading)
    watch.request("test")
    assert watch.wait() == process.Stop("test", at_once=False)
    os.close(writing)
    stop = watch.wait()
    assert stop is not None
    assert stop.at_once
    watch.close()
    os.close(reading)


def test_the_second_signal_calls() -> None:
    seen: list[int] = []
    second = process.StopWatch(on_second=seen.append)
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == []
    os.kill(os.getpid(), signal.SIGINT)
    assert seen == [signal.SIGINT]
    second.close()


def test_the_second_signal_ends_the_process_by_default() -> None:
    code = (
        "import os, signal, sys\n"
        "from ringserve.config.process import StopWatch\n"
        "watch = StopWatch()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(watch.wait().reason, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("SIGTERM\n", 128 + signal.SIGTERM)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_descriptor_wakes_an_event_loop(watch: process.StopWatch, loop_factory: object) -> None:
    async def until_stopped() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_reader(watch.fd, stopped.set)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await stopped.wait()
        asyncio.get_running_loop().remove_reader(watch.fd)

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        runner.run(until_stopped())
    assert watch.wanted() == process.Stop("SIGTERM", at_once=False)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    process.StopWatch().close()
    assert signal.getsignal(signal.SIGTERM) is before


# -------------------------------------------------------------------------------------------------------------- log


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_lines(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    process.set_up_log("broker", "info", "text")
    root_logger.info("%d workers", 3)
    root_logger.debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    when, rest = line.split(" ", 1)
    assert when.endswith("Z")
    assert rest == "info broker: 3 workers"


def test_json_lines(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    process.set_up_log("broker", "warning", "json")
    try:
        raise ValueError("broken\nline")
    except ValueError:
        root_logger.exception("oh")
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields["process"] == "broker"
    assert fields["level"] == "error"
    assert fields["text"] == "oh"
    assert fields["pid"] == os.getpid()
    assert "ValueError: broken" in fields["exception"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_in_a_line_is_obeyed_or_taken_for_a_line(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """Names of models may be anything."""
    process.set_up_log("broker", "info", log_format)
    name = "m\x1b[31m\r\n2026 info \x9b\x7f\u2028ä"
    root_logger.info("loaded %s", name)
    lines = capsys.readouterr().err.split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    if log_format == "json":
        assert [json.loads(line)["text"] for line in lines] == [f"loaded {name}"]
    else:
        assert [line.split(": ")[-1] for line in lines] == [
            "loaded m\\x1b[31m\\r", "  2026 info \\x9b\\x7f\\u2028ä"
        ]  # fmt: skip



@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_names_its_request(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    process.set_up_log("frontend-0", "info", log_format)
    root_logger.error("oh", extra=process.of_request("abc"))
    root_logger.error("no", extra=process.of_request(""))
    first, second = capsys.readouterr().err.splitlines()
    if log_format == "json":
        assert (json.loads(first)["request_id"], "request_id" in json.loads(second)) == ("abc", False)
    else:
        assert (first[25:], second[25:]) == ("error frontend-0: oh (request abc)", "error frontend-0: no")


def test_the_title_is_what_the_kernel_shows() -> None:
    code = (
        "from ringserve.config.process import set_title\nset_title('rs-frontend-1234567890')\n"
        "print(open('/proc/self/comm').read(), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "rs-frontend-123\n"


# ----------------------------------------------------------------------------------------------------------- sd_notify


def test_ready_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        process.tell_ready()
        process.tell_stopping()
        assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_notify_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ringserve-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        process.tell_ready()
        assert listener.recv(100) == b"READY=1"


def test_nobody_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    process.tell_ready()
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    process.tell_ready()
    assert "cannot notify" in caplog.text


def test_freeze_heap() -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # as Python begins with; another test may have left it higher
    try:
        process.freeze_heap()
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold()[0] > 700
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


# ---------------------------------------------------------------------------------------------------------- watchdog


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [("4000000", "", 2.0), ("4000000", "own", 2.0), ("4000000", "1", 0.0), ("", "", 0.0), ("0", "", 0.0), ("x", "", 0)],
)
def test_the_interval_is_half_of_what_is_allowed_to_this_process(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, interval_s: float
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert process.watchdog_interval_s() == interval_s


def test_a_heartbeat_speaks_when_it_is_time_and_never_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.setblocking(False)
        environment = process.watched_environment(str(tmp_path / "socket"), 2)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            monkeypatch.setenv(name, environment[name])
        heartbeat = process.Heartbeat()
        assert heartbeat.beat(10) == 10 + 1_000_000
        assert heartbeat.beat(11) == 10 + 1_000_000
        assert listener.recv(100) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            listener.recv(100)
        for turn in range(1, 5_000):  # more than any queue of a listener that does not read takes
            heartbeat.beat(10 + turn * 1_000_000)
        lost_ns = heartbeat.due_ns
        assert heartbeat.beat(lost_ns) == lost_ns + 100_000, "what was lost is said again soon"
        listener.recv(100)
        assert heartbeat.beat(lost_ns + 100_000) == lost_ns + 1_100_000


def test_without_a_listener_there_is_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert process.Heartbeat().beat(10) == 0


_LOG = """
import logging, os, sys
from ringserve.config import process
if sys.argv[1] == "journal":
    about = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}"
elif sys.argv[1] == "elsewhere":
    os.environ["JOURNAL_STREAM"] = "1:1"
process.set_up_log("test", "debug", sys.argv[2])
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logging, level)("one\\ntwo")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_for_the_journal_begin_with_their_priority(log_format: str) -> None:
    def lines(where: str) -> list[str]:
        command = [sys.executable, "-c", _LOG, where, log_format]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr.splitlines()

    found = lines("journal")
    each = 1 if log_format == "json" else 2
    assert [line[:3] for line in found] == [f"<{number}>" for number in (7, 6, 4, 3, 2) for _ in range(each)]
    if log_format == "json":
        assert [json.loads(line[3:])["text"] for line in found] == ["one\ntwo"] * 5
    else:  # the journal has the time itself, and the level is the priority
        assert [line[3:] for line in found] == ["test: one", "  two"] * 5
    for where in ("elsewhere", "terminal"):
        assert not any(line.startswith("<") for line in lines(where))


# ---------------------------------------------------------------------------------------------- when memory runs out


def test_who_offers_itself_to_the_oom_killer_is_larger_to_it() -> None:
    code = (
        "from pathlib import Path; from ringserve.config import process\n"
        "points = lambda: int(Path('/proc/self/oom_score_adj').read_text())\n"
        "found = [points()]\n"
        "for more in (3, 1000): process.end_sooner(more); found.append(points())\n"
        "print(*found)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    before, after, most = map(int, told.split())
    assert after == min(before + 3, 1000)
    assert most == 1000
