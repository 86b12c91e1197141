"""The file of the access log: real files, a full disk, a reader that does not read.

Held here: mode 0600; moved and removed files are made anew; what cannot be written is lost, counted and said once, and
nobody waits; a line that was cut off does not swallow the next one; lines of two writers do not end up in each other.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringserve.frontend.log_file import LogFile
from tests.e2e.server import wait_until


@contextmanager
def opened(to: Path | str, waiting_bytes_max: int = 2**20) -> Iterator[LogFile]:
    file = LogFile(str(to), waiting_bytes_max)
    yield file
    file.close(20)


def settled(file: LogFile) -> None:
    wait_until(lambda: file.is_idle, "all lines to be written")


def test_lines_are_written_and_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    before = os.umask(0)
    try:
        with opened(path) as file:
            wait_until(path.exists, "the file, before there is a line")
            file.write([b"one\n", b"two\n"])
            settled(file)
            assert path.read_bytes() == b"one\ntwo\n"
            assert file.take_counts() == (2, 0)
            assert file.take_counts() == (0, 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_there_keeps_its_lines_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"before\n")
    path.chmod(0o640)
    with opened(path) as file:
        file.write([b"after\n"])
    assert path.read_bytes() == b"before\nafter\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "truncated"])
def test_rotation_needs_no_signal(tmp_path: Path, how: str) -> None:
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with opened(path) as file:
        file.write([b"one\n"])
        settled(file)
        if how == "removed":
            path.unlink()
        elif how == "truncated":  # logrotate's copytruncate
            path.write_bytes(b"")
        else:
            path.rename(old)
            if how == "replaced":  # logrotate's create
                path.touch(0o640)
        file.write([b"two\n"])
        settled(file)
        assert path.read_bytes() == b"two\n"
        assert how not in ("moved", "replaced") or old.read_bytes() == b"one\n"
        assert file.take_counts() == (2, 0)


def test_a_full_disk_loses_lines_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened("/dev/full") as file:
        for _ in range(3):
            file.write([b"one\n", b"two\n"])
        settled(file)
        assert file.take_counts() == (0, 6)
    (record,) = caplog.records
    assert "cannot write to /dev/full: No space left on device" in record.getMessage()


def test_it_goes_on_when_that_is_possible_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    with caplog.at_level(logging.INFO), opened(path) as file:
        file.write([b"one\n"])
        settled(file)
        path.unlink()
        file.write([b"two\n"])
        settled(file)
        assert path.read_bytes() == b"two\n"
        assert file.take_counts() == (1, 1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_place_that_cannot_be_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened(tmp_path / "no" / "access.log") as file:
        file.write([b"one\n"])
        settled(file)
        assert file.take_counts() == (0, 1)
    assert "No such file or directory" in caplog.text


def test_a_pipe_that_nobody_reads_makes_nobody_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with opened(path) as file:
        for _ in range(100):  # a pipe holds 64 KiB
            file.write([b"x" * 4095 + b"\n"])
        settled(file)
        written, lost = file.take_counts()
        assert written + lost == 100
        assert written >= 15
        assert lost >= 80
    os.close(reader)


def test_standard_error_that_nobody_reads_is_bounded() -> None:
    """A blocking pipe: the thread waits in it, and what does not fit into memory is lost."""
    code = (
        "import sys\n"
        "from ringserve.frontend.log_file import LogFile\n"
        "file = LogFile('stderr', 200_000)\n"
        "for _ in range(1000):\n"
        "    file.write([b'x' * 999 + b'\\n'])\n"
        "print(file.take_counts().lost, flush=True)\n"
        "file.close(0.01)\n"
    )
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, timeout=60, check=True)
        assert 700 < int(done.stdout) < 801
    finally:
        os.close(reading)
        os.close(writing)


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "access.log"
    room = [10]
    write = os.write

    def until_full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        size = write(fd, data[: room[0]])
        room[0] -= size
        return size

    monkeypatch.setattr(os, "write", until_full)
    with opened(path) as file:
        file.write([b"whole\n", b"cut off\n"])
        settled(file)
        room[0] = 1000
        file.write([b"next\n"])
    assert path.read_bytes() == b"whole\ncut \nnext\n"
    assert file.take_counts() == (1, 2)


def test_lines_of_two_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    def write(letter: bytes) -> None:
        with opened(path) as file:
            for _ in range(100):
                file.write([letter * 300 + b"\n"] * 20)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == [b"a" * 300] * 2000 + [b"b" * 300] * 2000
