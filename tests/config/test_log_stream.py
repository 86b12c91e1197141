"""Standard error whose reader stands still: nobody waits, what is lost is counted, and nothing is torn."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ringserve.config.log_stream import LogStream

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 30.0
_F_SETPIPE_SZ = 1031
_READ_BYTES = 2**20


def _note(lost_lines: int) -> str:
    return f"lost: {lost_lines}"


class Ends(NamedTuple):
    """What is written to, and what waits for something and reads it."""

    fd: int
    read: Callable[[], bytes]


def _pipe() -> Ends:
    out, into = os.pipe()
    fcntl.fcntl(into, _F_SETPIPE_SZ, 4096)
    return Ends(into, lambda: os.read(out, _READ_BYTES))


def _socket() -> Ends:
    ours, theirs = socket.socketpair()
    return Ends(ours.detach(), lambda: theirs.recv(_READ_BYTES))


def _terminal() -> Ends:
    outer, inner = os.openpty()
    tty.setraw(inner)
    return Ends(inner, lambda: os.read(outer, _READ_BYTES))


@pytest.fixture(params=[_pipe, _socket, _terminal])
def ends(request: pytest.FixtureRequest) -> Ends:
    made: Ends = request.param()
    return made


@pytest.fixture(params=["own", "another user's"])
def pipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ends:
    """The latter cannot be opened once more."""
    if request.param != "own":

        def refuse(path: str, flags: int) -> int:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr("ringserve.config.log_stream.os.open", refuse)
    return _pipe()


_LINE = "x" * 200
_LINES = 5_000


def _overfill(stream: LogStream) -> None:
    """Write more than any of them keeps."""
    for _ in range(_LINES):
        stream.write(_LINE + "\n")


def _lines(text: bytes) -> list[str]:
    """Its lines, as far as they have ended."""
    return text.decode().split("\n")[:-1]


def _read_all(stream: LogStream, ends: Ends, written: int) -> list[str]:
    """Read until each of the lines that were written has come, or is told of as lost."""
    found = b""
    while sum(int(line[6:]) if line.startswith("lost: ") else 1 for line in _lines(found)) < written:
        found += ends.read()
        stream.catch_up()
    assert found.endswith(b"\n")
    return _lines(found)


def test_lines_come_out_at_once_and_one_by_one(ends: Ends) -> None:
    stream = LogStream(ends.fd, _note)
    for text in ("one\n", "two\n"):
        stream.write(text)
        assert ends.read() == text.encode()


def test_what_nobody_reads_is_lost_and_counted(ends: Ends) -> None:
    stream = LogStream(ends.fd, _note)
    _overfill(stream)
    lines = _read_all(stream, ends, _LINES)
    told = {line for line in lines if line.startswith("lost: ")}
    assert told
    assert set(lines) - told == {_LINE}, "none is torn"
    stream.catch_up()
    stream.write("after\n")
    assert ends.read() == b"after\n"


def test_the_shared_descriptor_still_waits(ends: Ends) -> None:
    """Its flags are those of everybody who writes to it."""
    _overfill(LogStream(ends.fd, _note))
    assert os.get_blocking(ends.fd)


def test_a_loss_is_told_before_the_next_line(pipe: Ends) -> None:
    stream = LogStream(pipe.fd, _note)
    _overfill(stream)
    taken = _lines(pipe.read())
    stream.write("after\n")
    assert _lines(pipe.read()) == [f"lost: {_LINES - len(taken)}", "after"]


def test_a_line_that_was_begun_is_ended_first(pipe: Ends) -> None:
    stream = LogStream(pipe.fd, _note)
    stream.write("y" * 9000 + "\n")
    stream.write("lost by then\n")
    assert _read_all(stream, pipe, 2) == ["y" * 9000, "lost: 1"]


def test_a_fork_does_not_tell_what_its_parent_lost() -> None:
    pipe = _pipe()
    stream = LogStream(pipe.fd, _note)
    _overfill(stream)
    pipe.read()
    stream.begin_anew(_note)
    stream.write("child\n")
    assert pipe.read() == b"child\n"


def test_a_reader_that_has_gone_is_nobodys_failure() -> None:
    out, into = os.pipe()
    stream = LogStream(into, _note)
    os.close(out)
    stream.write("one\n")
    stream.close()
    os.close(into)


def test_a_pipe_without_a_reader_at_the_start_neither() -> None:
    out, into = os.pipe()
    os.close(out)
    LogStream(into, _note).write("one\n")
    os.close(into)


def test_a_file_takes_everything(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        stream = LogStream(file.fileno(), _note)
        for _ in range(1000):
            stream.write("x" * 999 + "\n")
    assert (tmp_path / "log").read_bytes() == (b"x" * 999 + b"\n") * 1000


def test_what_utf_8_has_no_bytes_for_is_written_all_the_same() -> None:
    pipe = _pipe()
    LogStream(pipe.fd, _note).write("\udc80\n")
    assert pipe.read() == b"\\udc80\n"


# ------------------------------------------------------------------------------------------------- whole processes

_LOGS = """
import logging, sys
from ringserve.config import process
process.set_up_log("test", "info", "text")
logging.info("first")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(1000):
    logging.info("x" * 200)
