"""What the supervisor keeps in the run directory is there again after somebody has removed it."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.run_files import RunFiles

_HOUR_NS = 3600 * 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(0o700)
    return tmp_path / "run"


@pytest.fixture
def files(folder: Path) -> Iterator[RunFiles]:
    files = RunFiles(str(folder), "settings")
    yield files
    files.close()


def _accepts(files: RunFiles, folder: Path) -> bool:
    """Whether who comes to the broker's path is found in the listener."""
    files.listener.settimeout(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as worker:
        try:
            worker.connect(str(folder / "broker.sock"))
        except FileNotFoundError:
            return False
        files.listener.accept()[0].close()
    return True


def _hears(files: RunFiles, folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
        child.sendto(b"READY=1", str(folder / "notify.sock"))
    return [notice.ready for notice in files.notices.read()] == [True]


def test_nothing_is_touched_while_all_is_there(files: RunFiles, folder: Path) -> None:
    before = {path.name: path.lstat().st_ino for path in folder.iterdir()}
    files.mend(1, broker_lives=False)
    assert {path.name: path.lstat().st_ino for path in folder.iterdir()} == before
    assert _accepts(files, folder)
    assert _hears(files, folder)


def test_all_that_was_removed_comes_back(files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fd = files.listener.fileno()
    shutil.rmtree(folder)
    files.mend(1, broker_lives=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "settings.json").read_text() == "settings"
    assert stat.S_IMODE((folder / "settings.json").stat().st_mode) == 0o600
    assert files.listener.fileno() == fd, "children are started with this number"
    assert not os.get_inheritable(fd)
    assert _accepts(files, folder)
    assert _hears(files, folder)
    assert "was removed: making it anew" in caplog.text


def test_a_broker_that_lives_keeps_its_socket_until_it_is_started_again(
    files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broker.sock").unlink()
    for _ in range(2):
        files.mend(1, broker_lives=True)
    assert not _accepts(files, folder)
    assert caplog.text.count("no new worker reaches the broker") == 1
    files.mend(1, broker_lives=False)
    assert _accepts(files, folder)


def test_nothing_there_grows_old(files: RunFiles, folder: Path) -> None:
    """Cleaners of temporary folders go by that."""
    (folder / "lock").touch()
    files.mend(1, broker_lives=True)
    paths = [folder, *folder.iterdir()]
    for path in paths:
        os.utime(path, (1, 1))
    files.mend(_HOUR_NS, broker_lives=True)
    assert {path.lstat().st_mtime for path in paths} == {1}
    files.mend(_HOUR_NS + 1, broker_lives=True)
    assert all(path.lstat().st_mtime > 1 and path.lstat().st_atime > 1 for path in paths)


def test_what_cannot_be_made_anew_is_said_once(
    files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    folder.write_text("in its place")
    for _ in range(3):
        files.mend(1, broker_lives=False)
    assert caplog.text.count("cannot be made anew") == 1
    folder.unlink()
    files.mend(1, broker_lives=False)
    assert _hears(files, folder)
