"""Spec 3.7 (and 4.3 as REST shows it): classify and regress."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import Example
from ringserve.frontend.rest_api import RestSettings, make_app
from ringserve.shm import dtype as dt
from tests.frontend.fakes import make_output
from tests.frontend.rest.served import RestLoopback, call, cases, default_model, golden, serve


def ask(verb: str, body: str | bytes, model: str = "examples", app: Any = None) -> Any:
    return call(app, "POST", f"/v1/models/{model}:{verb}", body)


def examples_of(body: str, verb: str = "regress") -> list[Any]:
    """The Examples that reach the model."""
    client = RestLoopback(model=default_model)
    response = ask(verb, body, app=make_app(client))
    assert response.status == 200, response.body
    ((_, _, payloads, _, _),) = client.requests
    return [Example.FromString(example) for example in payloads[0]]


KINDS: list[tuple[str, str, list[Any]]] = [
    # JSON, kind, values
    ("1.5", "float_list", [1.5]),
    ("1e2", "float_list", [100.0]),
    ("NaN", "float_list", [float("nan")]),
    ("[Inf, -Infinity]", "float_list", [float("inf"), float("-inf")]),
    ("[1.5, 2.5]", "float_list", [1.5, 2.5]),
    ("[1e300]", "float_list", [float("inf")]),
    ("8", "int64_list", [8]),
    ("[8, -9223372036854775808]", "int64_list", [8, -(2**63)]),
    ("true", "int64_list", [1]),
    ("[true, false, 3]", "int64_list", [1, 0, 3]),
    ('"text"', "bytes_list", [b"text"]),
    ('["a", {"b64": "AP8="}, "é"]', "bytes_list", [b"a", b"\x00\xff", "é".encode()]),
    ('{"b64": "aGk"}', "bytes_list", [b"hi"]),
    ("18446744073709551616", "float_list", [2.0**64]),
]


@pytest.mark.parametrize(("text", "kind", "values"), KINDS, ids=cases(KINDS))
def test_rest_3_7_features(text: str, kind: str, values: list[Any]) -> None:
    (example,) = examples_of(f'{{"signature_name":"regress","examples":[{{"f":{text}}}]}}')
    feature = example.features.feature["f"]
    assert feature.WhichOneof("kind") == kind
    np.testing.assert_array_equal(list(getattr(feature, kind).value), values)


def test_rest_3_7_an_empty_list_is_a_feature_of_no_kind() -> None:
    (example,) = examples_of('{"signature_name":"regress","examples":[{"f":[]}]}')
    assert list(example.features.feature) == ["f"]
    assert example.features.feature["f"].WhichOneof("kind") is None


def test_rest_3_7_the_context_goes_in_front_and_the_example_overrides_it() -> None:
    first, second = examples_of(
        '{"signature_name":"classify","context":{"a":[1],"c":"x"},"examples":[{"a":[2],"b":1.5},{}]}', "classify"
    )
    assert list(first.features.feature["a"].int64_list.value) == [2]
    assert list(first.features.feature["b"].float_list.value) == [1.5]
    assert first.features.feature["c"].bytes_list.value == [b"x"]
    assert list(second.features.feature["a"].int64_list.value) == [1]


ERRORS: list[tuple[str, int, str]] = [
    # body, HTTP status, text
    ("", 400, "JSON Parse error: The document is empty"),
    ('{"signature_name":7}', 400, 'JSON Value: {\n    "signature_name": 7\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ('{"signature_name":"s"}', 400, 'JSON Value: {\n    "signature_name": "s"\n} '
     "When method is classify, key 'examples' is expected and was not found"),
    ('{"examples":1}', 400, 'JSON Value: {\n    "examples": 1\n} Expecting \'examples\' value to be an list/array'),
    ('{"examples":[]}', 400, 'JSON Value: {\n    "examples": []\n} \'examples\' value is an empty array'),
    ('{"context":1,"examples":[{}]}', 400, "Example must be JSON object but got JSON Number"),
    ('{"context":1}', 400, "Example must be JSON object but got JSON Number"),
    ('{"examples":[{},[1]]}', 400, "Example must be JSON object but got JSON Array"),
    ('{"examples":[null]}', 400, "Example must be JSON object but got JSON Null"),
    ('{"examples":[{"f":null}]}', 400, "Feature: f has element with unexpected JSON type: Null"),
    ('{"examples":[{"f":[[1]]}]}', 400, "Feature: f has element with unexpected JSON type: Array"),
    ('{"examples":[{"f":{"a":1}}]}', 400, "Feature: f has element with unexpected JSON type: Object"),
    ('{"examples":[{"f":["a",{"x":1}]}]}', 400, "Feature: f has element with unexpected JSON type: Object"),
    ('{"examples":[{"f":[1,null]}]}', 400, "Feature: f has element with unexpected JSON type: Null"),
    ('{"examples":[{"f":[1,1.5]}]}', 400, "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples":[{"f":[true,1.5]}]}', 400, "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples":[{"f":[1.5,1]}]}', 400, "Unexpected element type in feature: f expecting type: float"),
    ('{"examples":[{"f":["a",1]}]}', 400, "Unexpected element type in feature: f expecting type: bytes"),
    ('{"examples":[{"f":[1,{"b64":"aGk="}]}]}', 400, "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples":[{"f":9223372036854775808}]}', 400,
     "Feature: f has uint64_t element. Only int64_t is supported."),
    ('{"examples":[{"f":[9223372036854775808,"a"]}]}', 400,
     "Feature: f has uint64_t element. Only int64_t is supported."),
    ('{"examples":[{"f":["a",{"b64":"a"}]}]}', 400, "Unable to base64 decode"),
    # then the model, then 4.3's checks
    ('{"signature_name":"s","examples":[{}]}', 400, "No signature was found with the name: s"),
    ('{"examples":[{}]}', 400, "No signature was found with the name: serving_default"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "text"), ERRORS, ids=cases(ERRORS))
@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_rest_3_7_errors(verb: str, body: str, status: int, text: str) -> None:
    response = ask(verb, body)
    assert (response.status, response.error) == (status, text)


def test_rest_3_7_the_text_comes_before_the_model() -> None:
    assert ask("classify", '{"examples":[1]}', "nope").status == 400
    response = ask("classify", '{"examples":[{}]}', "nope")
    assert (response.status, response.error) == (404, "Servable not found for request: Latest(nope)")
    response = ask("regress", '{"examples":[{}]}', "examples/labels/L")
    assert (response.status, response.error) == (400, "Unrecognized servable version label: L")
    assert ask("regress", '{"signature_name":"regress","examples":[{}]}', "examples/versions/2").status == 200


WRONG: list[tuple[str, str, str]] = [
    # verb, signature, text (4.3)
    ("regress", "classify", "Expected one output Tensor."),
    ("regress", "labels", "No regression outputs found in SignatureDef: "),
    ("classify", "regress", 'Expected classification signature outputs to contain at least one of "classes" or '
     '"scores". Signature was: '),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "signature", "text"), WRONG, ids=cases(WRONG))
def test_rest_4_3_signatures_of_another_form(verb: str, signature: str, text: str) -> None:
    response = ask(verb, f'{{"signature_name":"{signature}","examples":[{{}}]}}')
    assert response.status == 400
    assert response.error.startswith(text)


def test_rest_4_3_the_check_of_method_names() -> None:
    app = make_app(RestLoopback(model=default_model), RestSettings(check_method_name=True))
    assert ask("classify", '{"signature_name":"classify","examples":[{}]}', app=app).status == 200
    response = ask("regress", '{"signature_name":"classify","examples":[{}]}', app=app)
    assert response.error == (
        "Expected regression signature method_name to be tensorflow/serving/regress. "
        "Was: tensorflow/serving/classify"
    )


GOLDEN = [
    ("classify.json", "classify", "classify"),
    ("classify_labels.json", "classify", "labels"),
    ("classify_scores.json", "classify", "scores"),
    ("regress.json", "regress", "regress"),
]


@pytest.mark.parametrize(("name", "verb", "signature"), GOLDEN, ids=[name for name, _, _ in GOLDEN])
def test_rest_3_7_golden(name: str, verb: str, signature: str) -> None:
    response = ask(verb, f'{{"signature_name":"{signature}","examples":[{{}},{{"f":[1.5]}}]}}')
    assert (response.status, response.body) == (200, golden(name))
    assert response.headers == {"content-type": "application/json"}


def test_rest_3_7_empty_results() -> None:
    from ringserve.frontend.examples import Classes
    from ringserve.frontend.json_examples import write_classes, write_regressions

    no_classes, no_values = write_classes(Classes(0, 3, None, None)), write_regressions(np.zeros(0, np.float32))
    assert not isinstance(no_classes, bytes)
    assert no_classes.text == "Cannot convert empty ClassificationResults to JSON"
    assert not isinstance(no_values, bytes)
    assert no_values.text == "Cannot convert empty RegressionResults to JSON"
    assert write_classes(Classes(2, 0, [], None)) == b'{\n    "results": [[], []\n    ]\n}'


def test_rest_4_3_outputs_of_another_form() -> None:
    def wrong(*_: Any) -> Any:
        return [make_output(dt.FLOAT, (2, 2), np.zeros((2, 2), np.float32), batchable=True)]

    response = ask("regress", '{"signature_name":"regress","examples":[{},{}]}', app=serve(wrong))
    assert response.status == 400
    assert response.error == (
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"
    )


def test_rest_3_3_a_failed_run_of_examples() -> None:
    response = ask("regress", '{"signature_name":"regress","examples":[{}]}',
                   app=serve(lambda *_: (Code.UNAVAILABLE, "full")))  # fmt: skip
    assert (response.status, response.error) == (503, "full")


def test_many_examples_are_read_aside() -> None:
    values = np.random.default_rng(5).random((300, 40)).tolist()
    body = json.dumps({"signature_name": "regress", "examples": [{"f": row} for row in values]})
    assert len(body) > 32_768
    found = examples_of(body)
    for row, example in zip(values, found, strict=True):
        assert list(example.features.feature["f"].float_list.value) == np.array(row, np.float32).tolist()
    odd = body.replace('"f"', '"g"', 1).replace("[0.", "[NaN, 0.", 1)
    assert len(examples_of(odd)) == 300
    assert ask("regress", body + "x").status == 200
    assert ask("regress", body[:-1]).status == 400