logging.info("%d", "no number")
print("ready", flush=True)
sys.stdin.readline()
logging.info("last")
raise ValueError("the end")
"""


@pytest.fixture
def logs() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _LOGS],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        yield started
        started.kill()


def _go_on(started: subprocess.Popen[str]) -> None:
    assert started.stdout is not None
    assert started.stdin is not None
    assert started.stdout.readline() == "ready\n"
    started.stdin.write("\n")
    started.stdin.flush()


def test_a_process_that_nobody_reads_ends_by_itself(logs: subprocess.Popen[str]) -> None:
    _go_on(logs)
    _go_on(logs)
    assert logs.wait(_PATIENCE_S) == 1


def test_its_last_words_come_out_once_somebody_reads(logs: subprocess.Popen[str]) -> None:
    assert logs.stderr is not None
    _go_on(logs)
    assert logs.stdout is not None
    assert logs.stdout.readline() == "ready\n"
    found: list[str] = []
    # It has written all that it could: whoever reads on from here makes room.
    pipe = logs.stderr.fileno()
    os.set_blocking(pipe, False)
    while True:
        try:
            found.append(os.read(pipe, _READ_BYTES).decode())
        except BlockingIOError:
            break
    os.set_blocking(pipe, True)
    reader = threading.Thread(target=lambda: found.append(logs.stderr.read() if logs.stderr else ""))
    reader.start()
    assert logs.stdin is not None
    logs.stdin.write("\n")
    logs.stdin.flush()
    reader.join()
    lines = "".join(found).splitlines()
    at = next(index for index, line in enumerate(lines) if "lines that are lost: " in line)
    assert lines[0].endswith("info test: first")
    assert all(line.endswith("x" * 200) for line in lines[1:at])
    assert " warning test: standard error takes lines again; lines that are lost: " in lines[at]
    assert 1000 > int(lines[at].rpartition(" ")[2]) > 1000 - at  # with those of a traceback
    assert lines[at + 1].endswith("info test: last")
    assert lines[at + 2] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: the end"


_WRITES = """
import logging, os, sys
from ringserve.config import log_stream, process
process.set_up_log("test", "info", "text")
log_stream.never_wait(1)
for fd in (1, 2):
    try:
        for _ in range(10_000):
            os.write(fd, b"x" * 500)
    except BlockingIOError:
        continue
    sys.exit(3)
"""


@pytest.mark.parametrize("make", [_pipe, _terminal])
def test_code_that_is_not_ours_does_not_wait_either(make: Callable[[], Ends]) -> None:
    """C++ code writes to the numbers. Whoever shares the pipe or terminal waits as ever."""
    ends = make()
    command = [sys.executable, "-c", _WRITES]
    assert subprocess.run(command, cwd=_ROOT, stdout=ends.fd, stderr=ends.fd, timeout=_PATIENCE_S).returncode == 0
    assert os.get_blocking(ends.fd)


def test_nor_long_for_the_journal() -> None:
    ours, theirs = socket.socketpair()
    about = os.fstat(ours.fileno())
    environment = {**os.environ, "JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
    command = [sys.executable, "-c", _WRITES.replace("(1, 2)", "(2,)")]
    done = subprocess.run(command, cwd=_ROOT, env=environment, stderr=ours.fileno(), timeout=_PATIENCE_S)
    assert done.returncode == 0
    theirs.close()
