"""model.tflite behind the same executor as a SavedModel (5.9): signatures, shapes, dtypes, and what does not run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, InputSpec, LaneSpec, ModelOptions
from tests.workers import tflites
from tests.workers.desk import Desk, lane, words
from tests.workers.warm import Version

pytest.importorskip("ai_edge_litert", reason="the extra 'tflite' is not installed")

WITHOUT = "saved_model_half_plus_two_tflite/00000123"
WITH = "saved_model_half_plus_two_tflite_with_sigdef/00000123"


def load(path: Path) -> Any:
    from ringserve.workers.tflite import TfliteModel

    return TfliteModel.load(path, "m", 1)


def ask(model: Any, batchable: bool = False, signature: str = "serving_default", **inputs: Any) -> Any:
    """All outputs of one request, or its failure."""
    desk = Desk(model)
    spec = lane(model, inputs, list(model.signatures[signature].outputs), batchable, signature)
    answers, _ = desk.run(spec, [desk.part(inputs, batchable)])
    (answer,) = answers.values()
    return answer


def published(model: Any) -> dict[str, Any]:
    """{signature: ({alias: (dtype, shape)}, the same of outputs)} of the catalog."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    found = get_model_metadata_pb2.SignatureDefMap.FromString(model.signature_defs).signature_def
    return {
        name: tuple(
            {alias: (info.dtype, [dim.size for dim in info.tensor_shape.dim]) for alias, info in infos.items()}
            for infos in (entry.inputs, entry.outputs)
        )
        for name, entry in found.items()
    }


@pytest.mark.parametrize("name", [WITHOUT, WITH])
def test_tflite_5_9_half_plus_two(shared: Callable[[str], Version], name: str) -> None:
    model = load(shared(name).path)
    assert published(model) == {"serving_default": ({"x": (1, [1, 1])}, {"y": (1, [1, 1])})}
    # Any shape, as its interpreter is resized to the request's.
    for x in ([[2.0], [3.0]], [2.0, 3.0, 4.0], [[2.0]], [[1.0, 2.0, 3.0]], []):
        (y,) = ask(model, x=np.array(x, np.float32))
        assert y.tolist() == (np.array(x, np.float32) * 0.5 + 2.0).tolist()


def test_tflite_5_9_a_signature_is_made_from_the_tensors_names(tf: Any, tmp_path: Path) -> None:
    def function(first: Any, second: Any) -> dict[str, Any]:
        return {"sum": first + second}

    shape: list[int | None] = [None, 2]
    model = load(tflites.convert(tmp_path, function, first=(shape, "float32"), second=(shape, "float32")))
    ((inputs, outputs),) = published(model).values()
    assert inputs == {"first": (1, [-1, 2]), "second": (1, [-1, 2])}
    assert list(outputs.values()) == [(1, [-1, 2])]
    ones = np.ones((3, 2), np.float32)
    assert ask(model, True, first=ones, second=ones * 2)[0].tolist() == [[3.0, 3.0]] * 3


def test_tflite_5_9_stored_signatures(tf: Any, tmp_path: Path) -> None:
    path = tflites.dense(tmp_path)
    (output,) = published(load(path))["serving_default"][1]
    tflites.add_signatures(
        path, serving_default=({"inp": "x:0"}, {"out": output}), again=({"x": "x"}, {"a": f"{output}:0", "b": output})
    )
    model = load(path)
    assert set(model.signatures) == {"serving_default", "again"}
    ones = np.ones((2, 3), np.float32)
    assert ask(model, inp=ones)[0].tolist() == [[6.0, 15.0]] * 2
    assert [answer.tolist() for answer in ask(model, signature="again", x=ones)] == [[[6.0, 15.0]] * 2] * 2


def test_a_stored_signature_of_a_tensor_that_is_not_there(tf: Any, tmp_path: Path) -> None:
    path = tflites.add_signatures(tflites.dense(tmp_path), wrong=({"x": "z"}, {}))
    assert load_error(path) == (
        Code.INVALID_ARGUMENT,
        f'Signature "wrong" of {path}/model.tflite names tensor z, which the model does not have.',
    )


