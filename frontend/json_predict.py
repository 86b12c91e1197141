"""A predict request in JSON: which signature it means, and its named tensors, in TF Serving's order of checking.

Row format (`instances`): one entry per row, a value or an object of named values. Columnar format (`inputs`): the value
of the only input, or an object of named values; batch sizes need not agree there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, ServableView, SignatureView
from ringserve.frontend.json_parse import JsonError, SlowError, parse_object
from ringserve.frontend.json_tensor import RANK_MAX, Walk, is_base64, regular_tensor
from ringserve.frontend.json_text import quoted
from ringserve.frontend.lanes import shape_text
from ringserve.frontend.status import code_name
from ringserve.frontend.tensor_proto import Tensor


class Body(NamedTuple):
    """A request body that is a JSON object. signature_name: empty when the request names none."""

    members: dict[str, Any]
    signature_name: str


class Inputs(NamedTuple):
    """Tensors of a request by alias. by_row: whether the answer is wanted in row format."""

    tensors: dict[str, Tensor]
    by_row: bool


def read_body(body: bytes | bytearray, *, hurry: bool = False) -> Body | Failure | None:
    """Parse a request body and find the signature's name. No model is looked at yet.

    hurry: return None when only a slow way, a second per megabyte, can tell.
    """
    try:
        members = parse_object(body, hurry=hurry)
    except SlowError:
        return None
    except JsonError as error:
        return _invalid(error.text)
    name = members.get("signature_name", "")
    if type(name) is not str:
        return _invalid(
            f"JSON Value: {quoted(members)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return Body(members, name)


def find_signature(servable: ServableView, name: str) -> SignatureView | Failure:
    """The signature a REST predict means. Code and text differ from those of gRPC."""
    signature = servable.signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        return _invalid(f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in signature def')
    if not signature.inputs:
        return _invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    return signature


_BOTH_KEYS = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "


def read_inputs(body: Body, signature: SignatureView, *, hurry: bool = False) -> Inputs | Failure | None:
    """The tensors of `instances` or `inputs`. Of the signature only dtypes matter, not shapes.

    hurry: return None when only a slow way, a second per million values, can tell.
    """
    members = body.members
    if "instances" in members:
        if "inputs" in members:
            return _about(members, _BOTH_KEYS)
        instances = members["instances"]
        if type(instances) is not list:
            return _about(members, "Expecting 'instances' to be an list/array")
        if not instances:
            return _about(members, "No values in 'instances' array")
        return _rows(instances, signature, hurry)
    if "inputs" in members:
        return _columns(members["inputs"], signature, hurry)
    return _invalid("Missing 'inputs' or 'instances' key")


# ---------------------------------------------------------------------------------------------------- row format

_PLAIN_FOR_MANY = (
    "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
)


def _rows(instances: list[Any], signature: SignatureView, hurry: bool) -> Inputs | Failure | None:
    first = instances[0]
    named = type(first) is dict and not is_base64(first)
    if not named and len(signature.inputs) > 1:
        return _invalid(_PLAIN_FOR_MANY)
    tensors = _named_rows(instances, signature) if named else _plain_rows(instances, signature)
    if tensors is None and hurry:
        return None
    if tensors is None:
        slow = _walk_named_rows(instances, signature) if named else _walk_plain_rows(instances, signature)
        if isinstance(slow, Failure):
            return slow
        tensors = slow
    for alias, tensor in tensors.items():
        if len(tensor.shape) > RANK_MAX:
            return _invalid(f"tensor parsing error: {alias}")
    return Inputs(tensors, by_row=True)


def _plain_rows(instances: list[Any], signature: SignatureView) -> dict[str, Tensor] | None:
    ((alias, spec),) = signature.inputs.items()
    tensor = regular_tensor(instances, spec.dtype)
    return None if tensor is None else {alias: tensor}


def _named_rows(instances: list[Any], signature: SignatureView) -> dict[str, Tensor] | None:
    names = signature.inputs.keys()
    if names == {"b64"} or not all(type(row) is dict and row.keys() == names for row in instances):
        return None
    tensors: dict[str, Tensor] = {}
    for alias, spec in signature.inputs.items():
        tensor = regular_tensor([row[alias] for row in instances], spec.dtype)
        if tensor is None:
            return None
        tensors[alias] = tensor
    return tensors


class _Rows:
    """Values of one input, row after row; every row must look like the first."""

    def __init__(self, dtype: int) -> None:
        self._walk = Walk(dtype)
        self._shape: tuple[int, ...] | None = None
        self._size = 0

    def add(self, value: Any) -> Failure | None:
        before = self._walk.count
        shape = self._walk.add(value)
        if isinstance(shape, Failure):
            return shape
        size = self._walk.count - before
        if self._shape is None:
            self._shape, self._size = shape, size
        elif size != self._size:
            return _invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            return _invalid(f"Expecting shape {shape_text(self._shape)} but got: {shape_text(shape)}")
        return None

    def tensor(self, rows: int) -> Tensor:
        return self._walk.tensor((rows, *(self._shape or ())))


def _walk_plain_rows(instances: list[Any], signature: SignatureView) -> dict[str, Tensor] | Failure:
    ((alias, spec),) = signature.inputs.items()
    rows = _Rows(spec.dtype)
    for index, row in enumerate(instances):
        if type(row) is dict and not is_base64(row):
            return _invalid(f"Expecting value/list but got object at item {index} of input list")
        failure = rows.add(row)
        if failure is not None:
            return _invalid(f"Failed to process element: {index} of 'instances' list. Error: {_status(failure)}")
    return {alias: rows.tensor(len(instances))}


def _walk_named_rows(instances: list[Any], signature: SignatureView) -> dict[str, Tensor] | Failure:
    columns = {alias: _Rows(spec.dtype) for alias, spec in signature.inputs.items()}
    for index, row in enumerate(instances):
        if type(row) is not dict or is_base64(row):
            return _invalid(f"Expecting object but got list at item {index} of input list")
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                failure: Failure | None = _invalid(f"JSON object: does not have named input: {name}")
            else:
                failure = column.add(value)
            if failure is not None:
                return _invalid(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: {_status(failure)}"
                )
        if row.keys() != columns.keys():
            return _invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: {quoted(row)} "
                f"keys must be equal to: {','.join(sorted(columns))}"
            )
    return {alias: column.tensor(len(instances)) for alias, column in columns.items()}


# ----------------------------------------------------------------------------------------------- columnar format


def _columns(value: Any, signature: SignatureView, hurry: bool) -> Inputs | Failure | None:
    specs = signature.inputs
    if type(value) is not dict or is_base64(value):
        if len(specs) > 1:
            return _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = dict.fromkeys(specs, value)
    tensors: dict[str, Tensor] = {}
    for alias, spec in specs.items():
        if alias not in value:
            return _invalid(f"Missing named input: {alias} in 'inputs' object.")
        tensor = regular_tensor(value[alias], spec.dtype)
        if tensor is None and hurry:
            return None
        if tensor is None:
            walk = Walk(spec.dtype)
            shape = walk.add(value[alias])
            if isinstance(shape, Failure):
                return shape
            tensor = walk.tensor(shape)
        tensors[alias] = tensor
    return Inputs(tensors, by_row=False)


# --------------------------------------------------------------------------------------------------------- texts


def _status(failure: Failure) -> str:
    """A failure as it is quoted inside another one's text."""
    return f"{code_name(failure.code)}: {failure.text}"


def _about(members: dict[str, Any], text: str) -> Failure:
    return _invalid(f"JSON Value: {quoted(members)} {text}")


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)
