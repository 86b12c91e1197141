"""What operators changed, kept for the broker that follows: one file, for the same configuration and release."""

from __future__ import annotations

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
