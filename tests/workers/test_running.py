"""Plans: equal to what TensorFlow answers by itself, for every dtype and shape, and failures in TensorFlow's words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, InputSpec, LaneSpec
from ringserve.shm.tensor import AXES_MAX
from tests.exporters import IDENTITY_DTYPES
from tests.workers.desk import lane, number_of

Load = Callable[..., Any]


def run_failure(servable: Any, spec: LaneSpec, feeds: list[Any]) -> tuple[Code, str]:
    from ringserve.workers.servable import RunFailure

    with pytest.raises(RunFailure) as caught:
        servable.plan(spec).run(feeds)
    return caught.value.failure


def strings(*values: bytes) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


FEEDS: dict[str, dict[str, Any]] = {
    "mlp": {"x": np.random.default_rng(1).random((5, 784), dtype=np.float32)},
    "conv": {"image": np.random.default_rng(2).random((2, 96, 96, 3), dtype=np.float32)},
    "several": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((2, 2), np.float32)},
    "half": {"x": np.array([2.0, -7.0], np.float32)},
    "strings": {"text": strings(b"", b"a\0b\0", b"\xff\xfe", b"word" * 1000)},
    "table": {"word": strings(b"two", b"none", b"zero")},
    "slow": {"x": np.zeros(2, np.float32), "turns": np.array([3, 7], np.int32)},
    "old_control_flow": {"x": np.array([1.0, -3.0], np.float32)},
    "picky": {"x": np.array([1.0, 0.0], np.float32)},
    "not_per_row": {"x": np.arange(6, dtype=np.float32).reshape(3, 2)},
}


@pytest.mark.parametrize("name", FEEDS)
def test_equal_to_a_session(served: Load, model_path: Load, reference: Load, name: str) -> None:
    servable, feeds = served(name), FEEDS[name]
    outputs = list(servable.signatures["serving_default"].outputs)
    plan = servable.plan(lane(servable, feeds, outputs))
    answers = plan.run(list(feeds.values()))
    for answer, expected, number in zip(
        answers, reference(model_path(name), "serving_default", feeds, outputs), plan.output_dtypes, strict=True
    ):
        assert number == number_of(expected)
        assert (answer.dtype, answer.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(answer, expected)  # bit for bit: the same kernels on the same numbers


def test_public_api_answers_the_same(served: Load) -> None:
    """The fallback of `make_call`, for a TensorFlow without the private API."""
    from ringserve.workers import session

    for name in ("mlp", "strings", "several", "not_per_row"):
        servable = served(name)
        entry = servable.signatures["serving_default"]
        tensors = list(entry.outputs.values())
        feeds = [FEEDS[name][alias] for alias in entry.inputs]
        names = list(entry.inputs.values())
        private = session.make_call(servable._session, names, tensors)(*feeds)
        public = session.make_call(servable._session, names, tensors, private=False)(*feeds)
        for one, other in zip(private, public, strict=True):
            assert isinstance(other, np.ndarray)
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.array_equal(one, other)


def test_public_api_fails_in_the_same_words(served: Load, tf: Any) -> None:
    from ringserve.workers import failures, session

    servable = served("picky")
    entry = servable.signatures["serving_default"]
    texts = []
    calls = [
        session.make_call(servable._session, [entry.inputs["x"]], [entry.outputs["y"]], private=private)
        for private in (True, False)
    ]
    for call in calls:
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            call(np.array([-1.0], np.float32))
        texts.append(failures.failure_of(caught.value).text)
    print(texts)
    assert texts[0].split("\n")[0] == texts[1].split("\n")[0]
    assert "File " not in texts[1]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4), (1,) * AXES_MAX], ids=str)
@pytest.mark.parametrize("name", [*IDENTITY_DTYPES, "string"])
def test_every_dtype_and_shape(served: Load, tf: Any, name: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    if name == "string":
        x = np.empty(count, dtype=object)
        x[:] = [b"\0%d" % i for i in range(count)]
        x = x.reshape(shape)
    else:
        x = (np.arange(count) % 2 if name == "bool" else np.arange(count)).astype(tf.as_dtype(name).as_numpy_dtype)
        x = x.reshape(shape)
    servable = served("identities")
    plan = servable.plan(lane(servable, {"x": x}, ["y"], batchable=False, signature=name))
    (y,) = plan.run([x])
    assert plan.output_dtypes == (number_of(x),)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert y.tolist() == x.tolist()


def test_aliases_of_one_tensor(served: Load) -> None:
    servable = served("aliases")
    x = np.array([[1.0, 2.0]], np.float32)
    for outputs in (["same", "y", "again"], ["again", "same"], ["same"], ["y"]):
        answers = servable.plan(lane(servable, {"x": x}, outputs)).run([x])
        expected = {"same": x, "y": 2 * x, "again": 2 * x}
        assert [a.tolist() for a in answers] == [expected[alias].tolist() for alias in outputs]
    spec = lane(servable, {"b": x, "a": x}, ["y"], signature="twice")
    assert servable.plan(spec).run([x, x.copy()])[0].tolist() == [[2.0, 4.0]]
    code, text = run_failure(servable, spec, [x, x + 1])
    assert (code, text) == (
        Code.INVALID_ARGUMENT,
        'Inputs "b" and "a" are the same tensor of the model and must be equal.',
    )


def test_order_of_inputs_and_outputs_is_the_lanes(served: Load) -> None:
    servable, feeds = served("several"), FEEDS["several"]
    forwards = servable.plan(lane(servable, feeds, ["both", "sum"])).run([feeds["a"], feeds["b"]])
    swapped = {"b": feeds["b"], "a": feeds["a"]}
    backwards = servable.plan(lane(servable, swapped, ["sum", "both"])).run([feeds["b"], feeds["a"]])
    assert np.array_equal(forwards[0], backwards[1])
    assert np.array_equal(forwards[1], backwards[0])


def test_an_assigned_variable_does_not_share_the_feed(load: Load) -> None:
    servable = load("counter")
    value = np.array(5.0, np.float32)
    servable.plan(lane(servable, {"to": value}, ["output"], batchable=False, signature="set")).run([value])
    value[...] = 9.0  # as a ring record is written over once its request is answered
    assert servable.plan(lane(servable, {}, ["output"], False, "get")).run([])[0] == 5.0


def test_failures_carry_tensorflows_words(served: Load) -> None:
    picky = served("picky")
    x = np.array([1.0, -2.0], np.float32)
    code, text = run_failure(picky, lane(picky, {"x": x}, ["y"]), [x])
    assert code == Code.INVALID_ARGUMENT
    assert text.startswith("assertion failed: [negative:] [1 -2]")
    assert "File" not in text
    assert "Traceback" not in text
    mlp = served("mlp")
    narrow = np.zeros((2, 783), np.float32)
    code, text = run_failure(mlp, lane(mlp, {"x": narrow}, ["probabilities"]), [narrow])
    assert code == Code.INVALID_ARGUMENT
    assert text == 'Input "x" must have shape [?,784], not [?,783].'
    double = np.zeros((2, 784))
    code, text = run_failure(mlp, lane(mlp, {"x": double}, ["probabilities"]), [double])
    assert (code, text) == (
        Code.INVALID_ARGUMENT,
        'Expects arg[0] to be float but double is provided (input "x").',
    )


@pytest.mark.parametrize("shape", [(), (3,), (96, 96, 3), (1, 96, 96), (1, 96, 96, 4), (1, 1, 96, 96, 3)])
def test_shapes_that_end_the_process_in_a_kernel_are_refused(served: Load, shape: tuple[int, ...]) -> None:
    """oneDNN's convolution aborts on some of these."""
    servable = served("conv")
    image = np.zeros(shape, np.float32)
    code, text = run_failure(servable, lane(servable, {"image": image}, ["logits"], False), [image])
    assert code == Code.INVALID_ARGUMENT
    assert text.startswith('Input "image" must have shape [?,96,96,3], not [')


