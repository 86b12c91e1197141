"""Commands that call a model's signature once, for people to copy: curl, ringserve predict, grpcurl."""

from __future__ import annotations

import json
from math import prod
from typing import Any, Final

from ringserve.frontend.catalog import DEFAULT_SIGNATURE, SignatureView, TensorSpec
from ringserve.shm import dtype as dt

#: Values of one input that are written out; more are made by a line of Python.
_VALUES_MAX: Final = 32
_FIELDS: Final = {
    dt.FLOAT: "float_val", dt.DOUBLE: "double_val", dt.STRING: "string_val", dt.INT64: "int64_val",
    dt.BOOL: "bool_val", dt.HALF: "half_val", dt.BFLOAT16: "half_val", dt.UINT32: "uint32_val", dt.UINT64: "uint64_val",
}  # fmt: skip
#: Signatures of these methods take tf.Examples; which features, only their graph knows.
_VERBS: Final = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}
_INTS: Final = (dt.INT32, dt.INT16, dt.INT8, dt.UINT8, dt.UINT16)


def requests(model: str, signature: SignatureView) -> dict[str, str]:
    """By tool: a command that asks `signature` for one row of zeros; an entry is missing where it cannot say it."""
    if not signature.inputs or any(spec.dtype not in dt.DTYPES for spec in signature.inputs.values()):
        return {}
    verb = _VERBS.get(signature.method_name)
    if verb is not None:
        named = "" if signature.name == DEFAULT_SIGNATURE else f'"signature_name": {json.dumps(signature.name)}, '
        path = f"http://localhost:8501/v1/models/{model}:{verb}"
        return {"curl": f"curl -d '{{{named}\"examples\": [{{\"FEATURE\": 1.0}}]}}' {path}"}
    found = {"curl": _curl(model, signature)}
    grpcurl = _grpcurl(model, signature)
    if grpcurl:
        found["grpcurl"] = grpcurl
    return found


def fed_shape(spec: TensorSpec, rows: int = 1) -> tuple[int, ...]:
    """A shape that the input takes: `rows` along a free axis 0, 1 along other free ones; one axis for unknown rank."""
    shape = spec.shape if spec.shape is not None else (-1,)
    return tuple(size if size >= 0 else rows if axis == 0 else 1 for axis, size in enumerate(shape))


def _zero(dtype: int) -> Any:
    if dtype == dt.STRING:
        return "text"
    return False if dtype == dt.BOOL else 0.0 if dtype in (dt.FLOAT, dt.DOUBLE, dt.HALF, dt.BFLOAT16) else 0


def _curl(model: str, signature: SignatureView) -> str:
    path = f"http://localhost:8501/v1/models/{model}:predict"
    shapes = {alias: fed_shape(spec) for alias, spec in signature.inputs.items()}
    named = "" if signature.name == DEFAULT_SIGNATURE else f'"signature_name": {json.dumps(signature.name)}, '
    if all(prod(shape) <= _VALUES_MAX for shape in shapes.values()):
        values = {alias: _nested(shape, _zero(signature.inputs[alias].dtype)) for alias, shape in shapes.items()}
        inner = json.dumps(values if len(values) > 1 else next(iter(values.values())))
        return f"curl -d '{{{named}\"inputs\": {inner}}}' {path}"
    made = {alias: _expression(shape, _zero(signature.inputs[alias].dtype)) for alias, shape in shapes.items()}
    inner = ", ".join(f'"{alias}": {text}' for alias, text in made.items())
    inner = f"{{{inner}}}" if len(made) > 1 else next(iter(made.values()))
    return f"python3 -c 'import json; print(json.dumps({{{named}\"inputs\": {inner}}}))' | curl -d @- {path}"


def _nested(shape: tuple[int, ...], value: Any) -> Any:
    for size in reversed(shape):
        value = [value] * size
    return value


def _expression(shape: tuple[int, ...], value: Any) -> str:
    """The same as a Python expression, which stays short."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    for size in reversed(shape):
        text = f"[{text}]" if size == 1 else f"[{text}]*{size}"
    return text


def _grpcurl(model: str, signature: SignatureView) -> str:
    inputs = {}
    for alias, spec in signature.inputs.items():
        field = "int_val" if spec.dtype in _INTS else _FIELDS.get(spec.dtype)
        if field is None:
            return ""
        value: Any = "dGV4dA==" if spec.dtype == dt.STRING else False if spec.dtype == dt.BOOL else 0
        shape = {"dim": [{"size": size} for size in fed_shape(spec)]}
        # One value fills the whole tensor up.
        inputs[alias] = {"dtype": _proto_name(spec.dtype), "tensor_shape": shape, field: [value]}
    spec_of = {"name": model, "signature_name": signature.name}
    body = json.dumps({"model_spec": spec_of, "inputs": inputs})
    return f"grpcurl -plaintext -d '{body}' localhost:8500 tensorflow.serving.PredictionService/Predict"


def _proto_name(dtype: int) -> str:
    from ringserve.config.protos import DataType

    return str(DataType.Name(dtype))
