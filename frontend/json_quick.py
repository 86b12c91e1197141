"""A predict request's tensors without looking at each number: for bodies that are plain and right all over.

Most are. Where anything is out of the ordinary this says None, having judged nothing, and the same body goes through
`json_predict`, which follows TF Serving's order of checks and knows its texts.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.frontend.catalog import SignatureView
from ringserve.frontend.json_blocks import Outline, block_of, outline, read_block
from ringserve.frontend.json_predict import Inputs
from ringserve.frontend.json_tensor import regular_tensor
from ringserve.frontend.tensor_proto import Tensor

_KEYS: Final = (b'"signature_name"', b'"instances"', b'"inputs"')


class Quick(NamedTuple):
    """A body that may be read quickly. signature_name: empty when the request names none."""

    body: bytes | bytearray
    outline: Outline
    signature_name: str


#: What surrounds the only array of a body -> its outline without the array's place, and its signature's name. Clients
#: that call in a loop write everything else the same each time.
_FRAMES: Final[dict[tuple[bytes, bytes], tuple[dict[str, Any], bytes, str]]] = {}
_FRAMES_MAX: Final = 1024
_FRAME_BYTES_MAX: Final = 512


def quick_body(body: bytes | bytearray) -> Quick | None:
    """Whether a body may be read quickly. Its arrays are not looked at yet."""
    start, stop = body.find(b"["), body.rfind(b"]") + 1
    if start < 0:
        return None
    frame = bytes(body[:start]), bytes(body[stop:])
    known = _FRAMES.get(frame)
    if known is not None and body.find(b'"', start, stop) < 0:
        return Quick(body, Outline(known[0], [(start, stop)], known[1]), known[2])
    found = outline(body)
    if found is None:
        return None
    members, spans, text = found
    name = members.get("signature_name", "")
    if type(name) is not str or block_of(name) >= 0:
        return None
    # Of equal keys the first one counts, and the parser keeps the last.
    for key in _KEYS:
        if text.count(key) > 1:
            return None
    if spans == [(start, stop)] and len(text) <= _FRAME_BYTES_MAX:
        if len(_FRAMES) >= _FRAMES_MAX:
            _FRAMES.clear()
        _FRAMES[frame] = members, text, name
    return Quick(body, found, name)


def quick_inputs(quick: Quick, signature: SignatureView) -> Inputs | None:
    """Its tensors. Every array must be used for one of them: nobody has looked at what is in the others."""
    members, spans, _ = quick.outline
    if ("instances" in members) == ("inputs" in members):
        return None
    if len(spans) == 1 and len(signature.inputs) == 1 and block_of(members.get("instances")) == 0:
        # One array for the only input, row after row: the commonest body by far.
        ((alias, spec),) = signature.inputs.items()
        array = read_block(quick.body, spans[0], spec.dtype)
        return None if array is None else Inputs({alias: _tensor(spec.dtype, array)}, True)
    reader = _Reader(quick)
    by_row = "instances" in members
    tensors = reader.rows(members["instances"], signature) if by_row else reader.columns(members["inputs"], signature)
    return Inputs(tensors, by_row) if tensors is not None and not reader.unread else None


class _Reader:
    """Reads tensors of one body. unread: how many of its arrays nothing was read of yet."""

    def __init__(self, quick: Quick) -> None:
        self._quick = quick
        self.unread = len(quick.outline.spans)

    def _block(self, index: int, dtype: int) -> npt.NDArray[Any] | None:
        self.unread -= 1
        return read_block(self._quick.body, self._quick.outline.spans[index], dtype)

    def value(self, value: Any, dtype: int) -> Tensor | None:
        """The tensor of one value."""
        index = block_of(value)
        if index < 0:
            return None if _holds_block(value) else regular_tensor(value, dtype)
        array = self._block(index, dtype)
        return None if array is None else _tensor(dtype, array)

    def rows(self, instances: Any, signature: SignatureView) -> dict[str, Tensor] | None:
        """Of `instances`."""
        if block_of(instances) >= 0:
            if len(signature.inputs) != 1:
                return None
            ((alias, spec),) = signature.inputs.items()
            tensor = self.value(instances, spec.dtype)
            return None if tensor is None else {alias: tensor}
        names = signature.inputs.keys()
        if type(instances) is not list or not instances or names == {"b64"}:
            return None
        if not all(type(row) is dict and row.keys() == names for row in instances):
            return None
        tensors: dict[str, Tensor] = {}
        for alias, spec in signature.inputs.items():
            tensor = self._stacked([row[alias] for row in instances], spec.dtype)
            if tensor is None:
                return None
            tensors[alias] = tensor
        return tensors

    def _stacked(self, values: list[Any], dtype: int) -> Tensor | None:
        """Of one input's values, row after row."""
        if block_of(values[0]) < 0:
            # Rows of which only some were long enough for an array of their own are rare.
            return None if any(map(_holds_block, values)) else regular_tensor(values, dtype)
        arrays: list[npt.NDArray[Any]] = []
        for value in values:
            index = block_of(value)
            array = self._block(index, dtype) if index >= 0 else None
            if array is None or (arrays and array.shape != arrays[0].shape):
                return None
            arrays.append(array)
        return _tensor(dtype, arrays[0][np.newaxis] if len(arrays) == 1 else np.stack(arrays))

    def columns(self, inputs: Any, signature: SignatureView) -> dict[str, Tensor] | None:
        """Of `inputs`."""
        specs = signature.inputs
        if type(inputs) is not dict:
            if len(specs) != 1:
                return None
            inputs = dict.fromkeys(specs, inputs)
        elif any(self._quick.outline.text.count(f'"{name}"'.encode()) > 1 for name in inputs):
            return None
        tensors: dict[str, Tensor] = {}
        for alias, spec in specs.items():
            tensor = self.value(inputs[alias], spec.dtype) if alias in inputs else None
            if tensor is None:
                return None
            tensors[alias] = tensor
        return tensors


def _holds_block(value: Any) -> bool:
    """Whether an array's mark stands in a value. As text it could be taken for a string of the client's."""
    rest = [value]
    while rest:
        value = rest.pop()
        if type(value) is list:
            rest += value
        elif type(value) is dict:
            rest += value.values()
        elif block_of(value) >= 0:
            return True
    return False


def _tensor(dtype: int, array: npt.NDArray[Any]) -> Tensor:
    return Tensor(dtype, array.shape, array.reshape(-1).view(np.uint8).data)
