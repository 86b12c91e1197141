"""What `ringserve predict` makes of JSON, arrays and images, against signatures of all kinds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from ringserve.cli import main
from ringserve.commands.console import Failed, Status
from ringserve.commands.predict import printed
from ringserve.commands.predict_inputs import (
    Given,
    array_of,
    columnar_body,
    images_array,
    json_value,
    read_given,
    tensor_of,
    tensors_of,
    with_signature,
)
from ringserve.frontend.catalog import SignatureView, TensorSpec
from ringserve.frontend.json_predict import Body, Inputs, read_body, read_inputs
from ringserve.frontend.tensor_proto import Tensor
from ringserve.shm import dtype as dt


def signature(**inputs: tuple[int, tuple[int, ...] | None]) -> SignatureView:
    specs = {alias: TensorSpec(alias, dtype, shape, f"{alias}:0") for alias, (dtype, shape) in sorted(inputs.items())}
    return SignatureView("serving_default", "", specs, {}, {}, True, ())


def spec(dtype: int, shape: tuple[int, ...] | None = (-1, 2)) -> TensorSpec:
    return TensorSpec("x", dtype, shape, "x:0")


def refused(status: Status, *words: str) -> str:
    with pytest.raises(Failed) as caught:
        read_given(words)
    assert caught.value.exit_code == status
    return caught.value.message


# ----------------------------------------------------------------------------------------------------------- reading


def test_json_as_text_file_and_list(tmp_path: Path) -> None:
    assert read_given(['{"inputs": 1}']).body == b'{"inputs": 1}'
    assert json.loads(read_given([" [1, 2]"]).body or b"") == {"instances": [1, 2]}
    (tmp_path / "a.json").write_text('{"instances": [3]}')
    assert read_given([str(tmp_path / "a.json")]).body == b'{"instances": [3]}'
    assert json.loads(with_signature(b'{"inputs": 1}', "s")) == {"inputs": 1, "signature_name": "s"}
    assert with_signature(b'{"inputs":1}', "") == b'{"inputs":1}'


def test_files_by_alias(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "b.npz", p=np.zeros(1), q=np.ones(2))
    (tmp_path / "c.png").write_bytes(b"png")
    given = read_given([f"x={tmp_path}/a.npy", f"{tmp_path}/b.npz", f"i={tmp_path}/c.png", f"i={tmp_path}/c.png"])
    assert {alias: values.shape for alias, values in given.arrays.items()} == {"x": (3,), "p": (1,), "q": (2,)}
    assert given.images == {"i": [tmp_path / "c.png"] * 2}
    assert given.needs_signature


def test_what_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "this is no JSON" in refused(Status.DATA, "[1")
    assert "must be a list of instances" in refused(Status.DATA, '{"x": 1}')
    assert "more than one JSON body" in refused(Status.DATA, "[1]", "[2]")
    assert "cannot be mixed" in refused(Status.DATA, "[1]", f"{_saved(tmp_path)}")
    assert "no JSON text, and no .json" in refused(Status.DATA, "hello.txt")
    assert "cannot read" in refused(Status.DATA, f"{tmp_path}/gone.npy")
    assert "cannot read" in refused(Status.DATA, f"{tmp_path}/gone.json")
    assert "cannot read" in refused(Status.DATA, f"{tmp_path}/gone.png")
    assert "cannot read" in refused(Status.DATA, f"{tmp_path}/objects.npy")  # a pickle would run code


def _saved(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros(1))
    return folder / "x.npy"


# ------------------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.zeros((3, 2), np.float64), dt.FLOAT, np.float32),
        (np.zeros((3, 2), np.int64), dt.FLOAT, np.float32),
        (np.zeros((3, 2), np.int64), dt.UINT8, np.uint8),
        (np.zeros((3, 2), np.float32), dt.BFLOAT16, ml_dtypes.bfloat16),
        (np.zeros((3, 2), np.bool_), dt.BOOL, np.bool_),
        (np.zeros((3, 2), ">f4"), dt.FLOAT, np.float32),
    ],
)
def test_arrays_are_cast_within_their_kind(values: Any, dtype: int, expected: Any) -> None:
    tensor = tensor_of(values, spec(dtype))
    assert (tensor.dtype, tensor.shape) == (dtype, (3, 2))
    assert array_of(tensor).dtype == expected


def test_values_survive() -> None:
    values = np.arange(6, dtype=">i8").reshape(3, 2)[::-1]
    assert array_of(tensor_of(values, spec(dt.INT32))).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "dtype", "text"),
    [
        (np.zeros((3, 2)), dt.INT32, "wants int32, not float64"),
        (np.full((3, 2), 300), dt.UINT8, "some values do not fit"),
        (np.full((3, 2), "a"), dt.FLOAT, "wants float, not <U1"),
        (np.zeros((3, 2)), dt.STRING, "wants strings, not float64"),
        (np.zeros((3, 2)), dt.VARIANT, "of type variant, which cannot be sent"),
    ],
)
def test_what_would_lose_something_is_refused(values: Any, dtype: int, text: str) -> None:
    with pytest.raises(Failed, match=text):
        tensor_of(values, spec(dtype))


def test_one_row_becomes_a_batch() -> None:
    assert tensor_of(np.zeros(2), spec(dt.FLOAT)).shape == (1, 2)
    assert tensor_of(np.zeros(2), spec(dt.FLOAT, (2,))).shape == (2,)
    assert tensor_of(np.zeros(2), spec(dt.FLOAT, None)).shape == (2,)


def test_strings() -> None:
    tensor = tensor_of(np.array(["é", "b"]), spec(dt.STRING, (-1,)))
    assert tensor == Tensor(dt.STRING, (2,), ["é".encode(), b"b"])
    assert json_value(array_of(Tensor(dt.STRING, (2,), [b"\xff", b"a"]))) == [{"b64": "/w=="}, "a"]


def test_inputs_are_found_by_alias() -> None:
    zeros = np.zeros((1, 2))
    both = signature(a=(dt.FLOAT, (-1, 2)), b=(dt.FLOAT, (-1, 2)))
    assert set(tensors_of(Given(None, {"": zeros}, {}), signature(x=(dt.FLOAT, (-1, 2))), None)) == {"x"}
    assert set(tensors_of(Given(None, {"a": zeros, "b": zeros}, {}), both, None)) == {"a", "b"}
    for arrays, text in (
        ({"": zeros}, "several inputs: name files as ALIAS=FILE, with one of a, b"),
        ({"c": zeros}, "no input c; it has a, b"),
        ({"a": zeros}, "nothing is given for the input b"),
    ):
        with pytest.raises(Failed, match=text):
            tensors_of(Given(None, arrays, {}), both, None)
    tensors = tensors_of(Given(b'{"instances": [[1, 2]]}', {}, {}), signature(x=(dt.FLOAT, (-1, 2))), None)
    assert array_of(tensors["x"]).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "number",
    [
        *(dt.FLOAT, dt.DOUBLE, dt.HALF, dt.BFLOAT16, dt.STRING, dt.BOOL),
        *(dt.INT8, dt.INT16, dt.INT32, dt.INT64, dt.UINT8, dt.UINT16, dt.UINT32, dt.UINT64),
    ],
)
def test_the_rest_body_means_the_same_tensors(number: int) -> None:
    """Our server's own reader makes of it what it was made of."""
    dtype = dt.DTYPES[number]
    if dtype.numpy is None:
        tensor = Tensor(dt.STRING, (2, 1), [b"\xff\x00", "é".encode()])
    else:
        tensor = Tensor(number, (2, 1), np.array([[0], [1]]).astype(dtype.numpy).tobytes())
    body = read_body(columnar_body({"x": tensor}))
    assert isinstance(body, Body)
    inputs = read_inputs(body, signature(x=(number, (-1, 1))))
    assert isinstance(inputs, Inputs)
    found = inputs.tensors["x"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert array_of(found).tolist() == array_of(tensor).tolist()


def test_numbers_are_written_short() -> None:
    assert json_value(np.array([0.1, np.nan], np.float32))[0] == 0.1
    assert json_value(np.array([0.1], np.float16)) == [0.1]
    assert json_value(np.array([0.1])) == [0.1]
    assert json_value(np.array(0.1, np.float32)) == 0.1
    assert json_value(np.array([1.5], ml_dtypes.bfloat16)) == [1.5]


@pytest.mark.parametrize("number", dt.DTYPES)
def test_every_type_can_be_printed(number: int) -> None:
    tensor = Tensor(number, (2,), b"\0" * 2 * dt.DTYPES[number].itemsize)
    if dt.DTYPES[number].numpy is None:
        tensor = Tensor(number, (2,), [b"", b""])
    assert len(json.loads(json.dumps(json_value(array_of(tensor))))) == 2


def test_the_answer_has_a_line_for_each_output() -> None:
    answer = {"model": "m", "outputs": {"a": [[1, 2], [3, 4]], "b": ["é"]}}
    text = printed(answer)
    assert json.loads(text) == answer
    assert '"a": [[1, 2], [3, 4]]' in text
    assert json.loads(printed({"predictions": [1.0]})) == {"predictions": [1.0]}


# ------------------------------------------------------------------------------------------------------------- images


def test_an_image_for_an_input_of_strings_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert images_array(paths, spec(dt.STRING, (-1,)), None).tolist() == [b"one", b"two"]


@pytest.fixture
def pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: the image of a file is filled with its first byte, 4 by 3 pixels unless it is resized."""

    class Image:
        def __init__(self, value: int, mode: str = "", size: tuple[int, int] = (4, 3)) -> None:
            self.value, self.mode, self.size = value, mode, size

        def __enter__(self) -> Image:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def convert(self, mode: str) -> Image:
            return Image(self.value, mode, self.size)

        def resize(self, size: tuple[int, int], _filter: object) -> Image:
            return Image(self.value, self.mode, size)

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            shape = self.size[::-1] if self.mode == "L" else (*self.size[::-1], len(self.mode))
            return np.full(shape, self.value, dtype)

    module = ModuleType("PIL.Image")
    module.open = lambda path: Image(Path(path).read_bytes()[0])  # type: ignore[attr-defined]
    module.Resampling = type("Resampling", (), {"BILINEAR": 2})  # type: ignore[attr-defined]
    package = ModuleType("PIL")
    package.Image = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL", package)
    monkeypatch.setitem(sys.modules, "PIL.Image", module)


@pytest.mark.usefixtures("pillow")
def test_pixels_in_the_size_and_range_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\xff")
    paths = [tmp_path / "a.png"] * 2
    image = images_array(paths, spec(dt.FLOAT, (-1, 8, 6, 3)), None)
    assert (image.shape, image.dtype, image.max()) == ((2, 8, 6, 3), np.float32, 1.0)
    assert images_array(paths, spec(dt.UINT8, (-1, -1, -1, 1)), None).shape == (2, 3, 4, 1)
    assert images_array(paths, spec(dt.UINT8, (-1, -1, -1, 1)), None).dtype == np.uint8
    assert images_array(paths, spec(dt.FLOAT, (-1, 2, 2, 4)), "0..255").max() == 255
    assert images_array(paths, spec(dt.FLOAT, (-1, 2, 2, 3)), "-1..1").max() == pytest.approx(1.0)
    assert images_array(paths[:1], spec(dt.FLOAT, (2, 2, 3)), None).shape == (2, 2, 3)
    with pytest.raises(Failed, match="takes no images"):
        images_array(paths, spec(dt.FLOAT, (-1, 64)), None)


def test_a_range_that_begins_with_a_dash_is_one() -> None:
    words = ["predict", "m", "[1]", "--pixels=-1..1", "--url", "http://127.0.0.1:1"]
    assert CliRunner().invoke(main, words).exit_code == Status.UNREACHABLE
    assert "0..255|0..1|-1..1" in CliRunner().invoke(main, ["predict", "--help"]).output


def test_without_pillow_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(Failed, match="pip install pillow"):
        images_array([tmp_path / "a.png"], spec(dt.FLOAT, (-1, 2, 2, 3)), None)