def test_element_by_element_models_take_any_shape(served: Load) -> None:
    """As in TF Serving, whose tests send [3] where [-1, 1] is declared."""
    servable = served("half")
    for x in (np.float32(2.0).reshape(()), np.zeros((2, 3), np.float32), np.zeros((0,), np.float32)):
        assert servable.plan(lane(servable, {"x": x}, ["y"], False)).run([x])[0].tolist() == (x * 0.5 + 2.0).tolist()


def test_lanes_that_cannot_run(served: Load) -> None:
    mlp = served("mlp")
    x = InputSpec("x", 1, (784,))
    code, text = run_failure(mlp, LaneSpec("mlp", 1, "gone", (x,), ("probabilities",), True), [])
    assert (code, text) == (Code.FAILED_PRECONDITION, 'Serving signature key "gone" not found.')
    code, text = run_failure(mlp, LaneSpec("mlp", 1, "__saved_model_init_op", (), (), False), [])
    assert code == Code.FAILED_PRECONDITION
    code, text = run_failure(mlp, LaneSpec("mlp", 1, "serving_default", (x,), ("logits",), True), [])
    assert code == Code.INVALID_ARGUMENT
    assert "logits" in text
    assert "{probabilities}" in text
    unfed = LaneSpec("mlp", 1, "serving_default", (), ("probabilities",), False)
    code, text = run_failure(mlp, unfed, [])
    assert code == Code.INVALID_ARGUMENT
    assert "must feed a value" in text


