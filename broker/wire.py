"""Hot messages <-> bytes: msgpack arrays whose first element is the message's Kind.

One message of a cable, or of ZeroMQ, holds one hot message. Only processes of one ringserve, of one protocol version
(checked at registration), inside one private directory, speak it; a message that does not decode is a bug or a
stranger, and either way a WireError for the receiver to drop and count.
"""

from __future__ import annotations

from typing import Any

import msgpack

from ringserve.broker.messages import (
    Cancel,
    Done,
    Execute,
    Failed,
    Handed,
    InputSpec,
    Kind,
    LaneSpec,
    Lend,
    Recall,
    Release,
    Result,
    Returned,
    Submit,
)

HotMessage = Submit | Cancel | Execute | Result | Done | Release | Failed | Lend | Recall | Handed | Returned

_MESSAGE_OF_KIND: dict[int, type[HotMessage]] = {
    Kind.SUBMIT: Submit,
    Kind.CANCEL: Cancel,
    Kind.EXECUTE: Execute,
    Kind.RESULT: Result,
    Kind.DONE: Done,
    Kind.RELEASE: Release,
    Kind.FAILED: Failed,
    Kind.LEND: Lend,
    Kind.RECALL: Recall,
    Kind.HANDED: Handed,
    Kind.RETURNED: Returned,
}
_KIND_OF_MESSAGE = {message: int(kind) for kind, message in _MESSAGE_OF_KIND.items()}
_FIELDS_COUNT = {kind: len(message._fields) for kind, message in _MESSAGE_OF_KIND.items()}

_packb = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class WireError(Exception):
    """Bytes that are no message of ours; the text says what was wrong with them."""


def pack(message: HotMessage) -> bytes:
    """The bytes of one hot message."""
    packed: bytes = _packb((_KIND_OF_MESSAGE[type(message)], *message))
    return packed


def unpack(data: bytes) -> HotMessage:
    """The message in `data`. Nested sequences are lists, whatever they were when packed. Raises WireError."""
    try:
        # Sizes inside a message are bounded by the message's own length, so msgpack's limits are left at that.
        fields = msgpack.unpackb(data, use_list=True, raw=False)
        message = _MESSAGE_OF_KIND[fields[0]]
        return message(*fields[1:])
    except (KeyError, TypeError, IndexError) as error:
        raise WireError(f"no message of this protocol: {error!r}") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error!r}") from error


def pack_lane(spec: LaneSpec) -> bytes:
    """The lane's key: equal specs give equal bytes."""
    packed: bytes = _packb(spec)
    return packed


def unpack_lane(key: bytes) -> LaneSpec:
    """The spec that `pack_lane` packed. Raises WireError."""
    try:
        model, version, signature, inputs, outputs, batchable = msgpack.unpackb(key, use_list=False, raw=False)
        specs = tuple(InputSpec(alias, dtype, shape) for alias, dtype, shape in inputs)
        return LaneSpec(model, version, signature, specs, outputs, batchable)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"not a lane key: {error!r}") from error


def pack_fields(fields: tuple[Any, ...]) -> bytes:
    """Any tuple of plain values, for the control channel."""
    packed: bytes = _packb(fields)
    return packed


def unpack_fields(data: bytes) -> list[Any]:
    """What `pack_fields` packed, sequences as lists. Raises WireError."""
    try:
        fields = msgpack.unpackb(data, use_list=True, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error!r}") from error
    if not isinstance(fields, list):
        raise WireError(f"expected an array, got {type(fields).__name__}")
    return fields
