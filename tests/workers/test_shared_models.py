"""TensorFlow Serving's own test models, with the answers that its tests expect. Skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from tests.workers.desk import Desk, lane

MODELS = Path(__file__).parents[2] / ".." / "shared" / "models" / "tfs"

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="TensorFlow Serving's test models are not here")

FAMILY = [
    "2_versions/00000123",
    "2_versions/00000124",
    "cpu/00000123",
    "cpu_with_empty_saved_model_config/00000123",
    "cpu_with_saved_model_config/00000123",
    "gpu/00000123",
    "gpu_trt/00000123",
    "mkl/00000123",
    "mlmd/00000123",
    "tf2_cpu/00000123",
]


@pytest.fixture(scope="module")
def servables(tf: Any) -> dict[str, Any]:
    return {}


def load(servables: dict[str, Any], path: str) -> Any:
    from ringserve.workers.servable import Servable

    if path not in servables:
        servables[path] = Servable.load(MODELS / path, path.split("/", maxsplit=1)[0], int(path.split("/")[1]))
    return servables[path]


def ask(servable: Any, signature: str, batchable: bool = False, **inputs: Any) -> Any:
    """The only output of one request, through the rings."""
    outputs = list(servable.signatures[signature].outputs)
    desk = Desk(servable)
    desk.rows[1] = 1
    part = desk.part(inputs, batchable) if inputs else [1, 1, 1, 0]
    answers, _ = desk.run(lane(servable, inputs, outputs, batchable, signature), [part])
    (answer,) = answers.values()
    return answer[0] if isinstance(answer, list) else answer


def examples(tf: Any, *features: dict[str, float]) -> Any:
    serialized = np.empty(len(features), dtype=object)
    serialized[:] = [
        tf.train.Example(
            features=tf.train.Features(
                feature={k: tf.train.Feature(float_list=tf.train.FloatList(value=[v])) for k, v in each.items()}
            )
        ).SerializeToString()
        for each in features
    ]
    return serialized


@pytest.mark.parametrize("path", FAMILY)
def test_half_plus_two_family(servables: dict[str, Any], tf: Any, path: str) -> None:
    servable = load(servables, f"saved_model_half_plus_two_{path}")
    x = np.array([[2.0], [3.0]], np.float32)
    assert ask(servable, "serving_default", x=x).tolist() == [[3.0], [3.5]]
    assert ask(servable, "serving_default", True, x=x).tolist() == [[3.0], [3.5]]
    # Not the declared shape; the C++ server takes it, and its tests send it.
    flat = np.array([2.0, 3.0, 4.0], np.float32)
    assert ask(servable, "serving_default", x=flat).tolist() == [3.0, 3.5, 4.0]
    serialized = examples(tf, {"x": 2.0}, {"x": 3.0, "x2": 5.0})
    assert ask(servable, "regress_x_to_y", True, inputs=serialized).tolist() == [[3.0], [3.5]]
    assert ask(servable, "classify_x_to_y", True, inputs=serialized).tolist() == [[3.0], [3.5]]
    y2 = ask(servable, "regress_x_to_y2", False, inputs=serialized)
    if "mkl" in path:
        assert y2[0] == Code.INVALID_ARGUMENT
        assert y2[1].startswith("Incompatible shapes: [2,1] vs. [1,10,10,1]")
    else:
        assert y2.tolist() == [[4.0], [4.5]]
    if "gpu_trt" not in path:
        y3 = ask(servable, "regress_x2_to_y3" if "tf2" not in path else "classify_x2_to_y3", inputs=x[:1] + 3.0)
        assert set(y3.reshape(-1).tolist()) == {5.5}
        assert y3.shape == ((1, 10, 10, 1) if "mkl" in path else (1, 1))


@pytest.mark.parametrize("path", ["mkl/00000123", "mlmd/00000123", "tf2_cpu/00000123", "gpu/00000123"])
def test_family_in_batches(servables: dict[str, Any], path: str) -> None:
    servable = load(servables, f"saved_model_half_plus_two_{path}")
    desk = Desk(servable)
    parts = [desk.part({"x": np.array([[float(i)]] * (1 + i % 3), np.float32)}) for i in range(9)]
    answers, _ = desk.run(lane(servable, {"x": np.zeros((1, 1), np.float32)}, ["y"]), parts)
    assert all(answers[p[1]][0].tolist() == [[0.5 * i + 2.0]] * (1 + i % 3) for i, p in enumerate(parts))


def test_matrix(servables: dict[str, Any]) -> None:
    x = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3)
    y = ask(load(servables, "matrix_half_plus_two/1"), "serving_default", True, x=x)
    assert y.tolist() == [[[2.5, 3.0, 3.5], [4.0, 4.5, 5.0], [5.5, 6.0, 6.5]]]


def test_counter(tf: Any) -> None:
    servable = load({}, "saved_model_counter/00000123")
    assert servable.changes_state
    assert ask(servable, "get_counter").tolist() == 0.0
    assert ask(servable, "incr_counter").tolist() == 1.0
    assert ask(servable, "incr_counter_by", delta=np.float32(3.0).reshape(())).tolist() == 4.0
    assert ask(servable, "get_counter").tolist() == 4.0
    assert ask(servable, "reset_counter").tolist() == 0.0
    from tensorflow_serving.apis import get_model_metadata_pb2

    published = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_defs)
    assert published.signature_def["get_counter"].outputs["output"].dtype == 1  # float, not float_ref


def test_half_plus_three(servables: dict[str, Any], tf: Any) -> None:
    servable = load(servables, "saved_model_half_plus_three/00000123")
    assert ask(servable, "serving_default", x=np.array([2.0], np.float32)).tolist() == [4.0]
    assert ask(servable, "serving_default", x=np.array([2.0, 3.0, 4.0], np.float32)).tolist() == [4.0, 4.5, 5.0]
    serialized = examples(tf, {"x": 2.0})  # a string, although the signature says float
    assert ask(servable, "tensorflow/serving/regress", inputs=serialized).tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("bad_half_plus_two/00000123", "pre-SavedModel"),
        ("session_bundle_half_plus_two/00000123", "pre-SavedModel"),
        ("saved_model_half_plus_two_tflite/00000123", "TFLite"),
        ("saved_model_half_plus_two_cpu", "holds some (00000123)"),
    ],
)
def test_what_does_not_load(tf: Any, path: str, hint: str) -> None:
    from ringserve.workers.servable import LoadError, Servable

    with pytest.raises(LoadError) as caught:
        Servable.load(MODELS / path, "m", 1)
    assert caught.value.code == Code.NOT_FOUND
    assert "should have a file called `saved_model.pb`" in caught.value.text
    assert hint in caught.value.text
