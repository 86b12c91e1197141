"""Classify and regress in JSON: named features to serialized Examples, results to text, TF Serving's error texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import Example
from ringserve.frontend.examples import Classes, with_context
from ringserve.frontend.json_numbers import number_texts
from ringserve.frontend.json_tensor import base64, is_base64
from ringserve.frontend.json_text import decode, encode, quoted, string_text, type_name

_INDENT: Final = "    "
_INT64_MAX: Final = 2**63 - 1

# --------------------------------------------------------------------------------------------------------- requests


def read_examples(members: dict[str, Any], bytes_max: int) -> list[bytes] | Failure:
    """Serialized tensorflow.Examples of a body, one per row, each with the context in front. bytes_max: see
    `with_context`."""
    context = b""
    if "context" in members:
        found = _example(members["context"])
        if isinstance(found, Failure):
            return found
        context = found
    # TF Serving says "classify" in both cases.
    if "examples" not in members:
        return _about(members, "When method is classify, key 'examples' is expected and was not found")
    values = members["examples"]
    if type(values) is not list:
        return _about(members, "Expecting 'examples' value to be an list/array")
    if not values:
        return _about(members, "'examples' value is an empty array")
    examples: list[bytes] = []
    for value in values:
        found = _example(value)
        if isinstance(found, Failure):
            return found
        examples.append(found)
    return with_context(context, examples, bytes_max)


def _example(value: Any) -> bytes | Failure:
    if type(value) is not dict:
        return _invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = Example()
    features = example.features.feature
    for name, content in value.items():
        # Bytes of a name that are no UTF-8 cannot be a key of a protobuf map.
        feature = features[name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")]
        failure = _fill(feature, name, content if type(content) is list else [content])
        if failure is not None:
            return failure
    return bytes(example.SerializeToString())


def _fill(feature: Any, name: str, values: list[Any]) -> Failure | None:
    """Put the values of one feature where their kind belongs; the first one decides which that is."""
    if not values:
        return None
    kind = _KINDS.get(type(values[0]))
    if kind is not None and all(_KINDS.get(type(value)) is kind for value in values):
        return kind(feature, name, values)
    # Something is of another kind: go one by one, to find what is wrong first.
    expected = None
    for value in values:
        kind = _KINDS.get(type(value))
        if kind is None or (type(value) is dict and not is_base64(value)):
            return _invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
        if expected is not None and kind is not expected:
            return _invalid(f"Unexpected element type in feature: {name} expecting type: {_NAMES[expected]}")
        expected = kind
        failure = kind(type(feature)(), name, [value])
        if failure is not None:
            return failure
    raise AssertionError("all elements are of one kind after all")


def _floats(feature: Any, _: str, values: list[float]) -> Failure | None:
    with np.errstate(over="ignore"):
        rounded = np.array(values, np.float64).astype(np.float32)
    feature.float_list.value.extend(rounded.tolist())
    return None


def _integers(feature: Any, name: str, values: list[int]) -> Failure | None:
    if max(values) > _INT64_MAX:
        return _invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    feature.int64_list.value.extend(map(int, values))  # true and false are 1 and 0
    return None


def _strings(feature: Any, name: str, values: list[Any]) -> Failure | None:
    found: list[bytes] = []
    for value in values:
        if type(value) is str:
            found.append(encode(value))
            continue
        if not is_base64(value):
            return _invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
        data = base64(value)
        if isinstance(data, Failure):
            return data
        found.append(data)
    feature.bytes_list.value.extend(found)
    return None


_Kind = Callable[[Any, str, list[Any]], Failure | None]
_KINDS: Final[dict[type, _Kind]] = {
    float: _floats,
    int: _integers,
    bool: _integers,
    str: _strings,
    dict: _strings,
}
_NAMES: Final[dict[_Kind, str]] = {_floats: "float", _integers: "int64", _strings: "bytes"}


def _about(members: dict[str, Any], text: str) -> Failure:
    return _invalid(f"JSON Value: {quoted(members)} {text}")


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)


# ---------------------------------------------------------------------------------------------------------- answers


def write_classes(classes: Classes, gently: bool = False) -> bytes | Failure:
    """`{"results": [[["label", score], ...], ...]}`: of each example its classes, on one line.

    gently: let other threads run now and then.
    """
    if not classes.examples:
        return _invalid("Cannot convert empty ClassificationResults to JSON")
    count, width = classes.examples * classes.width, classes.width
    if classes.labels is None:
        labels = ['""'] * count
    else:
        texts = {label: string_text(decode(label)) for label in set(classes.labels)}  # few, however many rows
        labels = [texts[label] for label in classes.labels]
    scores = ["0.0"] * count if classes.scores is None else number_texts(classes.scores.ravel(), gently=gently)
    pairs = [f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)]
    rows = [f"[{', '.join(pairs[row * width : (row + 1) * width])}]" for row in range(classes.examples)]
    return encode(f'{{\n{_INDENT}"results": [{", ".join(rows)}\n{_INDENT}]\n}}')


def write_regressions(values: npt.NDArray[np.float32], gently: bool = False) -> bytes | Failure:
    """`{"results": [value, ...]}`: one number for each example. gently: as in write_classes."""
    if not values.size:
        return _invalid("Cannot convert empty RegressionResults to JSON")
    return encode(f'{{\n{_INDENT}"results": [{", ".join(number_texts(values.ravel(), gently=gently))}]\n}}')
