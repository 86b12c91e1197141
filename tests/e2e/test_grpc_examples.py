"""Classify, Regress and MultiInference from outside, by the official client, through both gRPC engines: with all of
TensorFlow Serving's own test models where they are there, and with one made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from tests.e2e.conftest import SHARED_MODELS
from tests.e2e.server import Server

FAMILY = "saved_model_half_plus_two_"
#: Of TensorFlow Serving's test models, those that load.
TFS_MODELS = (
    "matrix_half_plus_two",
    "saved_model_half_plus_three",
    *(f"{FAMILY}{kind}" for kind in ("2_versions", "cpu", "gpu", "gpu_trt", "mkl", "mlmd", "tf2_cpu")),
    *(f"{FAMILY}cpu_with_{kind}saved_model_config" for kind in ("", "empty_")),
)
X2_IS_FLOAT = 'Expects arg[0] to be float but string is provided (input "inputs").'


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of the model that tests/e2e/export_classifier.py makes."""
    folder = tmp_path_factory.mktemp("classifier")
    subprocess.run([sys.executable, "-m", "tests.e2e.export_classifier", str(folder)], check=True, timeout=170)
    return folder


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(
    request: pytest.FixtureRequest, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """All models behind one server, once for each gRPC engine. Small batches, so that many are made."""
    folder = tmp_path_factory.mktemp("server")
    paths = {"classifier": classifier}
    if SHARED_MODELS.is_dir():
        paths |= {name: SHARED_MODELS / name for name in TFS_MODELS}
    tables = [f'[[models]]\nname = "{name}"\nbase_path = "{path}"\n' for name, path in paths.items()]
    config = f'[server]\ngrpc_engine = "{request.param}"\n[workers]\nworkers = 2\n'
    config += "[batching]\nbatch_rows_max = 16\nsplit = true\n"
    (folder / "server.toml").write_text(config + "\n".join(tables))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in paths:
            server.wait_available(name)
        yield server


def fill(request: Any, model: str, signature: str, examples: list[dict[str, float]], context: Any = None) -> Any:
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    fill_input(request.input, examples, context)
    return request


def fill_input(into: Any, examples: list[dict[str, float]], context: dict[str, float] | None = None) -> None:
    if context is None:
        held = into.example_list
    else:
        held = into.example_list_with_context
        held.context.SetInParent()
        fill_example(held.context, context)
    for features in examples:
        fill_example(held.examples.add(), features)


def fill_example(example: Any, features: dict[str, float]) -> None:
    for name, value in features.items():
        example.features.feature[name].float_list.value.append(value)


def classify(stub: Any, model: str, signature: str, *examples: dict[str, float], context: Any = None) -> Any:
    request = fill(classification_pb2.ClassificationRequest(), model, signature, list(examples), context)
    response = stub.Classify(request, timeout=60)
    assert response.model_spec.signature_name == (signature or "serving_default")
    return [[(each.label, each.score) for each in one.classes] for one in response.result.classifications]


def regress(stub: Any, model: str, signature: str, *examples: dict[str, float], context: Any = None) -> list[float]:
    request = fill(regression_pb2.RegressionRequest(), model, signature, list(examples), context)
    return [each.value for each in stub.Regress(request, timeout=60).result.regressions]


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), str(caught.value.details())


# ------------------------------------------------------------------------------------ TensorFlow Serving's test models

needs_tfs_models = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="TensorFlow Serving's models are not here")
EXAMPLES = ({"x": 2.0}, {"x": 3.0, "x2": 5.0})


@needs_tfs_models
@pytest.mark.parametrize("model", [name for name in TFS_MODELS if name.startswith(FAMILY)])
class TestFamily:
    """half_plus_two in all its forms: y = x / 2 + 2 and y2 = x / 2 + 3."""

    def test_classify(self, stub: Any, model: str) -> None:
        assert classify(stub, model, "classify_x_to_y", *EXAMPLES) == [[("", 3.0)], [("", 3.5)]]

    def test_regress(self, stub: Any, model: str) -> None:
        assert regress(stub, model, "regress_x_to_y", *EXAMPLES) == [3.0, 3.5]

    def test_regress_to_y2(self, stub: Any, model: str) -> None:
        if model.endswith("_mkl"):
            code, text = refusal(regress, stub, model, "regress_x_to_y2", *EXAMPLES)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert text.startswith("Incompatible shapes: [2,1] vs. [1,10,10,1]")
        else:
            assert regress(stub, model, "regress_x_to_y2", *EXAMPLES) == [4.0, 4.5]

    def test_a_float_tensor_takes_no_examples(self, stub: Any, model: str) -> None:
        """regress_x2_to_y3's input really is a float tensor: the run refuses it, as it does in TensorFlow Serving."""
        failure = refusal(regress, stub, model, "regress_x2_to_y3", *EXAMPLES)
        assert failure == (grpc.StatusCode.INVALID_ARGUMENT, X2_IS_FLOAT)

    def test_multi_inference(self, stub: Any, model: str) -> None:
        request = inference_pb2.MultiInferenceRequest()
        for signature, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")):
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name = model
            task.model_spec.signature_name = signature
        fill_input(request.input, list(EXAMPLES))
        regression, classification = stub.MultiInference(request, timeout=60).results
        assert [each.value for each in regression.regression_result.regressions] == [3.0, 3.5]
        classes = [one.classes[0].score for one in classification.classification_result.classifications]
        assert classes == [3.0, 3.5]
        version = 124 if model.endswith("2_versions") else 123
        assert [each.model_spec.version.value for each in (regression, classification)] == [version] * 2


