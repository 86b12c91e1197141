"""Predict with npy files: arrays of every type there and back, which form the answer takes, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from ringserve.broker.messages import Failure
from ringserve.frontend import npy
from ringserve.frontend.rest_api import make_app
from ringserve.shm import dtype as dt
from tests.frontend.rest.served import (
    DTYPES,
    CountingTally,
    FakeExchange,
    Response,
    RestLoopback,
    call,
    default_model,
    head_of,
)

NPY = "application/x-npy"


def saved(array: npt.ArrayLike, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array), **options)
    return out.getvalue()


def loaded(body: bytes) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(body))
    return array


def post(body: bytes, model: str = "default", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(None, "POST", f"/v1/models/{model}:predict", body, {"Content-Type": NPY} | named)


def with_head(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode() + data


def test_an_array_is_answered_with_an_array() -> None:
    answer = post(saved(np.array([1.0, 2.0, 5.0], np.float32)))
    assert (answer.status, answer.headers["content-type"]) == (200, NPY)
    assert loaded(answer.body).tolist() == [2.5, 3.0, 4.5]
    assert loaded(answer.body).dtype == np.float32


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "string"])
def test_every_dtype_comes_back(name: str) -> None:
    numpy_type = dt.dtype_of(DTYPES[name]).numpy
    assert numpy_type is not None
    array = np.array([[0, 1, 1], [1, 0, 1]], numpy_type)
    answer = post(saved(array), f"echo_{name}")
    assert answer.status == 200, answer.body
    back = loaded(answer.body)
    assert back.view(numpy_type).tobytes() == array.tobytes()
    assert back.shape == array.shape
    assert (back.dtype == numpy_type) or name == "bfloat16"


_STANDARD = st.one_of(
    np_st.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    np_st.integer_dtypes(endianness="?"),
    np_st.unsigned_integer_dtypes(endianness="?"),
    np_st.complex_number_dtypes(sizes=(64, 128), endianness="?"),
    np_st.boolean_dtypes(),
)


@given(
    np_st.arrays(_STANDARD, np_st.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0)]),
)
def test_any_plain_array_is_read_and_written(array: npt.NDArray[Any], turned: bool, version: tuple[int, int]) -> None:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asfortranarray(array) if turned and array.ndim else array, version=version)
    native = array.astype(array.dtype.newbyteorder("="))
    expected = dt.dtype_of_numpy(native.dtype).number
    tensor = npy.read(out.getvalue(), expected)
    assert tensor is not None
    assert not isinstance(tensor, Failure)
    assert (tensor.dtype, tensor.shape) == (expected, array.shape)
    assert not isinstance(tensor.data, list)
    assert bytes(tensor.data) == np.ascontiguousarray(native).tobytes()
    head = npy.head_of(tensor.dtype, tensor.shape)
    assert isinstance(head, bytes)
    back = loaded(head + bytes(tensor.data))
    assert back.dtype == native.dtype
    assert back.shape == native.shape
    assert back.tobytes() == native.tobytes()


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=5))
def test_strings_go_in(values: list[bytes]) -> None:
    tensor = npy.read(saved(np.array(values)), dt.STRING)
    assert not isinstance(tensor, Failure)
    assert tensor is not None
    assert tensor.data == np.array(values).tolist()


def test_strings_are_answered_as_json_only() -> None:
    body = saved(np.array(["a", "é"]))
    assert post(body, "echo_string").error == (
        "strings do not go into an npy file; ask for JSON with Accept: application/json"
    )
    assert post(body, "echo_string", Accept="application/json").json == {"predictions": ["a", "é"]}


def test_a_plain_body_is_not_copied() -> None:
    body = saved(np.arange(6, dtype=np.float32))
    tensor = npy.read(body, dt.FLOAT)
    assert not isinstance(tensor, Failure)
    assert tensor is not None
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is body


def test_who_says_what_the_answer_is() -> None:
    body = saved(np.array([1.0], np.float32))
    rows = {"predictions": [2.5]}
    assert post(body, Accept="application/json").json == rows
    assert loaded(post(body, Accept="*/*").body).tolist() == [2.5]
    assert loaded(post(body, Accept="application/json, application/x-npy").body).tolist() == [2.5]
    assert loaded(post(body, Content_Type="Application/X-NPY; x=y").body).tolist() == [2.5]
    text = json.dumps({"instances": [1.0]})
    answer = call(None, "POST", "/v1/models/default:predict", text, {"Accept": NPY})
    assert answer.headers["content-type"] == NPY
    assert loaded(answer.body).tolist() == [2.5]
    assert call(None, "POST", "/v1/models/default:predict", text, {"Accept": "*/*"}).json == rows


def test_one_array_for_several_inputs_or_outputs() -> None:
    body = saved(np.zeros((1, 2), np.float32))
    hint = "use JSON, or binary tensors of the Open Inference protocol"
    assert post(body, "two").error == (
        f"an npy file is one array, and signature serving_default has 2 inputs: a, b; {hint}"
    )
    text = json.dumps({"instances": [{"a": [1.0], "b": 1}]})
    answer = call(None, "POST", "/v1/models/two:predict", text, {"Accept": NPY})
    assert answer.status == 400
    assert answer.error == f"an npy file is one array, and signature serving_default has 2 outputs: a, b; {hint}"


WRONG: list[tuple[bytes, str]] = [
    (b"", "the body is no npy file: it does not begin with \\x93NUMPY"),
    (b'{"instances": [1.0]}', "the body is no npy file: it does not begin with \\x93NUMPY"),
    (b"\x93NUMPY\x03\x00", "only versions 1.0 and 2.0 of the npy format are read"),
    (b"\x93NUMPY\x01\x00", "the npy file has no whole head of at most 4096 bytes"),
    (b"\x93NUMPY\x01\x00\xff\x00{", "the npy file has no whole head of at most 4096 bytes"),
    (with_head("x" * 5000), "the npy file has no whole head of at most 4096 bytes"),
    (with_head("{}"), "the head of the npy file cannot be read: "),
    (with_head("(" * 3000), "the head of the npy file cannot be read: "),
    (with_head("__import__('os')"), "the head of the npy file cannot be read: "),
    (with_head("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}"),
     "the head of the npy file cannot be read: "),
    (with_head("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1)}", b"1234"),
     "the head of the npy file has a shape of what is no number"),
    (with_head("{'descr': '<f4', 'fortran_order': False, 'shape': (1, [])}", b"1234"),
     "the head of the npy file cannot be read: "),
    (with_head("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}", b"1234"),
     "the head of the npy file cannot be read: "),
    (with_head("{'descr': '\\\\d', 'fortran_order': False, 'shape': (1,)}", b"1234"),
     "the head of the npy file cannot be read: "),
    (with_head("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
     "the head of the npy file has an impossible shape: (-1,)"),
    (with_head(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 4)}}"),
     f"the head of the npy file has an impossible shape: ({2**62}, 4)"),
    (with_head("{'descr': '|S0', 'fortran_order': False, 'shape': (99999999999,)}"),
     "the npy file has elements of |S0, which no tensor can have"),
    (with_head("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}", b"12345678"),
     "the npy file has elements of datetime64[s], which no tensor can have"),
    (with_head("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", b"1234"),
     "the npy file has elements of [('a', '<f4')], which no tensor can have"),
    (saved(np.zeros((2, 3), np.float32))[:-1],
     "the npy file has 23 bytes of data, and an array of float32 and shape (2, 3) has 24"),
    (saved(np.zeros(1, np.float32)) + b"x", "the npy file has 5 bytes of data, and an array of float32 and shape (1,)"),
    (with_head("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", b"\x02"),
     "the npy file has bools that are neither 0 nor 1"),
    (saved(np.zeros(1)), "Expects arg[0] to be float but double is provided (input: x)"),
    (saved(np.zeros((1, 2), np.int32)), "Expects arg[0] to be float but int32 is provided (input: x)"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(body: bytes, text: str) -> None:
    answer = post(body)
    assert answer.status == 400
    assert answer.error.startswith(text)
    assert answer.headers["content-type"] == "application/json"


class Bomb:
    """What runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_unpickled() -> None:
    head = with_head("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([Bomb()]))
    assert post(head).error == (
        "the npy file holds Python objects, which are not read; send numbers, bools or strings"
    )


def test_a_dtype_is_not_taken_for_another_of_the_same_shape() -> None:
    app = make_app(RestLoopback(model=default_model))
    headers = {"Content-Type": NPY}
    for array, status in ((np.zeros(3, np.float32), 200), (np.zeros(3), 400), (np.zeros(3, np.float32), 200)):
        answer = call(app, "POST", "/v1/models/default:predict", saved(array), headers)
        assert answer.status == status


def test_models_are_found_first() -> None:
    assert post(b"nonsense", "nope").status == 404


def test_compressed_and_turned_bodies_are_read_aside() -> None:
    array = np.arange(20_000, dtype=">f4").reshape(100, 200).T
    answer = post(gzip.compress(saved(array)), "echo_float", Content_Encoding="gzip")
    assert np.array_equal(loaded(answer.body), array)
    assert np.array_equal(loaded(post(saved(array), "echo_float").body), array)
    assert post(b"no gzip", Content_Encoding="gzip").error.startswith("the body is no npy file")


def test_it_is_counted_and_cancelled_as_a_predict() -> None:
    tally = CountingTally()
    client = RestLoopback(model=None)
    app = make_app(client, tally=tally)
    head = head_of("POST", "/v1/models/default:predict", {"Content-Type": NPY, "X-Request-Timeout": "5"})
    exchange = FakeExchange(head, saved(np.array([1.0], np.float32)))
    app.handle(exchange)
    ((lane, rows, payloads, timeout_ns, _),) = client.requests
    assert (lane.spec.model, rows, payloads) == ("default", 1, [struct.pack("<f", 1.0)])
    assert 0 < timeout_ns <= 5_000_000_000
    assert exchange.cancel is not None
    exchange.cancel()
    assert client.cancelled == [1]
    assert tally.requests == [("REST", "predict", "default", 1)]


def test_types_without_a_name_keep_their_bytes() -> None:
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    answer = post(saved(array), "echo_bfloat16")
    assert loaded(answer.body).view(ml_dtypes.bfloat16).tolist() == [1.5, -2.0]
    assert "which no tensor can have" in post(saved(array), "echo_float").error


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("point", [0x110000, 0xFFFFFFFF])
def test_strings_of_what_is_no_character_are_refused(order: str, point: int) -> None:
    """numpy itself would fail with a SystemError."""
    body = bytearray(saved(np.array(["ab", "c"], f"{order}U2")))
    body[-4:] = struct.pack(f"{order}I", point)
    answer = npy.read(bytes(body), 0)
    assert isinstance(answer, Failure)
    assert "no Unicode" in answer.text
    body[-4:] = struct.pack(f"{order}I", 0x10FFFF)
    assert not isinstance(npy.read(bytes(body), 0), Failure)


def test_who_sends_a_bool_for_a_size_changes_nothing_for_others() -> None:
    """True is equal to 1, with its hash: what a frontend remembers by a shape must not be made of it."""
    app = make_app(RestLoopback(model=default_model))
    headers = {"Content-Type": NPY}
    forged = with_head("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", bytes(4))
    for _ in range(2):
        assert call(app, "POST", "/v1/models/default:predict", forged, headers).status == 400
        answer = call(app, "POST", "/v1/models/default:predict", saved(np.zeros(1, np.float32)), headers)
        assert answer.status == 200
        assert loaded(answer.body).shape == (1,)
    assert call(app, "POST", "/v1/models/default:predict", b'{"instances":[1.0]}').status == 200


def test_a_files_head_is_written_of_numbers() -> None:
    npy.head_of.cache_clear()
    assert npy.head_of(dt.FLOAT, (True, 3)) == npy.head_of(dt.FLOAT, (1, 3)) == saved(np.zeros((1, 3), "<f4"))[:-12]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", ["1L", "1 L", "0in(1,)", "1_0", "0x1"])
def test_heads_that_python_would_warn_of_are_not_read(size: str) -> None:
    """A warning goes into the log as the client wrote it."""
    found = npy.read(with_head(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},)}}", b"1234"), dt.FLOAT)
    assert isinstance(found, Failure)
    assert found.text.startswith("the head of the npy file cannot be read: ")