def test_rows_of_many_requests_share_a_batch(tf: Any, tmp_path: Path) -> None:
    model = load(tflites.dense(tmp_path))
    assert not model.changes_state
    desk = Desk(model)
    desk.executor.set_options(model.name, ModelOptions(model.name, 128, [], False, False, True))
    parts = [desk.part({"x": np.full((1 + i % 3, 3), float(i), np.float32)}) for i in range(7)]
    outputs = list(model.signatures["serving_default"].outputs)
    answers, done = desk.run(lane(model, {"x": np.zeros((1, 3), np.float32)}, outputs), parts)
    assert done.rows == sum(1 + i % 3 for i in range(7))  # one run of all
    for i, part in enumerate(parts):
        assert answers[part[1]][0].tolist() == [[6.0 * i, 15.0 * i]] * (1 + i % 3)


def test_rows_that_depend_on_each_other_are_found_on_trial(
    tf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tflites.convert(tmp_path, lambda x: {"y": x - tf.reduce_mean(x, 0)}, x=([None, 2], "float32")))
    desk = Desk(model)
    outputs = list(model.signatures["serving_default"].outputs)
    for _ in range(3):
        parts = [desk.part({"x": np.array([[i, i], [i + 2, i + 4]], np.float32)}) for i in range(3)]
        answers, _ = desk.run(lane(model, {"x": np.zeros((1, 2), np.float32)}, outputs), parts)
        assert all(answers[part[1]][0].tolist() == [[-1.0, -2.0], [1.0, 2.0]] for part in parts)
    assert "differed between a request run alone and together with others" in caplog.text


@pytest.mark.parametrize("name", ["float32", "int32", "uint8", "int64", "bool", "int16", "int8", "uint32"])
def test_tflite_5_9_dtypes(tf: Any, tmp_path: Path, name: str) -> None:
    dtype = tf.as_dtype(name)
    path = tflites.convert(tmp_path, lambda x: {"y": tf.stack([x, x], 1)}, x=([None], name))
    x = np.array([0, 1, 1], dtype.as_numpy_dtype)
    (y,) = ask(load(path), True, x=x)
    assert (y.dtype, y.tolist()) == (x.dtype, [[v, v] for v in x.tolist()])


def test_tflite_5_9_strings_and_complex_numbers(tf: Any, tmp_path: Path) -> None:
    def function(text: Any, z: Any) -> dict[str, Any]:
        return {"text": tf.identity(text), "size": tf.abs(z)}

    path = tflites.convert(tmp_path, function, text=([None], "string"), z=([None], "complex64"))
    model = load(path)
    answers = ask(model, True, text=words(b"a\0\0", b"", b"\xff"), z=np.array([3 + 4j, 0, 1j], np.complex64))
    by_alias = dict(zip(model.signatures["serving_default"].outputs, answers, strict=True))
    assert by_alias.pop("text").tolist() == [b"a\0\0", b"", b"\xff"]
    (size,) = by_alias.values()
    assert size.tolist() == [5.0, 0.0, 1.0]


def test_failures_are_values_and_harm_nobody_else(tf: Any, tmp_path: Path) -> None:
    model = load(tflites.dense(tmp_path))
    ones = np.ones((1, 3), np.float32)
    code, text = ask(model, x=np.ones((1, 3), np.int32))
    assert (code, text) == (Code.INVALID_ARGUMENT, 'Expects arg[0] to be float but int32 is provided (input "x").')
    code, text = ask(model, x=np.ones((2, 2, 3), np.float32))
    assert (code, text) == (Code.INVALID_ARGUMENT, 'Input "x" must have rank 2, not 3.')
    code, text = ask(model, x=np.ones((1, 4), np.float32))
    assert code == Code.INVALID_ARGUMENT
    assert "\n" not in text
    # The interpreter is as it was, also for the shape that it had before.
    assert ask(model, x=ones)[0].tolist() == [[6.0, 15.0]]
    from ringserve.workers.failures import RunFailure

    with pytest.raises(RunFailure) as caught:
        model.plan(LaneSpec("m", 1, "nope", (InputSpec("x", 1, (3,)),), (), True))
    assert caught.value.failure.code == Code.FAILED_PRECONDITION


