"""Runs of a signature at load: on zeros, which pays TensorFlow's first-run costs and shows whether outputs follow the
rows; and on random numbers, which shows whether a row's outputs depend on the other rows.

No signature says that. A softmax over the batch's rows, or a mean that is taken off, has an output for each row, and
answers of clients whose requests shared a batch would be wrong without a trace. Such a model is found by one row that
is run alone and with two others.

A probe is only ever advice. What fails here is left for a request to find out, and what was not probed is watched by
the executor, run by run, as far as shapes tell.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ringserve.broker.messages import InputSpec
from ringserve.workers import signature
from ringserve.workers.failures import RunFailure
from ringserve.workers.gather import layout_of

if TYPE_CHECKING:
    from ringserve.workers.interface import ModelPlan
    from ringserve.workers.servable import Servable

log = logging.getLogger(__name__)

#: An unlikely size for an output that has nothing to do with the batch.
_ROWS = 3

#: Inputs larger than this are not made up only to try them.
_BYTES_MAX = 64 * 2**20

#: Where three rows of zeros take longer, the first time, three more runs would hold up a load.
_ZEROS_NS_MAX: Final = 5_000_000_000
#: Integers as inputs: small ones are indices of most tables.
_INTEGERS: Final = (0, 3)
#: A difference between sums that were added up in another order, in parts of the largest value, is no dependence. Nor
#: is one step of a whole number, as quantized models round.
_TOLERANCE: Final = 0.02


def outputs_not_per_row(servable: Servable, entry: signature.Signature) -> frozenset[str]:
    """Aliases of the outputs of which three rows put in do not give three rows, or not those that each gives alone.
    Empty when that cannot be tried."""
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
        began_ns = time.monotonic_ns()
        outputs = plan.run(feeds)
        took_ns = time.monotonic_ns() - began_ns
    except RunFailure:
        return frozenset()
    found = frozenset(
        alias for alias, output in zip(entry.outputs, outputs, strict=True) if not output.ndim or len(output) != _ROWS
    )
    if took_ns > _ZEROS_NS_MAX or not all(feed.dtype.kind in "fiub" for feed in feeds):
        return found
    dependent = _dependent(plan, feeds, tuple(entry.outputs)) - found
    if dependent:
        log.warning(
            "model %s version %d, signature %s: what %s says of a row depends on the other rows of its batch, so its "
            "requests are run one by one",
            servable.name, servable.version, entry.name, ", ".join(sorted(dependent)),
        )  # fmt: skip
    return found | dependent


def _dependent(plan: ModelPlan, zeros: Sequence[Any], aliases: Sequence[str]) -> frozenset[str]:
    """The outputs whose first or last row is another one alone than with others. None of what is random."""
    random = np.random.default_rng(0)
    feeds = [_random_like(random, each) for each in zeros]

    def run(rows: slice) -> list[Any]:
        return [np.array(output) for output in plan.run([each[rows] for each in feeds])]

    try:
        together, again, first, last = map(run, (slice(None), slice(None), slice(1), slice(-1, None)))
    except RunFailure:
        return frozenset()
    return frozenset(
        alias
        for alias, a, b, one, other in zip(aliases, together, again, first, last, strict=True)
        if a.ndim and not _differ(a, b) and (_differ(a[:1], one) or _differ(a[-1:], other))
    )


def _random_like(random: np.random.Generator, zeros: Any) -> Any:
    if zeros.dtype.kind == "f":
        return random.standard_normal(zeros.shape).astype(zeros.dtype)
    return random.integers(*_INTEGERS, zeros.shape).astype(zeros.dtype)


def _differ(one: Any, other: Any) -> bool:
    """By more than rounding explains. What cannot be compared does not."""
    if one.shape != other.shape:
        return True
    if one.dtype.kind not in "fiu" or not one.size:
        return False
    a, b = one.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    largest = max(np.abs(a).max(), np.abs(b).max())
    return bool(np.abs(a - b).max() > (_TOLERANCE * largest if one.dtype.kind == "f" else max(1, _TOLERANCE * largest)))
