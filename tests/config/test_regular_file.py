"""Files that are read again while the server runs: whatever lies at their path, nobody waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ringserve.config.keys_file import KeysError, read_keys
from ringserve.config.model_config import ModelConfigError, read_model_config
from ringserve.config.regular_file import regular_only
from ringserve.config.tls import Source, read_source


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_directory(path: Path) -> None:
    path.mkdir()


KINDS = [
    (a_pipe, "not a regular file but a pipe"),
    (a_socket, "not a regular file but a socket"),
    (a_device, "not a regular file but a device"),
    (a_directory, "Is a directory"),
]


@pytest.mark.parametrize(("make", "text"), KINDS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None], text: str) -> None:
    path = tmp_path / "f"
    make(path)
    fds_before = os.listdir("/proc/self/fd")
    with pytest.raises(KeysError, match=f"/f: {text}"):
        read_keys(str(path))
    with pytest.raises(ModelConfigError, match=f"/f; {text}"):
        read_model_config(str(path))
    with pytest.raises(ModelConfigError, match=f"/f; {text}"):
        read_source(Source(ssl_config_file=str(path)))
    with pytest.raises(ModelConfigError, match=f"tls_key_file: .*/f: {text}"):
        read_source(Source("", str(path), str(path)))
    assert os.listdir("/proc/self/fd") == fds_before


def test_nothing_is_an_empty_file() -> None:
    assert read_keys("/dev/null") == ()


def test_files_are_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError), open(path, "rb", opener=regular_only):
        pass
    path.write_text("a\r\nb")
    (tmp_path / "link").symlink_to(path)
    with open(tmp_path / "link", encoding="ascii", opener=regular_only) as file:
        assert file.read() == "a\nb"
        assert not os.get_inheritable(file.fileno())
