"""Arrays read by simdjson against Python's json and numpy: the same tensors, and never one where the text is wrong."""

from __future__ import annotations

import json
import threading
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings

from ringserve.broker.messages import Failure
from ringserve.frontend import json_blocks, json_exact, json_quick
from ringserve.frontend.catalog import SignatureView
from ringserve.frontend.json_blocks import block_of, outline, read_block
from ringserve.frontend.json_predict import Inputs, read_body, read_inputs
from ringserve.frontend.json_quick import quick_body, quick_inputs
from tests.frontend.fakes import catalog_of, signature_def, version_info
from tests.frontend.rest.served import DTYPES

FLOAT = DTYPES["float"]
DOUBLE = DTYPES["double"]


def read(text: bytes, dtype: int = DOUBLE) -> npt.NDArray[Any] | None:
    """The array that `text` is, put into the middle of a body."""
    return read_block(b"xx" + text + b"yyy", (2, 2 + len(text)), dtype)


@pytest.fixture(params=[131_072, 64, 1], ids=["whole", "pieces", "tiny pieces"])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Arrays above this are read piece by piece."""
    monkeypatch.setattr(json_blocks, "PIECE_BYTES", request.param)
    size: int = request.param
    return size


REGULAR = [
    b"[1]",
    b"[1,2.5,3]",
    b"[[1,2],[3,4],[5,6]]",
    b"[ [ [ 1 ] ,\n[ 2 ] ] ]",
    b"[[1e5,-0.25e-3]]",
    b"[[[[1,2],[3,4]]],[[[5,6],[7,8]]]]",
    b"[" + b",".join([b"[1.5,2,3]"] * 1000) + b"]",
    b"[" + b"7," * 999 + b"8]",
    b"[18446744073709551615,-9223372036854775808,0]",
    b"[-0,-0.0,0]",
    b"[1e308,5e-324,2.2250738585072011e-308,0.1,123456789012345678]",
    json.dumps(np.random.default_rng(1).normal(size=(3, 4, 5)).tolist()).encode(),
    json.dumps(np.random.default_rng(2).normal(size=(40, 3)).tolist(), indent=3).encode(),
]


@pytest.mark.parametrize("text", REGULAR, ids=[str(n) for n in range(len(REGULAR))])
def test_regular_arrays(text: bytes, piece_bytes: int) -> None:
    expected = np.array(json.loads(text), np.float64)
    array = read(text)
    if piece_bytes == 1:
        assert array is None or np.array_equal(array, expected)  # no number fits a piece; that is refused
        return
    assert array is not None
    assert (array.shape, array.dtype) == (expected.shape, np.dtype(np.float64))
    assert array.tobytes() == expected.tobytes()
    single = read(text, FLOAT)
    assert single is not None
    with np.errstate(over="ignore"):
        assert single.tobytes() == expected.astype(np.float32).tobytes()


SPECIAL = [b"[NaN]", b"[1,NaN,-Infinity,Inf,-Inf,Infinity,-NaN]", b"[[1.5, NaN ],[ Infinity,2]]", b"[[[NaN]],[[1]]]"]


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("text", SPECIAL)
def test_not_a_number_and_the_infinities(text: bytes) -> None:
    array = read(text)
    expected = np.array(json_exact.parse(text))
    if array is not None or len(text) <= json_blocks.PIECE_BYTES:
        assert array is not None
        np.testing.assert_array_equal(array, expected)
    assert read(text, DTYPES["int32"]) is None


IRREGULAR = [
    *(b"[]", b"[[],[]]", b"[ \n ]", b"[[ ]]", b"[[1],[]]", b"[1,[2]]", b"[[1],2]", b"[[1,2],[3]]"),
    *(b"[true]", b'["1"]', b"[null]", b"[{}]"),
    *(b"[1,]", b"[,1]", b"[1 2]", b"[[1,2]3,[4,5]]", b"[[1,]2,[3,4]]", b"[[1,2],3[,4]]", b"[1][2]", b"[1]]", b"[[1]"),
    *(b"[01]", b"[1.]", b"[--1]", b"[1e400]", b"[N]", b"[x]", b"[[1],[2]", b"[1],[2]", b"[1,2]]", b"[[1,2]", b"[+1]"),
    *(b"[NaN1]", b"[1NaN]", b"[Infinit]", b"[NaNNaN]", b"[-]", b"[Infinity Infinity]", b"[nan]", b"[--Inf]"),
    *(b"[[[1]],[[2],[3]]]", b"[[1,[2]],[3]]", b"[[[1,2]],[[3],[4]]]", b"[1,[2],3]", b"[[1],[2],3]", b"[\x0c1]"),
]


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("text", IRREGULAR)
def test_what_is_no_regular_array_of_numbers(text: bytes) -> None:
    for name in ("float", "double", "int32", "uint64"):
        assert read(text, DTYPES[name]) is None


BRACKETS = st.lists(
    st.sampled_from([b"[", b"]", b",", b"1", b"2.5", b"-", b" ", b"NaN", b"Inf", b"[1,2]", b"e3"]), max_size=24
).map(b"".join)


@settings(max_examples=1500, deadline=None)
@given(BRACKETS, st.sampled_from([131_072, 16, 7]))
@example(b"[1,2],[3,4", 16)
@example(b"1],[2", 7)
def test_no_tensor_of_what_is_no_json(inner: bytes, size: int) -> None:
    text = b"[" + inner + b"]"
    before, json_blocks.PIECE_BYTES = json_blocks.PIECE_BYTES, size  # type: ignore[misc]
    try:
        array = read(text)
    finally:
        json_blocks.PIECE_BYTES = before  # type: ignore[misc]
    if array is None:
        return
    expected = json_exact.parse(text + b"!")
    assert json_exact.parse(b"[" + text + b",1]")[0] is not None, "the value ends where the text does"
    assert np.array(expected).shape == array.shape
    np.testing.assert_array_equal(np.array(expected, np.float64), array)


NUMPY: dict[str, Any] = {**{name: name for name in DTYPES}, "half": "float16", "bfloat16": ml_dtypes.bfloat16,
                         "float": "float32", "double": "float64"}  # fmt: skip
NUMBERS = (
    st.integers(-3, 300)
    | st.sampled_from([2**31, -(2**31) - 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, -(2**63), 65535, 65536])
    | st.floats(allow_nan=False)
)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(max_examples=600, deadline=None)
@given(st.data(), SHAPES, st.sampled_from([name for name in DTYPES if name not in ("bool", "string", "complex64")]))
def test_every_dtype_as_the_ordinary_way_reads_it(data: Any, shape: list[int], name: str) -> None:
    ints = NUMPY[name] not in ("float32", "float64", "float16", ml_dtypes.bfloat16)
    leaves = st.integers(0, 127) if ints and data.draw(st.booleans()) else NUMBERS
    count = int(np.prod(shape))
    flat: Any = data.draw(st.lists(leaves, min_size=count, max_size=count))
    nested = flat
    for size in reversed(shape[1:]):
        nested = [nested[at : at + size] for at in range(0, len(nested), size)]
    text = json.dumps(nested).encode()
    array = read(text, DTYPES[name])
    body = read_body(b'{"inputs":' + text + b"}")
    assert body is not None
    assert not isinstance(body, Failure)
    ordinary = read_inputs(body, one_input(DTYPES[name]))
    if isinstance(ordinary, Failure):
        assert array is None
        return
    assert isinstance(ordinary, Inputs)
    tensor = ordinary.tensors["x"]
    if array is None:
        assert any(type(number) is int and not -(2**63) <= number < 2**64 for number in flat), "only these are left"
        return
    assert array.shape == tensor.shape == tuple(shape)
    assert array.dtype == np.dtype(NUMPY[name])
    assert array.tobytes() == bytes(tensor.data)  # type: ignore[arg-type]


def one_input(dtype: int) -> SignatureView:
    return signature({"x": (dtype, None)})


def signature(inputs: dict[str, Any]) -> SignatureView:
    catalog = catalog_of(version_info("m", 1, {"serving_default": signature_def(inputs, {"y": (1, None)})}))
    servable = catalog.resolve("m")
    assert not isinstance(servable, Failure)
    return servable.signatures["serving_default"]


# ------------------------------------------------------------------------------------------------------ whole bodies

LONG = json.dumps(np.arange(100).reshape(2, 50).tolist()).encode()
BODIES: list[tuple[bytes, bool]] = [
    # body, whether it is read quickly
    (b'{"instances":%b}', True),
    (b' { "signature_name" : "s" , "inputs" : %b } ', True),
    (b'{"inputs":%b,"signature_name":"serving_default"}', True),
    (b'{"inputs":{"x":%b}}', True),
    (b'{"instances":[' + b" " * 200 + b"]}", False),
    (b'{"inputs":[[' + b" " * 200 + b"],[]]}", False),
    (b'{"instances":[{"x":%b}]}', True),
    (b'{"instances":[{"x":%b},{"x":%b}]}', True),
    (b'{"instances":%b,"more":[1,2,{"a":"b"}]}', True),
    # an array that is not needed was not looked at, and may be no JSON
    (b'{"instances":%b,"more":%b}', False),
    (b'{"instances":[1],"more":%b}', False),
    (b'{"instances":%b,%b:1}', False),
    (b'{%b:1,"instances":%b}', False),
    # the first of equal keys counts
    (b'{"instances":%b,"instances":[1]}', False),
    (b'{"instances":[1],"instances":%b}', False),
    (b'{"signature_name":"a","signature_name":"b","inputs":%b}', False),
    (b'{"inputs":{"x":[1],"x":%b}}', False),
    # not the form of a predict
    (b'{"inputs":%b,"instances":1}', False),
    (b'{"signature_name":%b,"inputs":1}', False),
    (b'{"instances":[{"x":%b,"y":1}]}', False),
    (b'{"instances":[{"x":%b},{"x":[[1]]}]}', False),
    (b'{"instances":[{"x":[%b]}]}', True),
    (b'{"instances":[%b,["\\u00010"]]}', False),
    (b'["instances",%b]', False),
    (b'{"instances":%b', False),
    (b'{"instances":%b}}', False),
    (b'{"instances":%b}garbage', False),
    (b'{"instances":%b]}', False),
    (b'{"instances":1 %b}', False),
    (b'{"instances":-%b}', False),
    (b'\xef\xbb\xbf{"instances":%b}', False),
    (b'{"instances":%b,"x":"\xff"}', False),
    (b'{"instances":%b,"x":"\x010"}', False),
]


@pytest.mark.parametrize(("form", "quickly"), BODIES, ids=[str(n) for n in range(len(BODIES))])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_bodies(form: bytes, quickly: bool, again: bool) -> None:
    """What is read quickly is what is read otherwise; the second time by its frame alone."""
    body = form.replace(b"%b", LONG)
    json_quick._FRAMES.clear()
    view = one_input(FLOAT)
    if again:
        quick_tensors(body, view)
    found = quick_tensors(body, view)
    assert (found is not None) == quickly
    ordinary = read_body(body)
    if found is not None:
        assert ordinary is not None
        assert not isinstance(ordinary, Failure)
        expected = read_inputs(ordinary, view)
        assert isinstance(expected, Inputs)
        assert found.by_row == expected.by_row
        assert found.tensors["x"].shape == expected.tensors["x"].shape
        assert bytes(found.tensors["x"].data) == bytes(expected.tensors["x"].data)  # type: ignore[arg-type]


def quick_tensors(body: bytes, view: SignatureView) -> Inputs | None:
    quick = quick_body(body)
    return None if quick is None else quick_inputs(quick, view)


PIECES = st.lists(
    st.sampled_from(
        [
            *(b'{"instances":', b'{"inputs":', b'"x":', b'"y":', b"{", b"}", b"[", b"]", b",", b":", b"1", b"NaN"),
            *(LONG, LONG, b"[%b]" % LONG, b'"signature_name":"s"', b'"\\n"', b'"a"', b"null", b" "),
        ]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=1500, deadline=None)
@given(PIECES)
@example(b'{"inputs":{"x":%b,"y":%b}}' % (LONG, LONG))
@example(b'{"instances":[{"x":%b,"y":1},{"y":2,"x":%b}]}' % (LONG, LONG))
def test_the_quick_way_never_says_otherwise(body: bytes) -> None:
    for view in (one_input(FLOAT), signature({"x": (FLOAT, None), "y": (DTYPES["int32"], None)})):
        found = quick_tensors(body, view)
        again = quick_tensors(body, view)
        assert (found is None) == (again is None)
        if found is None or again is None:
            continue
        ordinary = read_body(body)
        assert ordinary is not None
        assert not isinstance(ordinary, Failure)
        expected = read_inputs(ordinary, view)
        assert isinstance(expected, Inputs)
        for each in (found, again):
            assert each.by_row == expected.by_row
            assert each.tensors.keys() == expected.tensors.keys()
            for alias, tensor in each.tensors.items():
                assert tensor[:2] == expected.tensors[alias][:2]
                assert bytes(tensor.data) == bytes(expected.tensors[alias].data)  # type: ignore[arg-type]


def test_marks() -> None:
    found = outline(b'{"instances":%b,"x":{"y":%b}}' % (LONG, LONG))
    assert found is not None
    assert [block_of(found.members["instances"]), block_of(found.members["x"]["y"])] == [0, 1]
    ordinary: list[Any] = ["", "a", 1, None, [], "\udcff"]
    assert [block_of(value) for value in ordinary] == [-1] * 6


def test_bodies_of_many_strings_are_given_up_early() -> None:
    strings = b",".join([b'"%d"' % n for n in range(1000)])
    assert outline(b'{"x":[' + strings + b'],"instances":' + LONG + b"}") is None
    assert outline(b'{"x":["a","b"],"instances":' + LONG + b"}") is not None


def test_a_known_frame_around_something_else() -> None:
    """The same text may stand around an array of objects."""
    view = one_input(FLOAT)
    json_quick._FRAMES.clear()
    plain, objects = b'{"instances":%b}' % LONG, b'{"instances":[{"x":%b},{"x":%b}]}' % (LONG, LONG)
    for body in (plain, objects, plain, objects):
        found = quick_tensors(body, view)
        assert found is not None
        assert found.tensors["x"].shape == ((2, 50) if body is plain else (2, 2, 50))


def test_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_quick, "_FRAMES_MAX", 3)
    json_quick._FRAMES.clear()
    for number in range(10):
        assert quick_body(b'{"signature_name":"%d","instances":%b}' % (number, LONG)) is not None
        assert len(json_quick._FRAMES) <= 3
    quick_body(b'{"signature_name":"%b","instances":%b}' % (b"x" * 600, LONG))
    assert len(json_quick._FRAMES) <= 3


def test_threads_do_not_share_a_parser() -> None:
    """Each of them reads its own arrays while the others read theirs."""
    wrong: list[int] = []

    def work(number: int) -> None:
        values = np.full((50, 20), number + 0.5)
        text = json.dumps(values.tolist()).encode()
        for _ in range(100):
            array = read(text)
            if array is None or not np.array_equal(array, values):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_large_batch() -> None:
    values = np.random.default_rng(6).integers(0, 256, (4, 60, 60, 3)) / 255
    text = json.dumps(values.tolist()).encode()
    assert len(text) > 4 * json_blocks.PIECE_BYTES
    array = read(text, FLOAT)
    assert array is not None
    assert array.shape == values.shape
    assert np.array_equal(array, values.astype(np.float32))
    assert read(text[:-1] + b" ", FLOAT) is None
    assert read(text.replace(b"]]],", b"]],", 1), FLOAT) is None
    assert read(text.replace(b", ", b" ", 1), FLOAT) is None
    with_nan = read(text.replace(b"[0.", b"[NaN, 0.", 1).replace(b", 0.", b", ", 1), FLOAT)
    assert with_nan is None or np.isnan(with_nan).any()
