"""What children need to come up outlasts the run directory, which is made anew, and used only while it is ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.config.rundir import RunDir, make_run_dir, remove_run_dir
from ringserve.run_files import RunFiles

_HOUR_NS = 3600 * 1_000_000_000

_CHILD = """
import socket, sys
_, settings_path, broker_path, notify_path = sys.argv
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as worker:
    worker.connect(broker_path)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
    child.sendto(b"READY=1", notify_path)
print(open(settings_path).read(), end="")
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    made = make_run_dir(str(tmp_path / "run"))
    yield made
    os.close(made.lock_fd)


@pytest.fixture
def folder(run_dir: RunDir) -> Path:
    return Path(run_dir.path)


@pytest.fixture
def files(run_dir: RunDir) -> Iterator[RunFiles]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
        admin.bind(f"{run_dir.path}/admin.sock")
        admin.listen()
        files = RunFiles(run_dir, "settings", f"{run_dir.path}/admin.sock")
        yield files
        files.close()


def _reach(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def _serves_a_child(files: RunFiles) -> bool:
    """Whether a child finds its settings, the broker's socket and whoever waits for its word."""
    paths = (files.settings_path, files.broker_path, files.notify_path)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *paths], pass_fds=files.fds, stdout=subprocess.PIPE, text=True, check=True
    )
    files.listener.settimeout(0)
    files.listener.accept()[0].close()
    return done.stdout == "settings" and [notice.ready for notice in files.notices.read()] == [True]


def test_nothing_is_touched_while_all_is_there(files: RunFiles, folder: Path) -> None:
    before = {path.name: path.lstat().st_ino for path in folder.iterdir()}
    files.mend(1)
    assert {path.name: path.lstat().st_ino for path in folder.iterdir()} == before
    assert files.usable
    assert _serves_a_child(files)


def test_no_child_notices_that_the_directory_was_removed(
    files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    assert _serves_a_child(files)
    files.mend(1)
    assert _serves_a_child(files)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert files.usable
    assert "was removed: making it anew" in caplog.text


def test_nobody_can_change_the_settings(files: RunFiles) -> None:
    with pytest.raises(PermissionError):
        Path(files.settings_path).write_text("others")


def test_the_lock_is_made_anew(files: RunFiles, run_dir: RunDir, folder: Path) -> None:
    shutil.rmtree(folder)
    files.mend(1)
    assert not os.get_inheritable(run_dir.lock_fd)
    with (folder / "lock").open() as second, pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_that_another_server_took_meanwhile_stays_that_ones(
    files: RunFiles, run_dir: RunDir, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    take = f"from ringserve.config.rundir import make_run_dir; make_run_dir({str(folder)!r})"
    command = [sys.executable, "-c", f"{take}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        second.stdout.readline()
        for _ in range(2):
            files.mend(1)
        assert not files.usable
        assert caplog.text.count("another server uses it now") == 1
        remove_run_dir(run_dir.path)
        assert folder.exists()
        second.communicate(b"\n")
    files.mend(1)
    remove_run_dir(run_dir.path)
    assert not folder.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_no_child_starts_with_a_directory_that_others_write_to(
    mode: int, files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder.chmod(mode)
    for _ in range(3):
        files.mend(1)
    assert caplog.text.count("no process is started with the run directory") == 1
    assert not files.usable
    folder.chmod(0o700)
    files.mend(1)
    assert caplog.text.count("processes are started again") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_no_child_starts_with_a_directory_that_somebody_else_made_first(files: RunFiles, folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(0o700)
    os.chown(folder, 65534, 65534)
    files.mend(1)
    assert not files.usable
    assert list(folder.iterdir()) == []


def test_nor_with_a_link_to_a_file(files: RunFiles, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "nowhere")
    files.mend(1)
    assert not files.usable


def test_operators_find_their_socket_again(files: RunFiles, folder: Path) -> None:
    shutil.rmtree(folder)
    assert _reach(files.admin_path), "the canary's way"
    files.mend(1)
    assert _reach(folder / "admin.sock")


def test_the_link_to_it_is_no_foreign_file_when_it_was_left_behind(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(0o700)
    (tmp_path / "run" / "admin.sock").symlink_to("/proc/1/fd/1")
    made = make_run_dir(str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    os.close(made.lock_fd)


def test_nothing_there_grows_old(files: RunFiles, folder: Path) -> None:
    """Cleaners of temporary folders go by that."""
    files.mend(1)
    paths = [folder, *folder.iterdir()]
    for path in paths:
        os.utime(path, (1, 1))
    files.mend(_HOUR_NS)
    assert {path.lstat().st_mtime for path in paths} == {1}
    files.mend(_HOUR_NS + 1)
    assert all(path.lstat().st_mtime > 1 and path.lstat().st_atime > 1 for path in paths)


def test_what_cannot_be_made_anew_is_said_once(
    files: RunFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    folder.write_text("in its place")
    for _ in range(3):
        files.mend(1)
    assert caplog.text.count("no process is started") == 1
    folder.unlink()
    files.mend(1)
    assert files.usable
