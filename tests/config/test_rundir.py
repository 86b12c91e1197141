"""Run directories: private, locked while anybody uses them, swept when nobody does."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ringserve.config import rundir
from ringserve.config.rundir import RunDirError, make_run_dir, remove_run_dir


def test_private_directory_where_xdg_says(tmp_path: Path) -> None:
    made = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert Path(made.path).parent == tmp_path
    assert Path(made.path).stat().st_mode & 0o777 == 0o700
    remove_run_dir(made.path)
    os.close(made.lock_fd)
    assert list(tmp_path.iterdir()) == []


def test_two_private_directories_differ_and_leave_each_other_alone(tmp_path: Path) -> None:
    first = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    second = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert first.path != second.path
    assert Path(first.path).is_dir()
    for made in (first, second):
        os.close(made.lock_fd)


def test_what_dead_servers_left_is_swept(tmp_path: Path) -> None:
    dead = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    (Path(dead.path) / "settings.json").touch()
    os.close(dead.lock_fd)  # as the kernel does when the last process is gone
    (tmp_path / "ringserve-without-lock").mkdir()  # one that is just being made
    (tmp_path / "other").mkdir()
    made = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert {path.name for path in tmp_path.iterdir()} == {"other", "ringserve-without-lock", Path(made.path).name}
    os.close(made.lock_fd)


def test_the_lock_lasts_as_long_as_any_process_that_inherited_it(tmp_path: Path) -> None:
    made = make_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], pass_fds=(made.lock_fd,), stdin=subprocess.PIPE
    ) as child:
        os.close(made.lock_fd)
        assert rundir.sweep(str(tmp_path)) == []
        child.communicate(b"\n")
    assert rundir.sweep(str(tmp_path)) == [made.path]


def test_a_named_directory_is_emptied_of_our_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ringserve"
    first = make_run_dir(str(path))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path / "broker.sock"))
    (path / "settings.json").touch()
    os.close(first.lock_fd)
    second = make_run_dir(str(path))
    assert [entry.name for entry in path.iterdir()] == ["lock"]
    os.close(second.lock_fd)


def test_a_named_directory_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_LOCK_TRIES", 1)
    first = make_run_dir(str(tmp_path / "run"))
    with pytest.raises(RunDirError, match="in use by another server"):
        make_run_dir(str(tmp_path / "run"))
    os.close(first.lock_fd)


def test_a_directory_whose_last_process_removes_it_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    first = make_run_dir(str(path))

    def leave(_: float) -> None:
        remove_run_dir(first.path)
        os.close(first.lock_fd)

    monkeypatch.setattr(time, "sleep", leave)
    second = make_run_dir(str(path))
    assert os.path.samestat((path / "lock").stat(), os.fstat(second.lock_fd))
    os.close(second.lock_fd)


def test_a_lock_whose_file_was_removed_before_it_was_had_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    lock, times = fcntl.flock, iter(range(10))

    def late(fd: int, how: int) -> None:
        if not next(times):
            shutil.rmtree(path)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    made = make_run_dir(str(path))
    assert os.path.samestat((path / "lock").stat(), os.fstat(made.lock_fd))
    os.close(made.lock_fd)


def test_a_directory_is_given_up_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next has it, with files of the same names, as soon as the lock is gone."""
    path = tmp_path / "run"
    made = make_run_dir(str(path))
    (path / "settings.json").touch()
    left: list[Any] = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: left.append(os.listdir(folder)))
    remove_run_dir(made.path)
    assert left == [["lock"]]
    os.close(made.lock_fd)


#: Takes the directory and gives it up again and again. What is in it is its own all the while.
_TAKE_TURNS = """
import os, sys
from pathlib import Path
from ringserve.config import rundir
rundir._LOCK_TRY_S, rundir._LOCK_TRIES = 0.0002, 1_000_000
for _ in range(300):
    made = rundir.make_run_dir(sys.argv[1])
    mine = Path(made.path) / "settings.json"
    mine.write_text(str(os.getpid()))
    assert os.listdir(made.path).count("lock") == 1
    assert mine.read_text() == str(os.getpid())
    rundir.remove_run_dir(made.path)
    os.close(made.lock_fd)
"""


def test_servers_that_take_turns_with_a_directory_never_meet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TAKE_TURNS, str(tmp_path / "run")]
    servers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for server in servers:
        _, errors = server.communicate()
        assert server.returncode == 0, errors


def test_a_named_directory_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunDirError, match=r"foreign files \('thesis.tex'\)"):
        make_run_dir(str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="Not a directory"):
        make_run_dir(str(tmp_path / "file" / "run"))


def test_last_words_are_read_back_and_may_lie_in_a_directory_that_is_used_again(tmp_path: Path) -> None:
    first = make_run_dir(str(tmp_path / "run"))
    assert rundir.read_fatal(first.path) == ""
    rundir.write_fatal(first.path, "UNKNOWN: a long story")
    rundir.write_fatal(first.path, "UNKNOWN: nothing\n")
    assert rundir.read_fatal(first.path) == "UNKNOWN: nothing"
    os.close(first.lock_fd)
    second = make_run_dir(str(tmp_path / "run"))
    assert rundir.read_fatal(second.path) == ""
    os.close(second.lock_fd)
