"""The UNIX socket that frontends share: made with care, a stale one replaced, nobody else's taken, removed at last."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from ringserve.ports import PortError, unix_listener


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Relative, as users may give it; the whole name of pytest's folder would be too long."""
    monkeypatch.chdir(tmp_path)
    return "s.sock"


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(path)
    return client


def test_it_listens_and_is_removed(path: str) -> None:
    with unix_listener(path) as listener:
        with connect(path), listener.accept()[0]:
            pass
        assert not os.get_inheritable(listener.fileno())
    assert not os.path.exists(path)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_user_and_group_may_connect_whatever_the_umask(path: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        with unix_listener(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    finally:
        os.umask(before)


def test_it_is_removed_although_the_directory_was_left(path: str) -> None:
    whole = os.path.abspath(path)
    with unix_listener(path):
        os.chdir("/")
    assert not os.path.exists(whole)


def test_a_stale_one_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(path)
    with unix_listener(path), connect(path):
        pass


def test_one_that_is_listened_on_is_left(path: str) -> None:
    with unix_listener(path):
        with pytest.raises(PortError, match=r"--grpc_socket_path: .*s\.sock: another program listens on it"):
            unix_listener(path).__enter__()
        with connect(path):
            pass


def test_one_whose_backlog_is_full_is_left(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        with connect(path), pytest.raises(PortError, match="another program listens on it"):
            unix_listener(path).__enter__()
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_left(path: str, kind: str) -> None:
    Path(path).write_text("mine") if kind == "file" else Path(path).mkdir()
    with pytest.raises(PortError, match="it exists and is no socket"):
        unix_listener(path).__enter__()
    assert os.path.exists(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="No such file or directory; choose another with --grpc_socket_path=PATH"):
        unix_listener(str(tmp_path / "nowhere" / "s")).__enter__()


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="path too long"):
        unix_listener(str(tmp_path / ("s" * 200))).__enter__()


def test_what_took_its_place_is_left(path: str) -> None:
    with unix_listener(path):
        os.unlink(path)
        Path(path).write_text("somebody else's")
    assert Path(path).read_text() == "somebody else's"


def test_one_that_somebody_removed_is_no_error(path: str) -> None:
    with unix_listener(path):
        os.unlink(path)
