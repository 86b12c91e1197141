"""What loads, how it is then run, and what an operator is told about what does not load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from tests import exporters

Load = Callable[..., Any]
PathOf = Callable[[str], Path]


def load_error(path: Path, **settings: Any) -> tuple[Code, str]:
    from ringserve.workers.servable import LoadError, Servable

    with pytest.raises(LoadError) as caught:
        Servable.load(path, "m", 1, **settings)
    return caught.value.code, caught.value.text


@pytest.fixture
def broken(model_path: PathOf, tmp_path: Path) -> Path:
    """A copy of the MLP to be damaged."""
    return Path(shutil.copytree(model_path("mlp"), tmp_path / "1"))


def test_no_saved_model(tf: Any, tmp_path: Path) -> None:
    code, text = load_error(tmp_path)
    assert code == Code.NOT_FOUND
    assert text.startswith("Specified file path does not appear to contain a SavedModel bundle (should have a file ")
    assert f"Specified file path: {tmp_path}\n" in text
    assert text.endswith("The directory holds nothing.")


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["7/saved_model.pb", "8/saved_model.pb"], "not a version directory but holds some (7, 8)"),
        (["export.meta", "checkpoint"], "pre-SavedModel export"),
        (["export-00000-of-00001"], "pre-SavedModel export"),
        (["saved_model.cpb"], "chunked SavedModel"),
        (["model.tflite"], "TFLite"),
        (["model.keras"], "Keras file"),
        (["weights.bin", "notes.txt"], "The directory holds notes.txt, weights.bin."),
    ],
)
def test_no_saved_model_but_something_else(tf: Any, tmp_path: Path, files: list[str], hint: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    code, text = load_error(tmp_path)
    assert (code, hint in text) == (Code.NOT_FOUND, True), text


def test_no_directory_and_no_directory_at_all(tf: Any, tmp_path: Path) -> None:
    assert "does not exist" in load_error(tmp_path / "3")[1]
    (tmp_path / "4").write_bytes(b"")
    assert "It is a file" in load_error(tmp_path / "4")[1]


@pytest.mark.parametrize("keep_bytes", [0, 1, 1000])
def test_truncated_saved_model(broken: Path, keep_bytes: int) -> None:
    file = broken / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    code, text = load_error(broken)
    assert code == Code.DATA_LOSS
    assert "truncated" in text


def test_tags_that_are_not_there(model_path: PathOf) -> None:
    code, text = load_error(model_path("mlp"), tags=("serve", "gpu"))
    assert code == Code.NOT_FOUND
    assert text.startswith("Could not find meta graph def matching supplied tags: { serve gpu }")
    assert "has { serve }" in text


def test_variables_missing(broken: Path) -> None:
    shutil.rmtree(broken / "variables")
    code, text = load_error(broken)
    assert code == Code.NOT_FOUND
    assert "variables/variables.index is missing" in text


def test_variable_data_missing(broken: Path) -> None:
    (broken / "variables" / "variables.data-00000-of-00001").unlink()
    code, text = load_error(broken)
    assert code == Code.NOT_FOUND
    assert "variables.data-00000-of-00001" in text


def test_variable_data_truncated(broken: Path) -> None:
    file = broken / "variables" / "variables.data-00000-of-00001"
    file.write_bytes(file.read_bytes()[:5000])
    code, text = load_error(broken)
    assert code in (Code.OUT_OF_RANGE, Code.DATA_LOSS)
    assert text.startswith("Cannot restore the variables from")


def test_asset_missing(model_path: PathOf, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model_path("table"), tmp_path / "1"))
    shutil.rmtree(path / "assets")
    code, text = load_error(path)
    assert code == Code.NOT_FOUND
    assert "init op" in text
    assert "assets/" in text


def test_unknown_op(model_path: PathOf, tf: Any, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(shutil.copytree(model_path("aliases"), tmp_path / "1"))
    saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved_model.meta_graphs[0].graph_def.node.add(name="new", op="OpOfTheFuture")
    (path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    code, text = load_error(path)
    assert code == Code.NOT_FOUND
    assert text.startswith("Op type not registered 'OpOfTheFuture'")


def test_text_format_loads_too(model_path: PathOf, tf: Any, tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    from ringserve.workers.servable import Servable

    path = Path(shutil.copytree(model_path("aliases"), tmp_path / "1"))
    binary = path / "saved_model.pb"
    text = text_format.MessageToString(saved_model_pb2.SavedModel.FromString(binary.read_bytes()))
    binary.unlink()
    (path / "saved_model.pbtxt").write_text(text)
    assert set(Servable.load(path, "m", 1).signatures) == {"serving_default", "twice"}
    (path / "saved_model.pbtxt").write_text(text[: len(text) // 2])
    assert load_error(path)[0] == Code.DATA_LOSS


@pytest.mark.parametrize(
    ("name", "single_threaded"),
    [("mlp", True), ("slow", True), ("table", True), ("strings", True), ("old_control_flow", False)],
)
def test_executor_is_chosen_at_load(served: Load, name: str, single_threaded: bool) -> None:
    from ringserve.workers import session

    assert served(name).executor == (session.SINGLE_THREADED if single_threaded else session.ORDINARY)


def test_executor_that_refuses_is_left_at_load(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of ops may be behind TensorFlow: then the executor itself says no, still at load."""
    from ringserve.workers import graph, session

    monkeypatch.setattr(graph, "_ORDINARY_EXECUTOR_OPS", frozenset[str]())
    assert load("old_control_flow").executor == session.ORDINARY


