"""`ringserve convert`: what it writes answers as what it was made of, and what it cannot make it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ringserve.commands.saved_model import read_version
from tests import exporters

#: name -> words of the command; SRC stands for the sources' folder, OUT for one below which bases are made.
_COMMANDS = {
    "keras": "SRC/m.keras OUT/keras",
    "h5": "SRC/m.h5 OUT/h5",
    "names": "SRC/two.keras OUT/two --input text=word --input value=number --output halved=half --output place=index"
    " --version 7",
    "only": "SRC/two.keras OUT/two --output half",
    "frozen": "SRC/frozen.pb OUT/frozen",
    "free": "SRC/frozen.pb OUT/frozen --free_rows --input a=scope/x --output b=scope/y:0",
    "float32": "SRC/m.keras OUT/float32 --tflite float32",
    "float16": "SRC/m.keras OUT/float16 --tflite float16",
    "int8": "SRC/m.keras OUT/int8 --tflite int8",
    "calibrated": "SRC/m.keras OUT/calibrated --tflite int8 --calibrate SRC/rows.npz",
    "again": "OUT/float32/1 OUT/again --tflite float16",
    "loose": "SRC/loose.pb OUT/bad",
    "text": "SRC/text.pb OUT/bad",
    "no model": "SRC/bad.keras OUT/bad",
    "no output": "SRC/frozen.pb OUT/bad --output nothing",
    "no input": "SRC/m.keras OUT/bad --input nothing",
    "kind": "SRC/a.txt OUT/bad",
    "folder": "SRC OUT/bad",
    "no rows": "SRC/m.keras OUT/bad --free_rows",
    "no int8": "SRC/m.keras OUT/bad --calibrate SRC/rows.npz",
    "taken": "SRC/m.keras OUT/keras --version 1",
}


class Done(NamedTuple):
    """What became of all commands, and where they wrote. told: (exit status, JSON or the last line) by name."""

    sources: Path
    out: Path
    told: dict[str, tuple[int, Any]]

    def json(self, name: str) -> Any:
        status, told = self.told[name]
        assert status == 0, told
        return told


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("out")
    (sources / "text.pb").write_text("no graph")
    (sources / "bad.keras").write_text("no model")
    (sources / "a.txt").touch()
    commands = [
        [word.replace("SRC", str(sources)).replace("OUT", str(out)) for word in words.split()]
        for words in _COMMANDS.values()
    ]
    run = [sys.executable, "-m", "tests.commands.convert_kit", str(sources)]
    ran = subprocess.run(run, input=json.dumps(commands), capture_output=True, text=True, check=False, timeout=170)
    assert ran.returncode == 0, ran.stderr
    told = dict(zip(_COMMANDS, ((status, text) for status, text in json.loads(ran.stdout)), strict=True))
    return Done(sources, out, told)


def ask(path: str | Path, **inputs: Any) -> dict[str, Any]:
    tf = exporters.tensorflow()
    model = tf.saved_model.load(str(path))
    answers = model.signatures["serving_default"](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: np.asarray(value) for name, value in answers.items()}


@pytest.mark.parametrize("name", ["keras", "h5"])
def test_keras_files(done: Done, name: str) -> None:
    path = done.json(name)["path"]
    assert path == str(done.out / name / "1")
    assert read_version(Path(path)).findings == []
    np.testing.assert_allclose(
        ask(path, x=np.ones((2, 4), np.float32))["y"], np.load(done.sources / "expected.npy"), rtol=1e-5
    )
    assert [child.name for child in (done.out / name).iterdir()] == ["1"]


def test_several_inputs_and_outputs_get_other_names(done: Done) -> None:
    path = done.json("names")["path"]
    answers = ask(path, text=["c", "?"], value=np.array([[4.0], [5.0]], np.float32))
    assert answers["halved"].tolist() == [[2.0], [2.5]]
    assert answers["place"].tolist() == [3, 0]
    assert done.json("only")["path"] == str(done.out / "two" / "8")
    assert set(read_version(done.out / "two" / "8").signatures["serving_default"].outputs) == {"half"}


def test_a_frozen_graph(done: Done) -> None:
    path = done.json("frozen")["path"]
    signature = read_version(Path(path)).signatures["serving_default"]
    assert (signature.inputs["x"].shape, list(signature.outputs)) == ((1, 2), ["y"])
    assert ask(path, x=np.ones((1, 2), np.float32))["y"].tolist() == [[4.0, 6.0]]
    path = done.json("free")["path"]
    assert path == str(done.out / "frozen" / "2")
    assert read_version(Path(path)).signatures["serving_default"].rows_joinable
    assert ask(path, a=np.ones((2, 2), np.float32))["b"].tolist() == [[4.0, 6.0]] * 2


@pytest.mark.parametrize(("name", "off"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 0.2), ("calibrated", 0.2)])
def test_tflite_beside_it(done: Done, name: str, off: float) -> None:
    told = done.json(name)
    assert told["tflite_bytes"] == (done.out / name / "1" / "model.tflite").stat().st_size
    difference, largest = told["differences"]["y"]
    assert 0 <= difference <= off
    assert largest > 0


def test_a_saved_model_gets_a_tflite_model(done: Done) -> None:
    path = Path(done.json("again")["path"])
    assert (path / "model.tflite").read_bytes() != (done.out / "float32/1/model.tflite").read_bytes()
    assert ask(path, x=np.ones((2, 4), np.float32))["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("loose", 65, "it has variables (w), whose values are not in it"),
        ("text", 65, "is no frozen GraphDef"),
        ("no model", 65, "Keras cannot read"),
        ("no output", 65, "the graph has no output nothing"),
        ("no input", 65, "the model has no input nothing; it has x"),
        ("kind", 65, "is none of .pb, .keras, .h5"),
        ("folder", 65, "holds no saved_model.pb"),
        ("no rows", 2, "--free_rows is for a frozen graph"),
        ("no int8", 2, "--calibrate is for --tflite int8"),
        ("taken", 65, "has a version 1 already"),
    ],
)
def test_what_cannot_be_converted_says_why(done: Done, name: str, status: int, text: str) -> None:
    found, told = done.told[name]
    assert (found, text in str(told)) == (status, True), told


def test_and_leaves_nothing_behind(done: Done) -> None:
    assert list((done.out / "bad").iterdir()) == []
    assert [child.name for child in (done.out / "keras").iterdir()] == ["1"]
