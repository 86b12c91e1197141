"""Runs of a signature at load: on zeros, which pays TensorFlow's first-run costs and shows whether outputs follow the
rows; and on random numbers, which shows whether a row's outputs depend on the other rows.

No signature says that. A softmax over the batch's rows, or a mean that is taken off, has an output for each row, and
answers of clients whose requests shared a batch would be wrong without a trace. Such a model is found by two rows that
are run together and alone.

A probe is only ever advice. What fails here is left for a request to find out, and what was not probed is watched by
the executor, run by run, as far as shapes tell.
"""

from __future__ import annotations

import logging
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

#: What is put in beside zeros are floats below one and whole numbers below this, as pictures and indices of tables are:
#: kernels that end the process do so for odd values, and a model must not be lost for a probe.
_INTEGERS_END: Final = 3
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
        outputs = plan.run(feeds)
    except RunFailure:
        return frozenset()
    found = frozenset(
        alias for alias, output in zip(entry.outputs, outputs, strict=True) if not output.ndim or len(output) != _ROWS
    )
    if not all(feed.dtype.kind in "fiub" for feed in feeds):
        return found
    dependent = _dependent(plan, [feed[:2] for feed in feeds], tuple(entry.outputs)) - found
    if dependent:
        log.warning(
            "model %s version %d, signature %s: what %s says of a row depends on the other rows of its batch, so its "
            "requests are run one by one",
            servable.name, servable.version, entry.name, ", ".join(sorted(dependent)),
        )  # fmt: skip
    return found | dependent


def _dependent(plan: ModelPlan, zeros: Sequence[Any], aliases: Sequence[str]) -> frozenset[str]:
    """Outputs of two rows of which one is another one alone, but none of what is random. zeros: as the inputs."""
    random = np.random.default_rng(0)
    feeds = [_random_like(random, each) for each in zeros]

    def run(rows: slice) -> dict[str, Any]:
        outputs = plan.run([each[rows] for each in feeds])
        return {alias: np.array(output) for alias, output in zip(aliases, outputs, strict=True)}

    try:
        both, *alone = map(run, (slice(None), slice(1), slice(1, None)))
        found = {
            alias
            for alias, rows in both.items()
            if rows.ndim and any(_differ(rows[at : at + 1], one[alias]) for at, one in enumerate(alone))
        }
        if found:
            again = run(slice(None))
            found = {alias for alias in found if not _differ(both[alias], again[alias])}
    except RunFailure:
        return frozenset()
    return frozenset(found)


def _random_like(random: np.random.Generator, zeros: Any) -> Any:
    if zeros.dtype.kind == "f":
        return random.random(zeros.shape).astype(zeros.dtype)
    return random.integers(_INTEGERS_END, size=zeros.shape).astype(zeros.dtype)


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