def test_the_private_api_is_in_use(served: Load) -> None:
    """If this fails, TensorFlow has dropped it: everything still works, each call some tens of µs slower."""
    from ringserve.workers import session

    assert session.uses_private_api(served("mlp")._session)


@pytest.mark.parametrize(
    ("name", "changing"),
    [("mlp", False), ("table", False), ("slow", False), ("counter", True), ("old_control_flow", False)],
)
def test_models_that_change_themselves_are_known(served: Load, name: str, changing: bool) -> None:
    assert served(name).changes_state is changing


def test_which_signature_changes_the_model(served: Load) -> None:
    traits = served("counter").traits
    assert {name for name, of in traits.items() if of.changes_state} == {"add", "set"}


def test_loops_are_not_probed_and_outputs_that_do_not_follow_rows_are_known(served: Load) -> None:
    assert served("slow").not_per_row == {}
    assert served("not_per_row").not_per_row == {
        "serving_default": {"total", "pairs"},
        "mixed": {"total"},
    }
    assert not any(served("mlp").not_per_row.values())


def test_rows_that_depend_on_each_other_are_found(served: Load) -> None:
    """In any output; but not in what is another one each time, of which nobody can tell."""
    found = served("ranking").dependent
    assert found == {"serving_default": {"p"}, "last": {"place"}, "own": {"place"}, "noisy": frozenset()}
    for name in ("conv", "several", "echo", "identities", "half"):
        assert not any(served(name).dependent.values()), name


def test_published_signatures(served: Load) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    published = get_model_metadata_pb2.SignatureDefMap.FromString(served("several").signature_defs)
    assert set(published.signature_def) == {"serving_default", "__saved_model_init_op"}
    entry = published.signature_def["serving_default"]
    assert entry.method_name == "tensorflow/serving/predict"
    assert {alias: (i.dtype, [d.size for d in i.tensor_shape.dim]) for alias, i in entry.inputs.items()} == {
        "a": (1, [-1, 3]),
        "b": (1, [-1, 2]),
    }


def test_two_sessions_do_not_share_variables(load: Load) -> None:
    from tests.workers.desk import lane

    first, second = load("counter"), load("counter")
    delta = np.float32(3.0).reshape(())
    add = lane(first, {"delta": delta}, ["output"], batchable=False, signature="add")
    assert first.plan(add).run([delta])[0] == 3.0
    get = lane(second, {}, ["output"], batchable=False, signature="get")
    assert second.plan(get).run([])[0] == 0.0
    first.close()
    second.close()


def test_sample_model(tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpriority", lambda *_: None)  # what later tests start would inherit it from this process
    from ringserve import sample_model
    from ringserve.workers.servable import Servable
    from tests.workers.desk import lane

    sample = sample_model.export_sample(tmp_path)
    assert sample.path == tmp_path / "digits" / "1"
    assert sample.accuracy > 0.95
    servable = Servable.load(sample.path, "digits", 1)
    x = np.array([sample.example], np.float32)
    probabilities, label = servable.plan(lane(servable, {"x": x}, ["probabilities", "class"])).run([x])
    assert label.tolist() == [sample.label]
    assert probabilities.shape == (1, 10)
    assert "/v1/models/digits:predict" in sample_model.describe(sample)
    assert sample_model.export_sample(tmp_path).path.name == "2"


def test_exporters_cover_every_dtype_a_session_feeds() -> None:
    from ringserve.shm import dtype as dtypes

    names = {dtypes.dtype_of(number).name for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23)}
    assert len(names) == len(exporters.IDENTITY_DTYPES)
