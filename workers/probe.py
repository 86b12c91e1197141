"""Runs of a signature at load: on zeros, which pays TensorFlow's first-run costs and shows whether outputs follow the
rows; and on random values, which shows whether a row's outputs depend on the other rows.

No signature says that. A softmax over the batch's rows, or a mean that is taken off, has an output for each row, and
answers of clients whose requests shared a batch would be wrong without a trace. Such a model is found by four rows that
are run together and alone: once with values below one, and once with rows of unlike size and sign, as some models only
look at the largest value of a batch when that is above one, or below zero.

A probe is only ever advice. What fails here is left for a request to find out, and what it could not show is put on
trial by the executor, with the requests that come (`trial.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ringserve.broker.messages import InputSpec
from ringserve.workers import signature
from ringserve.workers.agreement import differ
from ringserve.workers.failures import RunFailure
from ringserve.workers.gather import layout_of

if TYPE_CHECKING:
    from ringserve.workers.interface import ModelPlan
    from ringserve.workers.servable import Servable

#: An unlikely size for an output that has nothing to do with the batch.
_ROWS = 3
#: Rows that are run together and alone. Two would not do: of two ranks each may well be what it is alone.
_ROWS_TRIED: Final = 4

#: Runs that tell what is random from what depends: coins may well fall the same way twice.
_RUNS_AGAIN_MAX: Final = 3

#: Inputs larger than this are not made up only to try them.
_BYTES_MAX = 64 * 2**20

#: What is put in first are floats below one and whole numbers below this, as pictures and indices of tables are:
#: kernels that end the process do so for odd values, and a model must not be lost for a probe.
_INTEGERS_END: Final = 3
#: What each row's floats are multiplied with the second time, and below what its pixels are.
_ROW_SCALES: Final = (1, -10, 100, 1000)
_ROW_PIXELS_END: Final = (3, 256, 32, 128)
#: Strings are numbers of so few digits: what reads numbers takes them too.
_DIGITS_MAX: Final = 6


class Probed(NamedTuple):
    """Of a signature's outputs, by alias.

    not_per_row: three rows put in do not give three rows. dependent: a row's depend on the other rows. shown: a row's
    do not, which was seen in rows whose outputs differ by more than what is taken for rounding. widely: with values of
    any size, in all inputs.
    """

    not_per_row: frozenset[str] = frozenset()
    dependent: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()
    widely: bool = False


def try_rows(servable: Servable, entry: signature.Signature) -> Probed:
    """What runs on made-up values show. Nothing when that cannot be tried."""
    specs: list[InputSpec] = []
    feeds = []
    try:
        for alias, tensor_name in entry.inputs.items():
            shape = servable.shape(tensor_name)
            if not shape or shape[0] is not None:
                return Probed()
            inner = tuple(size for size in shape[1:] if size is not None)
            if len(inner) < len(shape) - 1:
                return Probed()
            spec = servable.input_spec(entry, alias, inner)
            layout = layout_of(spec)
            if layout.row_bytes * _ROWS_TRIED > _BYTES_MAX:
                return Probed()
            specs.append(spec)
            shape_fed = (_ROWS_TRIED, *inner)
            feeds.append(np.full(shape_fed, b"", object) if layout.dtype is None else np.zeros(shape_fed, layout.dtype))
    except (RunFailure, KeyError, ValueError):
        return Probed()
    if not specs:
        return Probed()
    try:
        plan = servable.plan(signature.lane_of(servable.name, servable.version, entry, tuple(specs), batchable=True))
        outputs = plan.run([feed[:_ROWS] for feed in feeds])
    except RunFailure:
        return Probed()
    found = frozenset(
        alias for alias, output in zip(entry.outputs, outputs, strict=True) if not output.ndim or len(output) != _ROWS
    )
    branches = servable.traits[entry.name].branches
    probed = _run_alone_and_together(plan, feeds, tuple(entry.outputs), signs=not branches)
    return probed._replace(not_per_row=probed.not_per_row | found, dependent=probed.dependent - found)


def _run_alone_and_together(
    plan: ModelPlan, zeros: Sequence[Any], aliases: Sequence[str], *, signs: bool = True
) -> Probed:
    """zeros: as the inputs. signs: some values may be below zero, for which a branch may stand that no client takes.

    Where strings are put in, only a difference shows something: what most models do with strings is the same for all
    that they do not know.
    """
    random = np.random.default_rng(0)
    feeds = [_made_up(random, each) for each in zeros]
    has_text = any(each.dtype.kind == "O" for each in zeros)
    found = _compare(plan, feeds, aliases)
    if found is None and has_text:
        # An empty string is a valid tf.Example, which made-up ones are not.
        feeds = [zero if zero.dtype.kind == "O" else feed for zero, feed in zip(zeros, feeds, strict=True)]
        found = _compare(plan, feeds, aliases)
    if found is None:
        return Probed()
    unlike = [_of_unlike_sizes(random, each) for each in feeds]
    shown = found.shown
    if any(each is not None for each in unlike):
        wide = [feed if each is None else each for feed, each in zip(feeds, unlike, strict=True)]
        more = _compare(plan, wide, aliases) if signs else None
        if more is None:  # or they check that nothing is below zero
            more = _compare(plan, [_positive(each) for each in wide], aliases) or Probed()
        found = Probed(found.not_per_row | more.not_per_row, found.dependent | more.dependent)
        shown &= more.shown
    widely = all(feed.dtype == bool or each is not None for feed, each in zip(feeds, unlike, strict=True))
    return found._replace(shown=frozenset() if has_text else shown, widely=widely)


def _of_unlike_sizes(random: np.random.Generator, feed: Any) -> Any:
    """These made-up values, or others, so that each row's are of another size; None where they may be indices."""
    dtype = feed.dtype
    by_row = (-1, *[1] * (feed.ndim - 1))
    if dtype == np.uint8:
        return random.integers(np.reshape(_ROW_PIXELS_END, by_row), size=feed.shape).astype(dtype)
    if not _has_fractions(dtype):
        return None
    wide = feed.astype(np.complex128 if dtype.kind == "c" else np.float64) * np.reshape(_ROW_SCALES, by_row)
    with np.errstate(all="ignore"):  # too much for some type
        return wide.astype(dtype)


