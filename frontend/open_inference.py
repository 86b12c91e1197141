"""Requests of the Open Inference protocol over REST, binary tensors included: a body to tensors.

A body is JSON, or JSON and behind it the bytes of those tensors that say `binary_data_size`, in their order. Pure:
nothing here knows of models.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.json_parse import JsonError, SlowError, parse_object
from ringserve.frontend.json_tensor import regular_tensor
from ringserve.frontend.tensor_proto import STRINGS_MAX, Tensor, bools_valid, elements_count
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import STRING, dtype_of

#: The protocol's names of types -> DataType numbers. There are none for complex, quantized and other types.
DATATYPES: Final[dict[str, int]] = {
    "BOOL": dt.BOOL,
    "UINT8": dt.UINT8,
    "UINT16": dt.UINT16,
    "UINT32": dt.UINT32,
    "UINT64": dt.UINT64,
    "INT8": dt.INT8,
    "INT16": dt.INT16,
    "INT32": dt.INT32,
    "INT64": dt.INT64,
    "FP16": dt.HALF,
    "BF16": dt.BFLOAT16,
    "FP32": dt.FLOAT,
    "FP64": dt.DOUBLE,
    "BYTES": dt.STRING,
}
NAMES: Final = {number: name for name, number in DATATYPES.items()}

#: BYTES of more bytes are gone through elsewhere than in the event loop.
_HURRY_STRINGS_BYTES: Final = 32_768
#: Integers are read in the widest type of their kind, and must then fit.
_WIDEST: Final[dict[int, int]] = {
    **dict.fromkeys((dt.INT8, dt.INT16, dt.INT32, dt.UINT8, dt.UINT16, dt.UINT32), dt.INT64),
}

_Text = bytes | bytearray


class Wanted(NamedTuple):
    """An output that is asked for. is_binary: None where the request's own default counts."""

    name: str
    is_binary: bool | None


class Asked(NamedTuple):
    """A request. id: None without one. timeout_ns: 0 for none. tensors: by name. places: of those that lie behind the
    JSON as they are, where in the body; None if there are others. outputs: none for all. is_binary: what counts for
    outputs that say nothing."""

    id: str | None
    signature_name: str
    timeout_ns: int
    tensors: dict[str, Tensor]
    places: dict[str, slice] | None
    outputs: tuple[Wanted, ...]
    is_binary: bool


class _Wrong(Exception):
    """What is wrong with a request. Never leaves this module."""


class _Slow(Exception):
    """Only a slow way can tell, and the caller is in a hurry. Never leaves this module."""


# ----------------------------------------------------------------------------------------------------------- requests


def read(body: _Text, json_bytes: int, *, hurry: bool = False) -> Asked | Failure | None:
    """A request of which `json_bytes` are JSON. Tensors behind it are views of `body`.

    hurry: return None when only a slow way, a second per megabyte, can tell.
    """
    if not 0 <= json_bytes <= len(body):
        return invalid(f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} bytes")
    try:
        members = parse_object(body if json_bytes == len(body) else body[:json_bytes], hurry=hurry)
        return _read(members, memoryview(body), json_bytes, hurry)
    except (SlowError, _Slow):
        return None
    except JsonError as error:
        return invalid(error.text)
    except _Wrong as error:
        return invalid(str(error))


def _read(members: dict[str, Any], body: memoryview, position: int, hurry: bool) -> Asked:
    about = _parameters(members, "the request")
    request_id = members.get("id")
    if request_id is not None and type(request_id) is not str:
        raise _Wrong("'id' must be a string")
    inputs = members.get("inputs")
    if type(inputs) is not list or not inputs:
        raise _Wrong("'inputs' must be a list of tensors, at least one")
    tensors: dict[str, Tensor] = {}
    places: dict[str, slice] | None = {}
    for each in inputs:
        name = _name(each, "input")
        if name in tensors:
            raise _Wrong(f"input '{name}' is there twice")
        dtype, shape = _kind(each, name)
        size = _parameters(each, f"input '{name}'").get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(each, name, dtype, shape)
            places = None
            continue
        if type(size) is not int or size < 0:
            raise _Wrong(f"'binary_data_size' of input '{name}' must be a number of bytes")
        if "data" in each:
            raise _Wrong(f"input '{name}' has both 'data' and 'binary_data_size'")
        if size > len(body) - position:
            raise _Wrong(f"unexpected size for input '{name}': {size} bytes, and {len(body) - position} are left")
        place = slice(position, position + size)
        tensors[name] = _from_bytes(body[place], name, dtype, shape, hurry)
        if dtype == STRING:
            places = None
        if places is not None:
            places[name] = place
        position += size
    if position != len(body):
        raise _Wrong(f"unexpected additional input data: {len(body) - position} bytes behind the last input")
    is_binary = _flag(about, "binary_data_output", "the request") or False
    signature, timeout = about.get("signature_name", ""), about.get("timeout", 0)
    if type(signature) is not str:
        raise _Wrong("'signature_name' must be a string")
    if type(timeout) is not int or not 0 <= timeout < 2**50:
        raise _Wrong("'timeout' must be a number of microseconds")
    outputs = _outputs(members.get("outputs"))
    return Asked(request_id, signature, 1_000 * timeout, tensors, places, outputs, is_binary)


def _parameters(members: dict[str, Any], whose: str) -> dict[str, Any]:
    found = members.get("parameters")
    if found is not None and type(found) is not dict:
        raise _Wrong(f"'parameters' of {whose} must be an object")
    return found or {}


def _flag(parameters: Mapping[str, Any], name: str, whose: str) -> bool | None:
    flag = parameters.get(name)
    if flag is not None and type(flag) is not bool:
        raise _Wrong(f"'{name}' of {whose} must be true or false")
    return flag


