"""Goal: whatever lies in a model's directory harms that model only: a status that says what is wrong, no process that
hangs or ends for it, and another model that serves all the while. Method: a server of an ordinary user, for whom files
can be unreadable, with one good model and one of each kind of bad ones.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.ordinary_user import free_uid
from tests.e2e.server import Server, wait_until
from tests.e2e.test_privilege import _IS_ROOT, _runs_as


def _good(version: Path, models: Path) -> None:
    shutil.copytree(models / "half" / "1", version)


def _link_loops(version: Path, models: Path) -> None:
    """Folders that lead back to each other, twice at every step; beside a model that is good."""
    _good(version, models)
    for name in ("a", "b"):
        (version / name).symlink_to(version)


def _self_link(version: Path, models: Path) -> None:
    version.symlink_to(version)


def _dangling(version: Path, models: Path) -> None:
    version.mkdir()
    (version / "saved_model.pb").symlink_to("nowhere")


def _outside(version: Path, models: Path) -> None:
    """A link out of the tree, as volumes and object stores' caches have them: it is followed."""
    elsewhere = version.parent.parent / "elsewhere"
    _good(elsewhere, models)
    version.symlink_to(elsewhere)


def _unreadable_file(version: Path, models: Path) -> None:
    _good(version, models)
    (version / "saved_model.pb").chmod(0o000)


def _unreadable_folder(version: Path, models: Path) -> None:
    _good(version, models)
    version.chmod(0o000)


def _empty(version: Path, models: Path) -> None:
    _good(version, models)
    (version / "saved_model.pb").write_bytes(b"")


def _sparse(version: Path, models: Path) -> None:
    _good(version, models)
    os.truncate(version / "saved_model.pb", 3 * 2**30)


def _garbage(version: Path, models: Path) -> None:
    _good(version, models)
    (version / "saved_model.pb").write_bytes(os.urandom(10_000))


def _pipe(version: Path, models: Path) -> None:
    version.mkdir()
    os.mkfifo(version / "saved_model.pb")


def _pipe_as_version(version: Path, models: Path) -> None:
    os.mkfifo(version)


def _socket(version: Path, models: Path) -> None:
    version.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        folder = os.open(version, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{folder}/saved_model.pb")  # the whole path is too long for a socket
        os.close(folder)


def _endless_device(version: Path, models: Path) -> None:
    version.mkdir()
    (version / "saved_model.pb").symlink_to("/dev/zero")


def _pipe_for_warm_up(version: Path, models: Path) -> None:
    _good(version, models)
    (version / "assets.extra").mkdir(exist_ok=True)
    os.mkfifo(version / "assets.extra" / "tf_serving_warmup_requests")


def _pipe_for_batching(version: Path, models: Path) -> None:
    _good(version, models)
    os.mkfifo(version / "batching_params.pbtxt")


def _names(version: Path, models: Path) -> None:
    """Names that are no text, and one that forges a line of the log."""
    _good(version, models)
    for name in (b"\xff\xfe.tmp", b"a\n2026-01-01T00:00:00.000Z info broker: forged"):
        Path(os.fsdecode(os.fsencode(version) + b"/" + name)).touch()


def _strange_versions(version: Path, models: Path) -> None:
    for name in ("99999999999999999999999", "-1", "1\n2", "1.5", "١"):
        _good(version.parent / name, models)


#: What is built, the state that its version comes to (None: it has no version), and words that its status has.
CASES: dict[str, tuple[Callable[[Path, Path], None], str | None, str]] = {
    "link_loops": (_link_loops, "AVAILABLE", ""),
    "self_link": (_self_link, "END", "saved_model"),
    "dangling": (_dangling, "END", "saved_model.pb"),
    "outside": (_outside, "AVAILABLE", ""),
    "unreadable_file": (_unreadable_file, "END", "Permission denied"),
    "unreadable_folder": (_unreadable_folder, "END", "Permission denied"),
    "empty": (_empty, "END", "empty"),
    "sparse": (_sparse, "END", "2 GiB"),
    "garbage": (_garbage, "END", "saved_model.pb"),
    "pipe": (_pipe, "END", "no file"),
    "pipe_as_version": (_pipe_as_version, "END", "saved_model"),
    "socket": (_socket, "END", "no file"),
    "endless_device": (_endless_device, "END", "no file"),
    "pipe_for_warm_up": (_pipe_for_warm_up, "END", "no file"),
    "pipe_for_batching": (_pipe_for_batching, "END", "batching_params.pbtxt"),
    "names": (_names, "AVAILABLE", ""),
    "strange_versions": (_strange_versions, None, ""),
}


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    uid = free_uid() if _IS_ROOT else os.geteuid()
    if _IS_ROOT and not _runs_as(uid):
        pytest.skip("no other user can run this interpreter")
    with tempfile.TemporaryDirectory(prefix="rs-hostile-") as name:
        folder = Path(name)
        _good(folder / "good" / "1", models)
        for case, (build, _, _) in CASES.items():
            (folder / case).mkdir()
            build(folder / case / "1", models)
        for inside, folders, files in os.walk(folder):
            for entry in (".", *folders, *files):
                os.lchown(os.path.join(inside, entry), uid, -1)
        entries = "".join(
            f'config {{ name: "{case}" base_path: "{folder / case}" model_platform: "tensorflow" }} '
            for case in ("good", *CASES)
        )
        (folder / "models.config").write_text(f"model_config_list {{ {entries}}}")
        arguments = ["--model_config_file", f"{folder}/models.config", "--workers", "1"]
        arguments += ["--incomplete_ms_max", "500", "--settle_ms", "0", "--max_num_load_retries", "0"]
        arguments += ["--enable_per_model_batching_parameters", "--file_system_poll_wait_seconds", "1"]
        with Server(folder, *arguments, uid=uid if _IS_ROOT else None) as server:
            server.wait_available("good")
            yield server


@pytest.mark.parametrize("case", CASES)
def test_it_harms_its_own_model_only(case: str, server: Server) -> None:
    broker = [process.pid for process in server.members("broker")]
    _, state, words = CASES[case]
    if state is None:
        wait_until(lambda: case in server.log, "a look at it")
        assert server.status(case) == []
    else:
        def there() -> bool:
            return any(version["state"] == state for version in server.status(case))

        wait_until(there, f"{case} to be {state}; it is {server.status(case)}")
        (version,) = server.status(case)
        assert version["version"] == "1"
        assert words in version["status"]["error_message"]
    status, body = server.post("/v1/models/good:predict", b'{"instances": [1.0]}')
    assert (status, json.loads(body)) == (200, {"predictions": [2.5]})
    assert [process.pid for process in server.members("broker")] == broker


def test_names_forge_no_lines_of_the_log(server: Server) -> None:
    wait_until(lambda: server.status("names"), "a look at it")
    assert not [line for line in server.log.splitlines() if line.startswith("2026-01-01T00:00:00.000Z info")]


def test_a_new_version_is_still_found(server: Server, models: Path) -> None:
    """The thread that looks at disks goes on."""
    good = Path(server.directory) / "good"
    _good(good / "new", models)
    (good / "new").rename(good / "2")
    wait_until(lambda: [v for v in server.status("good") if (v["version"], v["state"]) == ("2", "AVAILABLE")], "it")
