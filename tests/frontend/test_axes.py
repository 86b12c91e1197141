"""Goal: a tensor of more axes than can be carried is refused with one text, whatever it came in. Method: the same
shapes through each decoder and `LaneTable.bind`; what is accepted is read back as a worker reads it."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, Failure
from ringserve.frontend import npy
from ringserve.frontend.lanes import LaneTable
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.shm import dtype as dt
from ringserve.shm.tensor import AXES_MAX, view
from tests.frontend.fakes import HALF_PLUS_TWO, catalog_of, version_info
from tests.frontend.rest.served import Response, call

PREDICT = "/v1/models/default:predict"


def npy_file(axes: int, descr: str = "<f4", *, fortran: bool = False) -> bytes:
    data = b"\0" * np.dtype(descr).itemsize
    head = f"{{'descr':'{descr}','fortran_order':{fortran},'shape':({'1,' * axes})}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def nested(axes: int) -> str:
    return "[" * axes + "1.0" + "]" * axes


def rest(target: str, body: bytes, content_type: str = "application/json") -> Response:
    return call(None, "POST", target, body, {"Content-Type": content_type})


def in_npy(axes: int) -> Response:
    return rest(PREDICT, npy_file(axes), "application/x-npy")


def in_turned_npy(axes: int) -> Response:
    return rest(PREDICT, npy_file(axes, ">f4"), "application/x-npy")


def in_fortran_npy(axes: int) -> Response:
    return rest(PREDICT, npy_file(axes, fortran=True), "application/x-npy")


def in_rows(axes: int) -> Response:
    return rest(PREDICT, f'{{"instances":{nested(axes)}}}'.encode())


def in_named_rows(axes: int) -> Response:
    return rest(PREDICT, f'{{"instances":[{{"x":{nested(axes - 1)}}}]}}'.encode())


def in_columns(axes: int) -> Response:
    return rest(PREDICT, f'{{"inputs":{nested(axes)}}}'.encode())


def in_open_inference(axes: int) -> Response:
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * axes, "data": [1.0]}]}
    return rest("/v2/models/default/infer", json.dumps(asked).encode())


def in_binary_open_inference(axes: int) -> Response:
    about = {"name": "x", "datatype": "FP32", "shape": [1] * axes, "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [about]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return call(None, "POST", "/v2/models/default/infer", text + b"\0\0\0\0", headers)


WAYS = [
    in_npy, in_turned_npy, in_fortran_npy, in_rows, in_named_rows, in_columns, in_open_inference,
    in_binary_open_inference,
]  # fmt: skip


@pytest.mark.parametrize("ask", WAYS)
def test_over_rest(ask: Any) -> None:
    for axes in (AXES_MAX + 1, 100, 254):
        answer = ask(axes)
        assert answer.status == 400
        assert answer.error.endswith(f" has {axes} axes, and tensors of more than {AXES_MAX} axes are not served")
    assert ask(255).status == 400
    assert "axes" not in str(ask(AXES_MAX).body)


@pytest.mark.parametrize("descr", ["|S1", "<U1", ">i8"])
def test_npy_files_that_must_be_turned(descr: str) -> None:
    assert not isinstance(npy.read(npy_file(AXES_MAX, descr), dt.FLOAT), Failure)
    for axes in (AXES_MAX + 1, 254, 255):
        failure = npy.read(npy_file(axes, descr), dt.FLOAT)
        assert isinstance(failure, Failure)
        assert failure.text == f"the array has {axes} axes, and tensors of more than {AXES_MAX} axes are not served"


def test_over_grpc() -> None:
    from ringserve.config.protos import PredictRequest

    catalog = catalog_of(version_info("m", 1, {"serving_default": HALF_PLUS_TWO}))
    decoder = PredictDecoder(catalog, LaneTable(), tensor_bytes_max=2**20)
    for axes in (AXES_MAX, AXES_MAX + 1, 254, 255):
        request = PredictRequest()
        request.model_spec.name = "m"
        tensor = request.inputs["x"]
        tensor.dtype = dt.FLOAT
        for _ in range(axes):
            tensor.tensor_shape.dim.add(size=1)
        tensor.float_val.append(1.0)
        found = decoder.decode(request.SerializeToString())
        text = f"input x has {axes} axes, and tensors of more than {AXES_MAX} axes are not served"
        if axes == AXES_MAX:
            assert not isinstance(found, Failure)
        else:
            assert found == Failure(Code.INVALID_ARGUMENT, text if axes < 255 else "tensor parsing error: x")


def test_the_limit_is_one_that_every_array_may_have() -> None:
    assert view(memoryview(bytes(4)), 0, dt.FLOAT, (1,) * AXES_MAX).ndim == AXES_MAX
