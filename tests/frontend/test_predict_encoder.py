"""The hot path says the same as the official classes for responses, and its tables stay bounded."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import InputSpec, LaneSpec
from ringserve.config.protos import PredictResponse
from ringserve.frontend.lanes import Lane
from ringserve.frontend.predict_codec import PredictEncoder
from ringserve.frontend.tensor_proto import Tensor, encode, payload_tag
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import DTYPES
from tests.frontend.fakes import make_output


def lane_of(*outputs: str, batchable: bool = True, version: int = 7) -> Lane:
    return Lane(LaneSpec("m", version, "sig", (InputSpec("x", dt.FLOAT, ()),), outputs, batchable))


def sample(dtype: int, shape: tuple[int, ...]) -> Any:
    rng = random.Random(dtype)
    count = int(np.prod(shape))
    if dtype == dt.STRING:
        return [rng.randbytes(index % 4) for index in range(count)]
    entry = DTYPES[dtype]
    if dtype == dt.BOOL:
        return np.array([rng.randrange(2) for _ in range(count)], dtype=bool)
    return np.array([rng.randrange(-2, 2) for _ in range(count)]).astype(np.int8).astype(entry.numpy)


@pytest.mark.parametrize("tensor_content", [False, True])
@pytest.mark.parametrize("inner", [(), (3,), (2, 20), (0,)], ids=str)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_response_is_what_the_official_classes_say(dtype: int, inner: tuple[int, ...], tensor_content: bool) -> None:
    data = sample(dtype, (5, *inner))
    width = int(np.prod(inner))
    part = data[2 * width : 4 * width]  # rows 2 and 3
    expected = PredictResponse()
    expected.model_spec.name = "m"
    expected.model_spec.version.value = 7
    expected.model_spec.signature_name = "sig"
    raw = part if isinstance(part, list) else np.ascontiguousarray(part).tobytes()
    tensor = Tensor(dtype, (2, *inner), raw)
    expected.outputs["y"].ParseFromString(encode(tensor, tensor_content=tensor_content))

    encoder = PredictEncoder(tensor_content=tensor_content)
    lane = lane_of("y")
    output = make_output(dtype, (5, *inner), data, batchable=True)
    for _ in range(2):  # the second time from the kept pieces
        assert PredictResponse.FromString(encoder.encode(lane, [output], 2, 2)) == expected


@pytest.mark.parametrize("tensor_content", [False, True])
def test_several_outputs(tensor_content: bool) -> None:
    outputs = [
        make_output(dt.FLOAT, (4, 2), np.arange(8, dtype="<f4"), batchable=True),
        make_output(dt.STRING, (4,), [b"a", b"b", b"", b"d" * 200], batchable=True),
        make_output(dt.INT64, (4, 1), np.arange(4, dtype="<i8") - 2, batchable=True),
        make_output(dt.DOUBLE, (4,), np.arange(4, dtype="<f8"), batchable=True),
    ]
    encoder = PredictEncoder(tensor_content=tensor_content)
    lane = lane_of("d", "f", "i", "s")
    for _ in range(2):
        response = PredictResponse.FromString(encoder.encode(lane, outputs, 1, 3))
        assert sorted(response.outputs) == ["d", "f", "i", "s"]
        assert [dim.size for dim in response.outputs["d"].tensor_shape.dim] == [3, 2]
        if tensor_content:
            assert response.outputs["f"].tensor_content == b"\x01\x00\xc8\x01" + b"b" + b"d" * 200
            assert response.outputs["s"].tensor_content == struct.pack("<3d", 1, 2, 3)
        else:
            assert list(response.outputs["d"].float_val) == [2, 3, 4, 5, 6, 7]
            assert list(response.outputs["f"].string_val) == [b"b", b"", b"d" * 200]
            assert list(response.outputs["i"].int64_val) == [-1, 0, 1]
            assert list(response.outputs["s"].double_val) == [1, 2, 3]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)], ids=str)
def test_a_lane_that_is_not_batchable_answers_whole(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype="<f4")
    output = make_output(dt.FLOAT, shape, array, batchable=False)
    encoder = PredictEncoder()
    response = PredictResponse.FromString(encoder.encode(lane_of("y", batchable=False), [output], 0, 1))
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == list(shape)
    assert response.outputs["y"].HasField("tensor_shape")
    assert list(response.outputs["y"].float_val) == array.tolist()


def test_no_outputs_and_version_zero() -> None:
    response = PredictResponse.FromString(PredictEncoder().encode(lane_of(version=0), [], 0, 1))
    assert response.model_spec.HasField("version")
    assert response.model_spec.version.value == 0
    assert not response.outputs


def test_shapes_of_one_lane_do_not_mix_and_are_bounded() -> None:
    encoder, lane = PredictEncoder(), lane_of("y")
    for inner in [(2, 3), (3, 2), (6,), *((width,) for width in range(1, 200))]:
        array = np.arange(int(np.prod(inner)), dtype="<f4")
        output = make_output(dt.FLOAT, (1, *inner), array, batchable=True)
        response = PredictResponse.FromString(encoder.encode(lane, [output], 0, 1))
        assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [1, *inner]
        assert list(response.outputs["y"].float_val) == array.tolist()
        assert len(lane.answers) <= 64


@pytest.mark.parametrize("tensor_content", [False, True])
@pytest.mark.parametrize("outputs_count", [1, 3])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_answers_made_together_are_those_made_one_by_one(dtype: int, outputs_count: int, tensor_content: bool) -> None:
    encoder = PredictEncoder(tensor_content=tensor_content)
    lane = lane_of(*"abc"[:outputs_count])
    outputs = [
        make_output(each, (6, 3), sample(each, (6, 3)), batchable=True) for each in (dtype, dt.FLOAT, dt.DOUBLE)
    ][:outputs_count]
    rows_first = [4, 0, 2]
    one_by_one = [encoder.encode(lane, outputs, row_first, 2) for row_first in rows_first]
    together = encoder.encode_alike(lane, outputs, rows_first, 2)
    lengths_differ = payload_tag(dtype, tensor_content=tensor_content) is None
    assert (together is None) == lengths_differ
    if together is not None:
        head, bodies, tail = together
        assert [head + body + tail for body in bodies] == one_by_one


def test_answers_that_are_long_or_not_by_rows_are_made_one_by_one() -> None:
    encoder, lane = PredictEncoder(), lane_of("y")
    long = make_output(dt.FLOAT, (4, 1_025), np.zeros(4 * 1_025, "<f4"), batchable=True)
    assert encoder.encode_alike(lane, [long], [0, 1], 1) is None
    whole = make_output(dt.FLOAT, (2, 2), np.zeros(4, "<f4"), batchable=False)
    assert encoder.encode_alike(lane, [whole], [0, 1], 1) is None
