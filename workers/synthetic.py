"""What to warm a model up with that brought no warm-up file: zeros, in the shapes that its signatures declare."""

from __future__ import annotations

from typing import Final

import numpy as np

from ringserve.broker.messages import InputSpec, LaneSpec
from ringserve.shm.dtype import STRING
from ringserve.workers.failures import RunFailure
from ringserve.workers.gather import layout_of
from ringserve.workers.interface import Model
from ringserve.workers.signature import Signature
from ringserve.workers.warmup import Lane

_DEFAULT_SIGNATURE: Final = "serving_default"

#: Of one row. An input that is larger is left to real requests.
_ROW_BYTES_MAX: Final = 64 * 2**20
#: Signatures that a reason names.
_NAMES_MAX: Final = 4


def lanes(model: Model) -> tuple[list[Lane], str]:
    """A lane with one row of zeros for each signature that may be tried, and why not for the other ones, in words.

    Axes of unknown size get 1. Strings are empty, which is also a valid tf.Example without features.
    """
    found: list[Lane] = []
    reasons: dict[str, list[str]] = {}
    for name in sorted(model.signatures, key=lambda name: (name != _DEFAULT_SIGNATURE, name)):
        reason = model.why_not_try(name)
        if not reason:
            made = _lane(model, model.signatures[name])
            if isinstance(made, Lane):
                found.append(made)
                continue
            reason = made
        reasons.setdefault(reason, []).append(name)
    return found, "; ".join(f"{_named(names)} ({reason})" for reason, names in reasons.items())


def _named(names: list[str]) -> str:
    shown, more = names[:_NAMES_MAX], len(names) - _NAMES_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _lane(model: Model, entry: Signature) -> Lane | str:
    """The lane, or in words why there is none."""
    try:
        known: list[tuple[int | None, ...]] = []
        for alias, tensor_name in entry.inputs.items():
            shape = model.shape(tensor_name)
            if shape is None:
                if model.input_spec(entry, alias, ()).dtype != STRING:
                    return "an input of unknown rank"
                shape = (None,)  # serialized Examples, in nearly all models
            known.append(shape)
        batchable = bool(known) and all(shape and shape[0] is None for shape in known)
        specs: list[InputSpec] = []
        rows = []
        for alias, shape in zip(entry.inputs, known, strict=True):
            sizes = tuple(1 if size is None else size for size in shape)
            spec = model.input_spec(entry, alias, sizes[1:] if batchable else sizes)
            layout = layout_of(spec)
            if layout.row_bytes > _ROW_BYTES_MAX:
                return "a large input"
            specs.append(spec)
            rows.append(np.full(sizes, b"", object) if layout.dtype is None else np.zeros(sizes, layout.dtype))
        # Frontends name the outputs in this order.
        outputs = tuple(sorted(entry.outputs))
        lane = LaneSpec(model.name, model.version, entry.name, tuple(specs), outputs, batchable)
        return Lane(lane, model.plan(lane), rows)
    except (RunFailure, KeyError, ValueError) as error:
        return str(error)
