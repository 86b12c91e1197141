"""Spec 3.6: predict answers, byte for byte where the specification gives the form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ringserve.shm import dtype as dt
from tests.frontend.fakes import make_output
from tests.frontend.rest.served import cases, golden, post, serve

GOLDEN: list[tuple[str, str, str]] = [
    # file, model, body
    ("predict_rows.json", "default", '{"instances":[[1,2],[3,4]]}'),
    ("predict_scalars.json", "default", '{"instances":[1.0,2.0,5.0]}'),
    ("predict_rank_3.json", "echo_int32", '{"instances":[[[1,2],[3,4]],[[5,6],[7,8]]]}'),
    ("predict_objects.json", "two", '{"instances":[{"a":[1,2],"b":7},{"b":8,"a":[3,4]}]}'),
    ("predict_b64.json", "bytes", '{"instances":[{"k":"a","k_bytes":"b"}]}'),
    ("predict_column.json", "default", '{"inputs":[[3.0,4.0]]}'),
    ("predict_column_scalar.json", "echo_float", '{"inputs":3}'),
    ("predict_column_empty.json", "default", '{"inputs":[]}'),
    ("predict_columns.json", "two", '{"inputs":{"a":[[1,2]],"b":[7,8,9]}}'),
    ("predict_columns_b64.json", "bytes", '{"inputs":{"k":["a"],"k_bytes":[{"b64":"AP8="}]}}'),
    ("predict_specials.json", "default", '{"instances":[NaN, Inf, -Infinity]}'),
    ("predict_strings.json", "echo_string", r'{"instances":["\"\\/\b\f\n\r\t\u0001\u001f\u007f\u00e9\ud83d\ude00"]}'),
]


@pytest.mark.parametrize(("name", "model", "body"), GOLDEN, ids=[name for name, _, _ in GOLDEN])
def test_rest_3_6_golden(name: str, model: str, body: str) -> None:
    response = post(body, model)
    assert (response.status, response.body) == (200, golden(name))
    assert response.headers == {"content-type": "application/json"}


NUMBERS: list[tuple[str, Any, str]] = [
    # dtype, value, text
    ("float", 0.1, "0.1"),
    ("float", 1 / 3, "0.333333343"),
    ("float", 9000000, "9e+06"),
    ("float", 999999, "999999.0"),
    ("float", 123456789, "123456792.0"),
    ("float", 3e-5, "3e-05"),
    ("float", -0.0, "-0.0"),
    ("float", 1e10, "1e+10"),
    ("float", 16777217, "16777216.0"),
    ("double", 1 / 3, "0.33333333333333331"),
    ("double", 0.1, "0.1"),
    ("int8", -128, "-128"),
    ("uint8", 255, "255"),
    ("int16", -32768, "-32768"),
    ("int32", -(2**31), "-2147483648"),
    ("int64", -(2**63), "-9223372036854775808"),
    ("uint32", 2**32 - 1, "4294967295"),
    ("uint64", 2**64 - 1, "18446744073709551615"),
    ("bool", True, "true"),
    # ours; TF Serving refuses these with 400
    ("half", 0.1, "0.0999755859"),
    ("bfloat16", 0.5, "0.5"),
    ("uint16", 65535, "65535"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), NUMBERS, ids=cases(NUMBERS))
@pytest.mark.parametrize("count", [1, 500])
def test_rest_3_6_numbers(dtype: str, value: Any, text: str, count: int) -> None:
    number = next(entry for entry in dt.DTYPES.values() if entry.name == dtype)
    values = np.array([value] * count, number.numpy)
    app = serve(lambda *_: [make_output(number.number, (1, count), values, batchable=True)])
    response = post('{"instances":[1]}', app=app)
    assert response.body.decode() == f'{{\n    "predictions": [[{", ".join([text] * count)}]\n    ]\n}}'


def one(dtype: int, shape: tuple[int, ...], numpy_type: Any) -> Any:
    return make_output(dtype, shape, np.zeros(shape, numpy_type), batchable=False)


REFUSED: list[tuple[str, str, list[Any], str]] = [
    # model, body, outputs, text
    ("default", '{"instances":[1]}', [one(1, (), np.float32)], "Tensor name: y has no shape information "),
    (
        "two",
        '{"instances":[{"a":[1],"b":1}]}',
        [one(1, (2,), np.float32), one(3, (1,), np.int32)],
        "Tensor name: b has inconsistent batch size: 1 expecting: 2",
    ),
    ("default", '{"instances":[1]}', [one(8, (1,), np.complex64)],
     "Failed to write JSON value for tensor type: complex64"),
    ("default", '{"inputs":[1]}', [one(8, (1,), np.complex64)],
     "Failed to write JSON value for tensor type: complex64"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "outputs", "text"), REFUSED, ids=cases(REFUSED))
def test_rest_3_6_outputs_that_cannot_be_written(model: str, body: str, outputs: list[Any], text: str) -> None:
    response = post(body, model, serve(lambda *_: outputs))
    assert (response.status, response.error) == (400, text)


def test_rest_3_6_no_outputs() -> None:
    from ringserve.frontend.json_write import write_columns, write_rows

    for refused in (write_rows([]), write_columns([])):
        assert not isinstance(refused, bytes)
        assert refused.text == "Cannot convert empty tensor map to JSON"


def test_rest_3_6_columns_may_be_scalars_and_of_any_batch_size() -> None:
    scalar = serve(lambda *_: [one(1, (), np.float32)])
    assert post('{"inputs":[1]}', app=scalar).body == b'{\n    "outputs": 0.0\n}'
    uneven = serve(lambda *_: [one(1, (2,), np.float32), one(3, (1,), np.int32)])
    assert post('{"inputs":{"a":[[1]],"b":[1]}}', "two", uneven).json == {"outputs": {"a": [0.0, 0.0], "b": [0]}}


def test_rest_3_6_the_number_of_rows_is_the_models_business() -> None:
    response = post('{"instances":[1]}', app=serve(lambda *_: [one(1, (3,), np.float32)]))
    assert response.json == {"predictions": [0.0, 0.0, 0.0]}


def test_rest_3_6_rows_of_nothing() -> None:
    assert post('{"instances":[1]}', app=serve(lambda *_: [one(1, (0,), np.float32)])).json == {"predictions": []}
    assert post('{"instances":[1]}', app=serve(lambda *_: [one(1, (2, 0), np.float32)])).json == {
        "predictions": [[], []]
    }


def test_rest_3_6_text_that_is_no_utf8_comes_back_unchanged() -> None:
    response = post(b'{"inputs":["\xff\xfe"]}', "echo_string")
    assert (response.status, response.body) == (200, b'{\n    "outputs": [\n        "\xff\xfe"\n    ]\n}')


def test_a_bug_in_one_answer_is_answered() -> None:
    app = serve(lambda *_: [one(1, (1,), np.float32)] * 2)
    assert post('{"instances":[1]}', app=app).status == 500


def test_large_answers_are_written_aside() -> None:
    values = np.random.default_rng(3).random((700, 64)).astype(np.float32)
    text = "[" + ",".join("[" + ",".join(map(repr, row)) + "]" for row in values.tolist()) + "]"
    response = post(f'{{"inputs":{text}}}', "echo_float")
    assert np.array_equal(np.array(response.json["outputs"], np.float32), values)
    strings = ["é" * 100] * 2000
    body = ('{"inputs":[' + ",".join(f'"{each}"' for each in strings) + "]}").encode()
    assert post(body, "echo_string").json["outputs"] == strings
    doubles = np.random.default_rng(4).random((100, 200))
    text = "[" + ",".join("[" + ",".join(map(repr, row)) + "]" for row in doubles.tolist()) + "]"
    assert post(f'{{"instances":{text}}}', "echo_double").json["predictions"] == doubles.tolist()
