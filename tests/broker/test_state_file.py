"""What operators changed, kept for the broker that follows: one file, for the same configuration and release."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ringserve.broker.state_file import State, StateFile
from ringserve.config.schema import Batching, Model, Settings


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path))
    settings = Settings(models=(Model("m", "/m"),))
    assert file.load(settings) is None
    model = Model("m", "/m", (1, 2), Batching(batch_rows_max=5), (("stable", 1),))
    for digest in ("one", "two"):
        file.save(settings, State((model, Model("n", "/n")), digest))
    assert file.load(settings) == State((model, Model("n", "/n")), "two")
    # The run directory may hold our own files only: its next owner refuses it otherwise.
    assert [path.name for path in tmp_path.iterdir()] == ["models.json"]


def test_another_configuration_is_not_overruled_by_the_state(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path))
    settings = Settings(models=(Model("m", "/m", "latest", Batching(), (("stable", 1),)),))
    file.save(settings, State((Model("added", "/a"),), ""))
    others = (
        (Model("m", "/elsewhere", "latest", Batching(), (("stable", 1),)),),
        (Model("m", "/m", (1,), Batching(), (("stable", 1),)),),
        (Model("m", "/m", "latest", Batching(batch_rows_max=5), (("stable", 1),)),),
        (Model("m", "/m"),),
        (),
    )
    assert [file.load(Settings(models=models)) for models in others] == [None] * len(others)
    assert file.load(settings) == State((Model("added", "/a"),), "")


def test_a_state_of_another_release_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(str(tmp_path))
    file.save(Settings(), State((Model("added", "/a"),), ""))
    path = tmp_path / "models.json"
    path.write_text(path.read_text().replace("batch_rows_max", "rows_of_tomorrow"))
    assert file.load(Settings()) is None
    assert "another release" in caplog.text


def test_a_file_that_was_removed_is_there_again_within_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second_ns = 1_000_000_000
    file, state = StateFile(str(tmp_path)), State((Model("added", "/a"),), "")
    assert file.keep(1) == 1 + second_ns
    assert list(tmp_path.iterdir()) == [], "nothing was saved yet"
    file.save(Settings(), state)
    (tmp_path / "models.json").unlink()
    assert file.keep(second_ns) == 1 + second_ns
    assert file.load(Settings()) is None
    assert file.keep(1 + second_ns) == 1 + 2 * second_ns
    assert file.load(Settings()) == state
    assert "was missing: written anew" in caplog.text


def test_it_waits_for_its_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    file, state = StateFile(str(folder)), State((Model("added", "/a"),), "")
    file.save(Settings(), state)
    shutil.rmtree(folder)
    now_ns = 1
    for _ in range(3):
        now_ns = file.keep(now_ns)
    assert caplog.text.count("cannot be written") == 1
    folder.mkdir(0o700)
    file.keep(now_ns)
    assert file.load(Settings()) == state


def test_nothing_is_read_or_written_where_others_write(tmp_path: Path) -> None:
    """What is there may be theirs, and what is to be written may be a link of theirs."""
    file = StateFile(str(tmp_path))
    file.save(Settings(), State((Model("added", "/a"),), ""))
    tmp_path.chmod(0o777)
    assert file.load(Settings()) is None
    with pytest.raises(PermissionError, match="others may write"):
        file.save(Settings(), State((), ""))
    tmp_path.chmod(0o700)
    assert file.load(Settings()) == State((Model("added", "/a"),), "")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(0o700)
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run" / "models.json.new.json").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        StateFile(str(tmp_path / "run")).save(Settings(), State((), ""))
    assert (tmp_path / "precious").read_text() == "kept"
