"""`ringserve convert`: what it writes answers as what it was made of, and what it cannot make it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.commands.saved_model import read_version
from tests import exporters


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    subprocess.run([sys.executable, "-m", "tests.commands.convert_kit", str(folder)], check=True, timeout=170)
    return folder


def convert(*arguments: object, status: int = 0) -> Any:
    """The command in a process of its own, as it sets TensorFlow up for itself. Returns its JSON, or its last line."""
    command = [sys.executable, "-m", "ringserve", "convert", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr.splitlines()[-1]


def ask(path: str | Path, **inputs: Any) -> dict[str, Any]:
    tf = exporters.tensorflow()
    model = tf.saved_model.load(str(path))
    answers = model.signatures["serving_default"](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: np.asarray(value) for name, value in answers.items()}


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_keras_files(sources: Path, tmp_path: Path, name: str) -> None:
    done = convert(sources / name, tmp_path / "m")
    assert done["path"] == str(tmp_path / "m" / "1")
    assert read_version(tmp_path / "m" / "1").findings == []
    answers = ask(done["path"], x=np.ones((2, 4), np.float32))
    np.testing.assert_allclose(answers["y"], np.load(sources / "expected.npy"), rtol=1e-5)
    assert [child.name for child in (tmp_path / "m").iterdir()] == ["1"]


def test_several_inputs_and_outputs_get_other_names(sources: Path, tmp_path: Path) -> None:
    names = ["--input", "text=word", "--input", "value=number", "--output", "halved=half", "--output", "place=index"]
    done = convert(sources / "two.keras", tmp_path, *names, "--version", 7)
    answers = ask(done["path"], text=["c", "?"], value=np.array([[4.0], [5.0]], np.float32))
    assert answers["halved"].tolist() == [[2.0], [2.5]]
    assert answers["place"].tolist() == [3, 0]
    only = convert(sources / "two.keras", tmp_path, "--output", "half")
    assert only["path"] == str(tmp_path / "8")
    assert set(read_version(tmp_path / "8").signatures["serving_default"].outputs) == {"half"}


def test_a_frozen_graph(sources: Path, tmp_path: Path) -> None:
    done = convert(sources / "frozen.pb", tmp_path)
    signature = read_version(Path(done["path"])).signatures["serving_default"]
    assert (signature.inputs["x"].shape, list(signature.outputs)) == ((1, 2), ["y"])
    assert ask(done["path"], x=np.ones((1, 2), np.float32))["y"].tolist() == [[4.0, 6.0]]
    done = convert(sources / "frozen.pb", tmp_path, "--free_rows", "--input", "a=scope/x", "--output", "b=scope/y:0")
    assert read_version(Path(done["path"])).signatures["serving_default"].rows_joinable
    assert ask(done["path"], a=np.ones((2, 2), np.float32))["b"].tolist() == [[4.0, 6.0]] * 2


@pytest.mark.parametrize(
    ("kind", "extra", "off"),
    [("float32", (), 1e-5), ("float16", (), 1e-2), ("int8", (), 0.2), ("int8", ("--calibrate", "rows.npz"), 0.2)],
)
def test_tflite_beside_it(sources: Path, tmp_path: Path, kind: str, extra: tuple[str, ...], off: float) -> None:
    options = [sources / word if word.endswith(".npz") else word for word in extra]
    done = convert(sources / "m.keras", tmp_path, "--tflite", kind, *options)
    assert done["tflite_bytes"] == (tmp_path / "1" / "model.tflite").stat().st_size
    difference, largest = done["differences"]["y"]
    assert 0 <= difference <= off
    assert largest > 0


def test_a_saved_model_gets_a_tflite_model(sources: Path, tmp_path: Path) -> None:
    convert(sources / "m.keras", tmp_path)
    done = convert(tmp_path / "1", tmp_path, "--tflite", "float16")
    assert done["path"] == str(tmp_path / "2")
    assert (tmp_path / "2" / "model.tflite").exists()
    assert not (tmp_path / "1" / "model.tflite").exists()
    assert ask(tmp_path / "2", x=np.ones((2, 4), np.float32))["y"].shape == (2, 3)


def test_what_cannot_be_converted_leaves_nothing_behind(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pb").write_text("no graph")
    (tmp_path / "bad.keras").write_text("no model")
    (tmp_path / "a.txt").touch()
    base = tmp_path / "base"
    for arguments, text in (
        ((sources / "loose.pb",), "it has variables (w), whose values are not in it"),
        ((tmp_path / "text.pb",), "is no frozen GraphDef"),
        ((tmp_path / "bad.keras",), "Keras cannot read"),
        ((sources / "frozen.pb", "--output", "nothing"), "the graph has no output nothing"),
        ((sources / "m.keras", "--input", "nothing"), "the model has no input nothing; it has x"),
    ):
        source, *rest = arguments
        assert text in convert(source, base, *rest, status=65)
        assert list(base.iterdir()) == []
    assert "none of .pb, .keras, .h5" in convert(tmp_path / "a.txt", base, status=65)
    shutil.copytree(sources, tmp_path / "folder")
    assert "holds no saved_model.pb" in convert(tmp_path / "folder", base, status=65)
    convert(sources / "m.keras", base, "--free_rows", status=2)
    convert(sources / "m.keras", base, "--calibrate", sources / "rows.npz", status=2)
    (base / "3").mkdir()
    assert "has a version 3 already" in convert(sources / "m.keras", base, "--version", "003", status=65)