def test_sparse_inputs_are_refused_and_the_rest_of_the_model_serves(served: Load) -> None:
    servable = served("sparse")
    cells = LaneSpec("sparse", 1, "sparse", (InputSpec("cells", 1, (4,)),), ("y",), True)
    code, text = run_failure(servable, cells, [np.zeros((1, 4), np.float32)])
    assert code == Code.UNIMPLEMENTED
    assert 'input "cells"' in text
    x = np.array([1.0], np.float32)
    assert servable.plan(lane(servable, {"x": x}, ["y"])).run([x])[0].tolist() == [2.0]


def test_calls_are_bounded_and_never_released(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a selection takes its part of the whole signature's outputs."""
    from ringserve.workers import servable as module

    monkeypatch.setattr(module, "_CALLS_MAX", 2)
    servable, feeds = load("several"), FEEDS["several"]
    expected = servable.plan(lane(servable, feeds, ["both", "sum", "scaled"])).run(list(feeds.values()))
    swapped = {"b": feeds["b"], "a": feeds["a"]}
    for inputs in (feeds, swapped):
        for places in ([0], [1], [2], [2, 0], [1, 2], [0, 1, 2], [0]):
            names = [["both", "sum", "scaled"][place] for place in places]
            plan = servable.plan(lane(servable, inputs, names))
            answers = plan.run(list(inputs.values()))
            assert [a.tolist() for a in answers] == [expected[place].tolist() for place in places]
            assert len(servable._calls) <= 3
    unfed = {"a": feeds["a"]}
    code, _ = run_failure(servable, lane(servable, unfed, ["sum"]), list(unfed.values()))
    assert code == Code.RESOURCE_EXHAUSTED


def test_selections_of_a_model_with_functional_control_flow(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow fails such calls once an earlier one was released, see _CALLS_MAX."""
    from ringserve.workers import servable as module

    monkeypatch.setattr(module, "_CALLS_MAX", 0)
    servable = load("picky")
    x = np.array([1.0], np.float32)
    for _ in range(2):
        for outputs in (["y"], ["z"], ["z", "y"], [], ["z", "z"]):
            plan = servable.plan(lane(servable, {"x": x}, outputs))
            assert [output.tolist() for output in plan.run([x])] == [[2.0]] * len(outputs)
            del plan


def test_big_arrays(served: Load) -> None:
    servable = served("echo")
    x = np.arange(16 * 2**20, dtype=np.float32).reshape(4, -1)
    (y,) = servable.plan(lane(servable, {"x": x}, ["y"])).run([x])
    assert np.array_equal(y, x * 2.0)


@pytest.mark.parametrize("executor", ["SINGLE_THREADED_EXECUTOR", ""], ids=["single", "ordinary"])
@pytest.mark.parametrize("private", [True, False])
def test_failures_that_quote_what_is_no_text(served: Load, executor: str, private: bool) -> None:
    """TensorFlow's Python layer cannot make an error of such a message."""
    from ringserve.workers import session
    from ringserve.workers.servable import RunFailure

    servable, feeds = served("parsed"), strings(b"\xffabc\xe4")
    spec = lane(servable, {"examples": feeds}, ["y"])
    plan, entry = servable.plan(spec), servable.signatures["serving_default"]
    with session.open_session(servable._graph, executor, 1) as other:
        plan._call = session.make_call(other, [entry.inputs["examples"]], [entry.outputs["y"]], private=private)
        for value in (feeds, strings(b"\xff" * 1_000_000)):
            with pytest.raises(RunFailure) as caught:
                plan.run([value])
            code, text = caught.value.failure
            assert code == Code.INVALID_ARGUMENT
            assert text.startswith("Could not parse example input, value: '\ufffd")
            assert len(text) <= 16_384


def test_long_texts_are_cut() -> None:
    from ringserve.workers.failures import clean

    assert clean("x" * 16_384) == "x" * 16_384
    assert clean("x" * 10_000_000) == "x" * 16_384


def test_clean_cuts_what_python_adds() -> None:
    from ringserve.workers.failures import clean

    plain = "Matrix size-incompatible: In[0]: [2,4], In[1]: [3,2]\n\t [[{{node MatMul}}]]"
    assert clean(plain) == plain
    for tail in (
        "\n\nOriginal stack trace for 'MatMul':\n  File \"x.py\", line 1, in <module>",
        "\n\nErrors may have originated from an input operation.\nInput Source operations connected to node:\n a",
    ):
        assert clean(plain + tail) == plain
    detected = (
        "Graph execution error:\n\nDetected at node 'MatMul' defined at (most recent call last):\n  a\nNode: 'MatMul'\n"
    )
    assert clean(detected + plain) == plain


@pytest.mark.parametrize(
    "text",
    ["'\\n' * 262_144", "'{{node a}} (defined at ' * 12_000", "'Detected at node\\n' + 'Node: \\x27' * 40_000"],
)
def test_error_texts_are_cleaned_in_one_pass(text: str) -> None:
    """They quote what clients sent. Some seconds of a processor are enough for what took ten, or minutes."""
    code = (
        "import resource; from ringserve.workers.failures import clean\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, (4, 4)); clean({text})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
