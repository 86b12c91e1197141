"""One run of a signature on zeros at load: pays TensorFlow's first-run costs, shows whether outputs follow the rows.

A probe is only ever advice. What fails here is left for a request to find out, and what was not probed is watched by
the executor, run by run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringserve.broker.messages import InputSpec
from ringserve.workers import signature
from ringserve.workers.failures import RunFailure
from ringserve.workers.gather import layout_of

if TYPE_CHECKING:
    from ringserve.workers.servable import Servable

#: An unlikely size for an output that has nothing to do with the batch.
_ROWS = 3

#: Inputs larger than this are not made up only to try them.
_BYTES_MAX = 64 * 2**20


def outputs_not_per_row(servable: Servable, entry: signature.Signature) -> frozenset[str]:
    """Aliases of the outputs of which three rows put in do not give three rows. Empty when that cannot be tried."""
    specs: list[InputSpec] = []
    feeds = []
    try:
        for alias, tensor_name in entry.inputs.items():
            shape = servable.shape(tensor_name)
            if not shape or shape[0] is not None:
                return frozenset()
            inner = tuple(size for size in shape[1:] if size is not None)
            if len(inner) < len(shape) - 1:
                return frozenset()
            spec = servable.input_spec(entry, alias, inner)
            layout = layout_of(spec)
            if layout.row_bytes * _ROWS > _BYTES_MAX:
                return frozenset()
            specs.append(spec)
            shape_fed = (_ROWS, *inner)
            feeds.append(np.full(shape_fed, b"", object) if layout.dtype is None else np.zeros(shape_fed, layout.dtype))
    except (RunFailure, KeyError, ValueError):
        return frozenset()
    if not specs:
        return frozenset()
    try:
        plan = servable.plan(signature.lane_of(servable.name, servable.version, entry, tuple(specs), batchable=True))
        outputs = plan.run(feeds)
    except RunFailure:
        return frozenset()
    return frozenset(
        alias for alias, output in zip(entry.outputs, outputs, strict=True) if not output.ndim or len(output) != _ROWS
    )