def _positive(feed: Any) -> Any:
    return np.abs(feed) if feed.dtype.kind != "c" and _has_fractions(feed.dtype) else feed


def _has_fractions(dtype: Any) -> bool:
    """Types from ml_dtypes are floats and whole numbers of one kind."""
    return dtype.kind != "O" and not dtype.names and bool(np.array(0.5).astype(dtype).astype(np.complex128) == 0.5)


def _compare(plan: ModelPlan, feeds: Sequence[Any], aliases: Sequence[str]) -> Probed | None:
    """What the rows of `feeds` show; None when they cannot be run. Of what is random nobody can tell."""

    def run(rows: slice) -> dict[str, Any]:
        outputs = plan.run([each[rows] for each in feeds])
        return {alias: np.array(output) for alias, output in zip(aliases, outputs, strict=True)}

    try:
        together = run(slice(None))
        alone = [run(slice(at, at + 1)) for at in range(_ROWS_TRIED)]
        per_row = {alias: rows for alias, rows in together.items() if rows.ndim and len(rows) == _ROWS_TRIED}
        found = {
            alias
            for alias, rows in per_row.items()
            if any(differ(rows[at : at + 1], one[alias]) for at, one in enumerate(alone))
        }
        for _ in range(_RUNS_AGAIN_MAX):
            if not found:
                break
            again = run(slice(None))
            found = {alias for alias in found if not differ(together[alias], again[alias])}
    except RunFailure:
        return None
    shown = {
        alias
        for alias, rows in per_row.items()
        if alias not in found and any(differ(rows[:1], rows[at : at + 1]) for at in range(1, _ROWS_TRIED))
    }
    return Probed(frozenset(aliases) - per_row.keys(), frozenset(found), frozenset(shown))


def _made_up(random: np.random.Generator, zeros: Any) -> Any:
    """Random values for an input, each row's others."""
    dtype, shape = zeros.dtype, zeros.shape
    if dtype.kind == "O":
        digits = random.integers(1, _DIGITS_MAX + 1, size=zeros.size)
        words = np.empty(zeros.size, object)
        words[:] = [b"%d" % random.integers(10 ** (count - 1), 10**count) for count in digits]
        return words.reshape(shape)
    if dtype.kind == "c":
        return (random.random(shape) + 1j * random.random(shape)).astype(dtype)
    if dtype.names:  # a quantized type
        return random.integers(_INTEGERS_END, size=shape).astype(dtype[0]).view(dtype)
    if _has_fractions(dtype):
        return random.random(shape).astype(dtype)
    return random.integers(_INTEGERS_END, size=shape).astype(dtype)
