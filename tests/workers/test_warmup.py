"""Warm-up files, replayed as section 7.1 of the specification says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from tests.workers.warm import examples, multi, predict

HALF_PLUS_TWO = "saved_model_half_plus_two_cpu/00000123"


def test_warmup_7_1_predict_records(version: Any, tf: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    here = version("half")
    opened = here.open(
        predict(tf, x=np.array([1.0, 2.0, 3.0], np.float32)), predict(tf, "serving_default", ("y",), "other", x=[1.0])
    )
    assert opened.notes == [f"warmed up with 2 records from {here.file}, batches of 1, 2, 4, 8 rows"]
    assert (opened.warmup_records, opened.warmup_ns > 0, opened.load_ns > 0) == (2, True, True)
    assert (
        f"Finished reading warmup data for model at {here.file}. Number of warmup records read: 2. Elapsed time (mi"
        in (caplog.text)
    )


def test_warmup_1_4_no_file(version: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    here = version("half")
    opened = here.open_as_it_is()
    assert opened.notes == ["warmed up on zeros, batches of 1, 2, 4, 8 rows"]
    assert opened.warmup_records == -1
    assert f"No warmup data file found at {here.file}" in caplog.text


def test_warmup_7_1_all_kinds_of_records(shared: Any, tf: Any) -> None:
    classify, regress = "tensorflow/serving/classify", "tensorflow/serving/regress"
    opened = shared(HALF_PLUS_TWO).open(
        predict(tf, x=np.array([[1.0]], np.float32)),
        examples(tf, "classify_log", "classify_x_to_y", 1.0, 2.0),
        examples(tf, "regress_log", "regress_x_to_y", 1.0),
        examples(tf, "regress_log", "regress_x_to_y2", 1.0, context=3.0),
        multi(tf, ("a", "classify_x_to_y", classify), ("a", "regress_x_to_y", regress)),
        b"",  # no log type: skipped
    )
    assert opened.warmup_records == 6


def test_warmup_7_1_each_record_runs_as_often_as_asked(version: Any, tf: Any) -> None:
    from tests.workers.desk import lane

    base = version("counter")
    assert base.open(predict(tf, "add", delta=np.float32(1.0))).warmup_records == 1
    for iterations, expected in ((0, 11.0), (1, 11.0), (3, 33.0)):
        opened = base.open(
            predict(tf, "add", delta=np.float32(1.0)),
            predict(tf, "add", delta=np.float32(10.0)),
            num_request_iterations_for_warmup=iterations,
        )
        plan = opened.model.plan(lane(opened.model, {}, ["output"], batchable=False, signature="get"))
        assert float(plan.run([])[0]) == expected


def test_warmup_7_1_and_11_25_the_1001st_record_fails_the_load(version: Any, tf: Any) -> None:
    here, record = version("half"), predict(tf, x=np.array([1.0], np.float32))
    assert here.open(*[record] * 1000).warmup_records == 1000
    assert here.error(*[record] * 1001) == (
        Code.INVALID_ARGUMENT,
        f"Number of warmup records exceeds the maximum (1000) at {here.file}",
    )


def test_warmup_7_1_a_failing_request_fails_the_load(version: Any, tf: Any) -> None:
    good, bad = (predict(tf, x=np.array([x], np.float32)) for x in (1.0, -1.0))
    here = version("picky")
    code, text = here.error(good, bad)
    assert code == Code.INVALID_ARGUMENT
    assert "negative:" in text
    assert text.endswith(f"(warm-up record 2 of {here.file})")


@pytest.mark.parametrize(
    ("signature", "outputs", "inputs", "code", "text"),
    [
        ("nope", (), {"x": [1.0]}, Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.'),
        ("", (), {}, Code.INVALID_ARGUMENT, "input size does not match signature: 0!=1 len({}) != len({x})."),
        ("", (), {"x": [1.0], "z": [1.0]}, Code.INVALID_ARGUMENT, "input size does not match signature: 2!=1"),
        ("", (), {"z": [1.0]}, Code.INVALID_ARGUMENT, "Signature input alias: x(feed name: "),
        ("", ("q",), {"x": [1.0]}, Code.INVALID_ARGUMENT, "output tensor alias not found in signature: q Outputs ex"),
        ("", ("y", "y"), {"x": [1.0]}, Code.INVALID_ARGUMENT, "duplicate output tensor alias: y"),
        ("", (), {"x": [1]}, Code.INVALID_ARGUMENT, "Expects arg[0] to be float but int32 is provided"),
    ],
)
def test_warmup_4_2_what_a_predict_is_refused_for(
    version: Any, tf: Any, signature: str, outputs: tuple[str, ...], inputs: dict[str, Any], code: Code, text: str
) -> None:
    found = version("half").error(predict(tf, signature, outputs, **inputs))
    assert (found[0], found[1][: len(text)]) == (code, text)


def test_warmup_2_5_tensors_are_decoded_by_tensorflows_own_rules(version: Any, tf: Any) -> None:
    from tensorflow.core.framework import tensor_pb2

    def proto(dtype: int, *sizes: int, **fields: Any) -> Any:
        made = tensor_pb2.TensorProto(dtype=dtype, **fields)
        for size in sizes:
            made.tensor_shape.dim.add(size=size)
        return made

    from ringserve.workers.failures import RunFailure
    from ringserve.workers.tensor_parse import TensorParser

    parser = TensorParser()
    for given, expected in (
        (proto(1, 4, float_val=[1.0, 2.0]), [1.0, 2.0, 2.0, 2.0]),
        (proto(1, 2), [0.0, 0.0]),
        (proto(1, 2, float_val=[1.0, 2.0, 3.0]), [1.0, 2.0]),
        (proto(1, 2, int_val=[5, 5]), [0.0, 0.0]),
        (proto(6, int_val=[300]), 44),
        (proto(7, 2, string_val=[b"a\0"]), [b"a\0", b"a\0"]),
        (proto(7, string_val=[b"s"]), b"s"),
        (proto(7, 2, tensor_content=b"\1\2abb"), [b"a", b"bb"]),
        (proto(14, 1, int_val=[1]), [0.0]),
        (proto(11, 2, int_val=[3]), [3, 3]),
        (proto(1, 0, float_val=[1.0]), []),
    ):
        array = parser.parse(given, "x")
        assert isinstance(array, np.ndarray)
        assert array.tolist() == expected
    for refused in (
        proto(1, 3, tensor_content=b"12345678"),
        proto(1, -1),
        proto(0, 1),
        proto(101, 1),
        proto(20, 1),
        proto(10, 1, tensor_content=b"\2"),
        proto(7, 2, tensor_content=b"\1\1abc"),
    ):
        with pytest.raises(RunFailure) as caught:
            parser.parse(refused, "x")
        assert caught.value.failure == (Code.INVALID_ARGUMENT, "tensor parsing error: x")
    parser.close()


@pytest.mark.parametrize(
    ("record", "code", "text"),
    [
        (lambda tf: examples(tf, "classify_log", "nope", 1.0), 3, "No signature was found with the name: nope"),
        (lambda tf: examples(tf, "classify_log", "classify_x_to_y"), 3, "Input is empty."),
        (lambda tf: examples(tf, "classify_log", "", 1.0), 3, "No classification inputs found in SignatureDef: "),
        (
            lambda tf: examples(tf, "regress_log", "classify_x_to_y", 1.0),
            3,
            "No regression outputs found in SignatureD",
        ),
        (lambda tf: multi(tf), 3, "ModelSpec has no name specified."),
        (
            lambda tf: multi(tf, ("a", "regress_x_to_y", "tensorflow/serving/predict")),
            12,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            lambda tf: multi(tf, *[("a", "regress_x_to_y", "tensorflow/serving/regress")] * 2),
            3,
            "Duplicate evaluation of signature: regress_x_to_y",
        ),
        (
            lambda tf: multi(
                tf,
                ("a", "regress_x_to_y", "tensorflow/serving/regress"),
                ("b", "regress_x_to_y2", "tensorflow/serving/regress"),
            ),
            3,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
    ],
)
def test_warmup_4_3_and_4_4_what_examples_are_refused_for(
    shared: Any, tf: Any, record: Callable[[Any], bytes], code: int, text: str
) -> None:
    found = shared(HALF_PLUS_TWO).error(record(tf))
    assert (found[0], found[1][: len(text)]) == (code, text)


def test_warmup_4_3_outputs_that_are_no_answer(shared: Any, tf: Any) -> None:
    """Of the MKL model y2 is [1,10,10,1]: no regression."""
    code, text = shared("saved_model_half_plus_two_mkl/00000123").error(
        examples(tf, "regress_log", "regress_x_to_y2", 1.0)
    )
    assert code == Code.INVALID_ARGUMENT
    assert text.startswith(
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,10,10,1]"
    )


def test_warmup_7_1_logs_that_cannot_be_replayed(version: Any) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    session_run = prediction_log_pb2.PredictionLog()
    session_run.session_run_log.SetInParent()
    streamed = prediction_log_pb2.PredictionLog()
    streamed.predict_streamed_log.SetInParent()
    here = version("half")
    for log, number in ((session_run, 5), (streamed, 7)):
        code, text = here.error(log.SerializeToString())
        assert code == Code.UNIMPLEMENTED
        assert text.startswith(f"Unsupported log_type for warmup: {number}")


def test_warmup_7_1_what_is_no_record(version: Any, tf: Any) -> None:
    here = version("half")
    code, text = here.error(b"\xff\xff\xff")
    assert code == Code.INVALID_ARGUMENT
    assert text.startswith("Failed to parse warmup record: ")
    assert text.endswith(f" from {here.file}")
    code, text = here.error(raw=predict(tf, x=[1.0]))
    assert code == Code.DATA_LOSS
    assert text.endswith(". Please verify your warmup data is in TFRecord format.")


def test_warmup_7_1_switched_off(version: Any) -> None:
    opened = version("half").open(b"\xff\xff", enable_model_warmup=False)
    assert opened.notes == ["not warmed up: enable_model_warmup is off"]


def test_signature_defaults_fill_what_a_record_leaves_out(version: Any, tf: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    here = version("several")
    file = here.path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = saved_model.meta_graphs[0].signature_def["serving_default"]
    signature.defaults["b"].CopyFrom(tf.make_tensor_proto(np.ones((1, 2), np.float32)))
    file.write_bytes(saved_model.SerializeToString())
    assert here.open(predict(tf, a=np.ones((1, 3), np.float32))).warmup_records == 1
    code, text = here.error(predict(tf, b=np.ones((1, 2), np.float32)))
    assert code == Code.INVALID_ARGUMENT
    assert text.startswith("Signature input alias: a(feed name: ")