def _name(members: Any, what: str) -> str:
    name = members.get("name") if type(members) is dict else None
    if type(name) is not str:
        raise _Wrong(f"each {what} must be an object with a 'name'")
    return name


def _kind(members: dict[str, Any], name: str) -> tuple[int, tuple[int, ...]]:
    datatype, shape = members.get("datatype"), members.get("shape")
    dtype = DATATYPES.get(datatype) if type(datatype) is str else None
    if dtype is None:
        raise _Wrong(f"'datatype' of input '{name}' must be one of {', '.join(DATATYPES)}")
    if type(shape) is not list or not all(type(size) is int for size in shape) or elements_count(shape) < 0:
        raise _Wrong(f"'shape' of input '{name}' must be a list of numbers, none below 0, of a possible tensor")
    return dtype, tuple(shape)


def _outputs(outputs: Any) -> tuple[Wanted, ...]:
    if outputs is None:
        return ()
    if type(outputs) is not list:
        raise _Wrong("'outputs' must be a list")
    found = []
    for each in outputs:
        name = _name(each, "output")
        whose = f"output '{name}'"
        about = _parameters(each, whose)
        if "classification" in about:
            raise _Wrong("the extension 'classification' is not served here")
        found.append(Wanted(name, _flag(about, "binary_data", whose)))
    return tuple(found)


def _from_bytes(data: memoryview, name: str, dtype: int, shape: tuple[int, ...], hurry: bool) -> Tensor:
    count = prod(shape)
    if dtype == STRING:
        if hurry and len(data) > _HURRY_STRINGS_BYTES:
            raise _Slow
        return Tensor(dtype, shape, _split(data, count, name))
    size = count * dtype_of(dtype).itemsize
    if len(data) != size:
        raise _Wrong(f"unexpected size for input '{name}': {len(data)} bytes, and {NAMES[dtype]} of shape "
                     f"{list(shape)} has {size}")  # fmt: skip
    if dtype == dt.BOOL and not bools_valid(data):
        raise _Wrong(f"input '{name}' has bools that are neither 0 nor 1")
    return Tensor(dtype, shape, data)


_LENGTH: Final = struct.Struct("<I")


def _split(data: memoryview, count: int, name: str) -> list[bytes]:
    """Four bytes of length before each element."""
    if count > STRINGS_MAX:
        raise _Wrong(f"input '{name}' has more than {STRINGS_MAX} elements")
    values: list[bytes] = []
    position, end = 0, len(data)
    while position < end and len(values) < count:
        if end - position < _LENGTH.size:
            break
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > end:
            break
        values.append(bytes(data[start:position]))
    if position != end or len(values) != count:
        raise _Wrong(f"unexpected data of input '{name}': {end} bytes that are not {count} elements with their lengths")
    return values


def _from_json(members: dict[str, Any], name: str, dtype: int, shape: tuple[int, ...]) -> Tensor:
    if "data" not in members:
        raise _Wrong(f"input '{name}' has neither 'data' nor 'binary_data_size'")
    data = members["data"]
    tensor = regular_tensor(data, _WIDEST.get(dtype, dtype)) if type(data) is list else None
    wanted = f"'data' of input '{name}' must be {NAMES[dtype]} of shape {list(shape)}, flat or nested"
    if tensor is None or (tensor.shape != shape and tensor.shape != (prod(shape),)):
        # A scalar is a list of one element.
        raise _Wrong(wanted)
    if tensor.dtype != dtype:
        assert not isinstance(tensor.data, list)
        wide, target = np.frombuffer(tensor.data, np.int64), dtype_of(dtype).numpy
        limits = np.iinfo(target)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise _Wrong(f"{wanted}: a number is out of range")
        return Tensor(dtype, shape, wide.astype(target).view(np.uint8).data)
    if dtype == STRING and _parameters(members, f"input '{name}'").get("content_type") == "base64":
        assert isinstance(tensor.data, list)
        try:
            return Tensor(dtype, shape, [binascii.a2b_base64(value, strict_mode=True) for value in tensor.data])
        except binascii.Error as error:
            raise _Wrong(f"'data' of input '{name}' is no base64: {error}") from None
    return Tensor(dtype, shape, tensor.data)


def raw_input(
    body: _Text, alias: str, dtype: int, shape: Sequence[int] | None, *, has_row_axis: bool
) -> Tensor | Failure:
    """A body without any JSON: the bytes of a model's only input, one row of it. shape: as the signature declares it;
    one of its other axes may be free, and is as long as the bytes make it."""
    if shape is None:
        return invalid(f"input '{alias}' has no declared shape, so its bytes need a request in JSON before them")
    sizes = [1, *shape[1:]] if has_row_axis else list(shape)
    if dtype == STRING:
        if prod(sizes) != 1:
            return invalid(f"a body without JSON is one element, and input '{alias}' has the shape {sizes}")
        return Tensor(dtype, tuple(sizes), [bytes(body)])
    itemsize = dtype_of(dtype).itemsize
    if sizes.count(-1) == 1:
        inner = itemsize * prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(body) // inner if inner else 0
    if min(sizes, default=0) < 0 or len(body) != itemsize * prod(sizes):
        return invalid(f"unexpected size for input '{alias}': {len(body)} bytes for the shape {list(shape)}")
    data = memoryview(body)
    if dtype == dt.BOOL and not bools_valid(data):
        return invalid(f"input '{alias}' has bools that are neither 0 nor 1")
    return Tensor(dtype, tuple(sizes), data)


def invalid(text: str) -> Failure:
    """A request that is wrong."""
    return Failure(Code.INVALID_ARGUMENT, text)
