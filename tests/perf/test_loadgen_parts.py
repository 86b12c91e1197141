"""The load generator's pure parts: quantiles against numpy's, comparison of answers against cases made with protobuf.

They run in a small C program under the address and undefined-behaviour sanitizers (`unit.c`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import loadgen
from ringserve.config import protos

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def unit() -> Path:
    return loadgen.compile_c("unit", [HERE / "unit.c", loadgen.PERF / "loadgen_check.c"], loadgen.SANITIZERS)


@pytest.mark.parametrize("scale", [100.0, 1e6, 3e9])
def test_quantiles_are_within_half_a_percent(unit: Path, scale: float) -> None:
    values = np.random.default_rng(7).lognormal(0.0, 1.5, 20_000) * scale
    values_ns = np.sort(values.astype(np.uint64))
    fractions = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
    shown = subprocess.run(
        [unit, "quantiles", *map(str, fractions)],
        input="\n".join(map(str, values_ns)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for fraction, text in zip(fractions, shown, strict=True):
        exact = int(values_ns[max(int(np.ceil(fraction * len(values_ns))) - 1, 0)])
        assert abs(int(text) - exact) <= exact * 0.005 + 1, fraction


@pytest.mark.parametrize("scale", [10.0, 1e5, 3e9])
def test_quantiles_of_a_slice_are_within_four_percent(unit: Path, scale: float) -> None:
    values = np.random.default_rng(8).lognormal(0.0, 1.0, 2_000) * scale
    values_ns = np.sort(values.astype(np.uint64))
    fractions = (0.5, 0.99, 1.0)
    command = [str(unit), "slices", *map(str, fractions)]
    shown = subprocess.run(
        command, input="\n".join(map(str, values_ns)), capture_output=True, text=True, check=True
    ).stdout.split()
    for fraction, text in zip(fractions, shown, strict=True):
        exact = int(values_ns[max(int(np.ceil(fraction * len(values_ns))) - 1, 0)])
        assert abs(int(text) - exact) <= exact * 0.04 + 1, fraction


def test_a_slice_without_calls_has_no_quantile(unit: Path) -> None:
    assert subprocess.run([unit, "slices", "0.5"], input=b"", capture_output=True, check=True).stdout == b"0\n"


Compare = Callable[[str, bytes, bytes], str]


@pytest.fixture
def compare(unit: Path, tmp_path: Path) -> Compare:
    def compare_bytes(kind: str, expected: bytes, answer: bytes) -> str:
        (tmp_path / "expected").write_bytes(expected)
        (tmp_path / "answer").write_bytes(answer)
        command = [str(unit), "compare", kind, str(tmp_path / "expected"), str(tmp_path / "answer")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return compare_bytes


def response(values: Any, *, content: bool = False, dtype: int = 1, version: int = 3, alias: str = "scores") -> Any:
    array = np.asarray(values)
    message = protos.PredictResponse()
    tensor = message.outputs[alias]
    tensor.dtype = dtype
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    if content:
        tensor.tensor_content = array.astype({1: "<f4", 2: "<f8"}[dtype]).tobytes()
    elif dtype == 1:
        tensor.float_val.extend(array.ravel().tolist())
    elif dtype == 2:
        tensor.double_val.extend(array.ravel().tolist())
    else:
        tensor.int64_val.extend(array.ravel().tolist())
    message.model_spec.name = "mlp"
    message.model_spec.version.value = version
    message.model_spec.signature_name = "serving_default"
    return message


def wire(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


SCORES = [[0.25, -1.5, 3e-8, 1234.5]]


def test_equal_bytes_are_the_same(compare: Compare) -> None:
    assert compare("predict", wire(response(SCORES)), wire(response(SCORES))) == "same"


def test_last_bits_may_differ(compare: Compare) -> None:
    other = np.asarray(SCORES) * (1 + 5e-5)
    assert compare("predict", wire(response(SCORES)), wire(response(other))) == "same"
    assert compare("predict", wire(response(SCORES, dtype=2)), wire(response(other, dtype=2))) == "same"


def test_a_wrong_value_is_named(compare: Compare) -> None:
    other = np.asarray(SCORES)
    other[0, 1] *= 1 + 3e-4
    assert compare("predict", wire(response(SCORES)), wire(response(other))).startswith(
        "output scores value 1 is -1.500"
    )
    assert compare("predict", wire(response(SCORES, dtype=2)), wire(response(other, dtype=2))).startswith(
        "output scores value 1"
    )


def test_nan_equals_only_nan(compare: Compare) -> None:
    nan = [[float("nan"), 1.0]]
    assert compare("predict", wire(response(nan)), wire(response(nan, content=True))) == "same"
    assert "value 0 is nan" in compare("predict", wire(response([[0.0, 1.0]])), wire(response(nan)))


@pytest.mark.parametrize("dtype", [1, 2])
def test_infinity_equals_only_itself(compare: Compare, dtype: int) -> None:
    infinite, minus = response([[float("inf"), 1.0]], dtype=dtype), response([[float("-inf"), 1.0]], dtype=dtype)
    assert compare("predict", wire(infinite), wire(response([[float("inf"), 1.00001]], dtype=dtype))) == "same"
    for other in (response([[1e30, 1.0]], dtype=dtype), response([[0.0, 1.0]], dtype=dtype), minus):
        assert "value 0 is" in compare("predict", wire(infinite), wire(other))
        assert "value 0 is" in compare("predict", wire(other), wire(infinite))
    assert compare("json", b"[1e999]", b"[5]") == "token 1 is 5, expected 1e999"
    assert compare("json", b"[1e999]", b"[1e9999]") == "same"


def test_packed_unpacked_and_content_are_one(compare: Compare) -> None:
    packed = response([[0.25, -1.5]])
    assert compare("predict", wire(packed), wire(response([[0.25, -1.5]], content=True))) == "same"
    # one float_val field per value, as proto2 writers may send them
    values = b"".join(b"\x2d" + np.float32(value).tobytes() for value in (0.25, -1.5))
    tensor = b"\x08\x01" + b"\x12\x08\x12\x02\x08\x01\x12\x02\x08\x02" + values
    entry = b"\x0a\x06scores\x12" + bytes([len(tensor)]) + tensor
    spec = wire(packed.model_spec)
    unpacked = b"\x12" + bytes([len(spec)]) + spec + b"\x0a" + bytes([len(entry)]) + entry
    assert protos.PredictResponse.FromString(unpacked) == packed
    assert compare("predict", wire(packed), unpacked) == "same"
    assert compare("predict", unpacked, wire(packed)) == "same"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (response([SCORES[0][:3]]), "another shape"),
        (response([SCORES]), "another shape"),
        (response(SCORES, dtype=2), "dtype 2, not 1"),
        (response(SCORES, alias="probabilities"), "output scores is missing"),
        (response(SCORES, version=4), "model_spec is mlp/4/serving_default, expected mlp/3/serving_default"),
    ],
)
def test_structure_is_exact(compare: Compare, other: Any, why: str) -> None:
    assert why in compare("predict", wire(response(SCORES)), wire(other))


def test_missing_values_and_extra_outputs_differ(compare: Compare) -> None:
    expected, fewer, more = response(SCORES), response(SCORES), response(SCORES)
    del fewer.outputs["scores"].float_val[3]
    more.outputs["more"].dtype = 1
    assert "12 bytes of values, not 16" in compare("predict", wire(expected), wire(fewer))
    assert compare("predict", wire(expected), wire(more)) == "2 outputs, expected 1"


def test_order_of_outputs_is_free(compare: Compare) -> None:
    one, two = response(SCORES, alias="a"), response([[1.0]], alias="b")
    ab = wire(one) + wire(two)
    ba = wire(two) + wire(one)
    assert protos.PredictResponse.FromString(ab) == protos.PredictResponse.FromString(ba)
    assert compare("predict", ab, ba) == "same"


def test_other_dtypes_are_compared_as_bytes(compare: Compare) -> None:
    assert compare("predict", wire(response([7, 8], dtype=9)), wire(response([7, 8], dtype=9, version=3))) == "same"
    assert "other bytes" in compare("predict", wire(response([7, 8], dtype=9)), wire(response([7, 9], dtype=9)))


def test_every_cut_of_an_answer_is_refused(compare: Compare) -> None:
    whole = wire(response(SCORES))
    assert len(whole) > 40
    for end in range(0, len(whole), 3):
        assert compare("predict", whole, whole[:end]) != "same", end


def test_an_expectation_must_be_an_answer(compare: Compare) -> None:
    assert compare("predict", b"", b"") == "not a PredictResponse with at least one output"


def test_exact_names_the_first_difference(compare: Compare) -> None:
    assert compare("exact", b"abc", b"abc") == "same"
    assert compare("exact", b"abc", b"abd") == "3 bytes, expected 3; first difference at byte 2"


def test_json(compare: Compare) -> None:
    expected = json.dumps({"predictions": [[0.1, 2e-7, 'a\\"b'], [None, 3]]}).encode()
    same = b'{ "predictions":[[ 0.10000001,2.00001e-07,"a\\\\\\"b"],\n[null, 3.0] ] }\n'
    assert compare("json", expected, same) == "same"
    assert compare("json", expected, same.replace(b"null", b"true")) == "token 13 is true, expected null"
    assert compare("json", expected, same.replace(b"0.1", b"0.2")).startswith("token 5 is 0.2")
    assert compare("json", expected, same[:-3]) == "token 18 is , expected }"


def test_the_floats_at_the_end_of_a_binary_answer_are_compared(unit: Path, tmp_path: Path) -> None:
    values = np.array([0.1, -3.0, 1e-9], "<f4")
    answers = {
        "values": values.tobytes(),
        "close": b"any head" + (values * np.float32(1.00001)).tobytes(),
        "wrong": b"any head" + (values * np.float32(1.01)).tobytes(),
        "short": values.tobytes()[1:],
    }
    for name, body in answers.items():
        (tmp_path / name).write_bytes(body)

    def compare_floats(answer: str) -> str:
        command = [str(unit), "compare", "floats", "values", answer]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert compare_floats("values") == "same"
    assert compare_floats("close") == "same"
    assert compare_floats("wrong") == "value 0 is 0.101, expected 0.1"
    assert compare_floats("short") == "11 bytes, expected 12 of values"


def test_alternatives_are_named_and_never_mixed(unit: Path, tmp_path: Path) -> None:
    """Two versions of a model answer differently: either is right, one's values under the other's number are not."""
    bodies = {
        "one": response([[1.0, 2.0]], version=1).SerializeToString(),
        "two": response([[5.0, 6.0]], version=2).SerializeToString(),
        "mixed": response([[5.0, 6.0]], version=1).SerializeToString(),
        "close": response([[5.000001, 6.0]], version=2).SerializeToString(),
        "three": response([[1.0, 2.0]], version=3).SerializeToString(),
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)

    def compare_alternatives(answer: str) -> str:
        command = [str(unit), "compare", "predict", "one", "two", answer]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert compare_alternatives("one") == "same"
    assert compare_alternatives("two") == "same as 1"
    assert compare_alternatives("close") == "same as 1"
    assert compare_alternatives("mixed") == "output scores value 0 is 5, expected 1"
    assert "/3/" in compare_alternatives("three")