def test_what_changes_with_each_run_is_known(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.total = tf.Variable(0.0)
    function = tf.function(lambda x: {"y": module.total.assign_add(x)})
    signature = function.get_concrete_function(x=tf.TensorSpec([], tf.float32, "x"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([signature], module)
    converter.experimental_enable_resource_variables = True
    (tmp_path / "model.tflite").write_bytes(converter.convert())
    model = load(tmp_path)
    assert model.changes_state
    assert model.why_not_try("serving_default") == "changes the model"


# ---------------------------------------------------------------------------------------------- which file is served


def load_error(path: Path) -> tuple[Code, str]:
    from ringserve.workers.failures import LoadError

    with pytest.raises(LoadError) as caught:
        load(path)
    return caught.value.code, caught.value.text


def test_tflite_that_is_none(tf: Any, tmp_path: Path) -> None:
    path = tflites.dense(tmp_path)
    file = path / "model.tflite"
    file.write_bytes(file.read_bytes()[:100])
    code, text = load_error(path)
    assert code == Code.DATA_LOSS
    assert "is no TFLite model, or is truncated" in text


def test_an_op_that_the_interpreter_lacks(shared: Callable[[str], Version]) -> None:
    code, text = load_error(shared("parse_example_tflite/00000123").path)
    assert code == Code.UNIMPLEMENTED
    assert "Encountered unresolved custom op: ParseExampleV2." in text


def test_tflite_5_9_is_served_when_preferred(version: Callable[[str], Version]) -> None:
    both = version("half")
    tflites.dense(both.path)
    assert set(both.open_as_it_is().model.signatures["serving_default"].outputs) == {"y"}
    opened = both.open_as_it_is(prefer_tflite_model=True)
    assert opened.notes == ["runs model.tflite", "warmed up on zeros, batches of 1, 2, 4, 8 rows"]
    assert ask(opened.model, x=np.ones((1, 3), np.float32))[0].tolist() == [[6.0, 15.0]]
    # A version without one is served as ever.
    (both.path / "model.tflite").unlink()
    assert both.open_as_it_is(prefer_tflite_model=True).notes == ["warmed up on zeros, batches of 1, 2, 4, 8 rows"]


def test_tflite_5_9_without_a_saved_model(version: Callable[[str], Version]) -> None:
    from ringserve.workers.failures import LoadError

    alone = version("half")
    tflites.dense(alone.path)
    (alone.path / "saved_model.pb").unlink()
    shutil.rmtree(alone.path / "variables")
    assert alone.open_as_it_is(prefer_tflite_model=True).notes[0] == "runs model.tflite"
    with pytest.raises(LoadError, match="serve it with prefer_tflite_model"):
        alone.open_as_it_is()


def test_without_an_interpreter(version: Callable[[str], Version], monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.workers import tflite
    from ringserve.workers.failures import LoadError

    both = version("half")
    tflites.dense(both.path)
    monkeypatch.setattr(tflite, "_INTERPRETERS", (("no_such_package", "Interpreter"), ("os", "Interpreter")))
    opened = both.open_as_it_is(prefer_tflite_model=True)
    assert opened.notes[0].startswith("runs the SavedModel beside its model.tflite")
    (both.path / "saved_model.pb").unlink()
    with pytest.raises(LoadError, match=r"install ringserve\[tflite\]"):
        both.open_as_it_is(prefer_tflite_model=True)


def test_tensorflows_own_interpreter_does_as_well(tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.workers import tflite

    pytest.importorskip("tensorflow.lite.python.interpreter", reason="this TensorFlow has no interpreter")
    monkeypatch.setattr(tflite, "_INTERPRETERS", tflite._INTERPRETERS[1:])
    assert ask(load(tflites.dense(tmp_path)), x=np.ones((1, 3), np.float32))[0].tolist() == [[6.0, 15.0]]


def test_warmup_records_run_in_the_interpreter(tf: Any, version: Callable[[str], Version]) -> None:
    from tests.workers.warm import predict

    here = version("half")
    tflites.dense(here.path)
    opened = here.open(predict(tf, x=np.ones((2, 3), np.float32)), prefer_tflite_model=True)
    assert opened.warmup_records == 1