@needs_tfs_models
def test_half_plus_three_takes_strings_although_it_says_float(stub: Any) -> None:
    model, signature = "saved_model_half_plus_three", "tensorflow/serving/regress"
    assert regress(stub, model, signature, {"x": 2.0}) == [4.0]
    assert regress(stub, model, signature, {"x": 2.0}, {"x": 3.0}, {"x": 4.0}) == [4.0, 4.5, 5.0]


@needs_tfs_models
def test_a_signature_of_another_form(stub: Any) -> None:
    code, text = refusal(classify, stub, "matrix_half_plus_two", "", {"x": 1.0})
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("No classification inputs found in SignatureDef: ")


# ------------------------------------------------------------------------------------------------- the model made here


def test_labels_and_scores(stub: Any) -> None:
    assert classify(stub, "classifier", "", {"x": 0.25}, {"x": 1.0}) == [
        [("low", 0.25), ("high", 0.75)],
        [("low", 1.0), ("high", 0.0)],
    ]
    assert classify(stub, "classifier", "scores", {"x": 0.25}) == [[("", 0.25), ("", 0.75)]]
    assert classify(stub, "classifier", "labels", {"x": 0.25}) == [[("low", 0.0), ("high", 0.0)]]


def test_the_context_is_part_of_every_example(stub: Any) -> None:
    context = {"bias": 0.5, "x": 9.0}
    assert regress(stub, "classifier", "regress", {"x": 1.0}, {"x": 2.0, "bias": 3.0}, context=context) == [3.0, 10.0]


def test_many_callers_at_once_get_their_own_answers(stub: Any) -> None:
    def call(number: int) -> bool:
        examples = [{"x": float(number + row)} for row in range(1 + number % 5)]
        if number % 2:
            return regress(stub, "classifier", "regress", *examples) == [2 * each["x"] for each in examples]
        expected = [[("low", each["x"]), ("high", 1 - each["x"])] for each in examples]
        return bool(classify(stub, "classifier", "", *examples) == expected)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(300)))


def test_more_examples_than_a_batch_holds(stub: Any) -> None:
    examples = [{"x": float(number)} for number in range(100)]
    assert regress(stub, "classifier", "regress", *examples) == [2.0 * number for number in range(100)]


def test_one_bad_example_fails_its_request_alone(stub: Any) -> None:
    good = [{"x": float(number)} for number in range(3)]
    bad: list[dict[str, float]] = [{"x": 1.0}, {"y": 2.0}]

    def call(number: int) -> Any:
        if number % 7:
            return regress(stub, "classifier", "regress", *good) == [0.0, 2.0, 4.0]
        code, _ = refusal(regress, stub, "classifier", "regress", *bad)
        return code is grpc.StatusCode.INVALID_ARGUMENT

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(100)))


def test_an_output_that_has_not_a_row_for_each_example(stub: Any) -> None:
    assert regress(stub, "classifier", "mean", {"x": 3.0}) == [3.0]
    assert refusal(regress, stub, "classifier", "mean", {"x": 3.0}, {"x": 4.0}) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Input batch size did not match output batch size: 2 vs. 1",
    )


def test_predict_takes_the_same_signatures(stub: Any) -> None:
    assert regress(stub, "classifier", "as_predict", {"x": 3.0}) == [6.0]


def test_the_method_name_is_checked_when_asked_for(classifier: Path, tmp_path: Path) -> None:
    arguments = ["--model_name", "classifier", "--model_base_path", str(classifier)]
    with Server(tmp_path, *arguments, "--enable_signature_method_name_check") as server:
        server.wait_available("classifier")
        with grpc.insecure_channel(server.grpc_target) as channel:
            stub = prediction_grpc.PredictionServiceStub(channel)
            assert regress(stub, "classifier", "regress", {"x": 3.0}) == [6.0]
            assert refusal(regress, stub, "classifier", "as_predict", {"x": 3.0}) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "Expected regression signature method_name to be tensorflow/serving/regress. "
                "Was: tensorflow/serving/predict",
            )
