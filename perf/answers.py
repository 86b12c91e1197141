"""Is this PredictResponse the expected one? For the few answers that Python programs look at themselves: the load
generator compares its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from perf.loadgen import Exchange
from ringserve.config import protos


def _values(tensor: Any) -> Any:
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, "<f4" if tensor.dtype == 1 else "<f8")
    return np.asarray(tensor.float_val if tensor.dtype == 1 else tensor.double_val)


def difference(expected: bytes, answer: bytes) -> str:
    """What differs, floats beyond 1e-4; empty when they are the same. Only float and double outputs are known here."""
    wanted, got = protos.PredictResponse.FromString(expected), protos.PredictResponse.FromString(answer)
    if wanted.model_spec != got.model_spec:
        return f"model_spec is {got.model_spec}, expected {wanted.model_spec}"
    if sorted(wanted.outputs) != sorted(got.outputs):
        return f"the outputs are {sorted(got.outputs)}, expected {sorted(wanted.outputs)}"
    for name, tensor in wanted.outputs.items():
        other = got.outputs[name]
        if tensor.dtype != other.dtype or tensor.tensor_shape != other.tensor_shape:
            return f"output {name} has another dtype or shape"
        if not np.allclose(_values(other), _values(tensor), rtol=1e-4, atol=1e-6):
            return f"output {name} is {_values(other)}, expected {_values(tensor)}"
    return ""


def of_version(expected: bytes, version: int) -> bytes:
    """The same answer, given by another version: what is appended to a message replaces the field."""

    def varint(value: int) -> bytes:
        text = b""
        while value > 127:
            text += bytes((value & 127 | 128,))
            value >>= 7
        return text + bytes((value,))

    number = b"\x08" + varint(version)  # Int64Value.value
    spec = b"\x12" + varint(len(number)) + number  # ModelSpec.version
    return expected + b"\x12" + varint(len(spec)) + spec  # PredictResponse.model_spec


def renamed(exchange: Exchange, model: str) -> Exchange:
    """The same, asked of and answered by a model of that name."""
    request = protos.PredictRequest.FromString(exchange.request)
    answer = protos.PredictResponse.FromString(exchange.expected or b"")
    request.model_spec.name = answer.model_spec.name = model
    return Exchange(request.SerializeToString(), answer.SerializeToString())


def together(exchanges: Sequence[Exchange]) -> Exchange:
    """One request with the rows of all these, one behind the other, and its answer. Of one float input and output."""
    request = protos.PredictRequest.FromString(exchanges[0].request)
    answer = protos.PredictResponse.FromString(exchanges[0].expected or b"")
    asked = [protos.PredictRequest.FromString(one.request) for one in exchanges]
    answered = [protos.PredictResponse.FromString(one.expected or b"") for one in exchanges]
    (alias,), (output,) = request.inputs, answer.outputs
    # A copy: what is assigned to below is among what is read.
    inputs = b"".join(_values(one.inputs[alias]).astype("<f4").tobytes() for one in asked)
    outputs = b"".join(_values(one.outputs[output]).astype("<f4").tobytes() for one in answered)
    for tensor, content in ((request.inputs[alias], inputs), (answer.outputs[output], outputs)):
        tensor.ClearField("float_val")
        tensor.tensor_content = content
        tensor.tensor_shape.dim[0].size = len(exchanges)
    return Exchange(request.SerializeToString(), answer.SerializeToString())


def alternatives(by_version: dict[int, tuple[Exchange, ...]]) -> tuple[Exchange, ...]:
    """Exchanges that any of these versions may answer. by_version: what it answers, whatever number is in there; the
    requests are the same for all."""
    exchanges = []
    for same_request in zip(*by_version.values(), strict=True):
        assert len({exchange.request for exchange in same_request}) == 1
        answers = [
            of_version(exchange.expected or b"", version)
            for version, exchange in zip(by_version, same_request, strict=True)
        ]
        exchanges.append(Exchange(same_request[0].request, answers[0], tuple(answers[1:])))
    return tuple(exchanges)
