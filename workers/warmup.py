"""Warm-up: what serving will do is done once before, so that no client pays for what TensorFlow does only once.

`replay` runs the requests in a version's warm-up file, as TF Serving does: one that fails fails the load. `widen` runs
rows that are at hand in larger batches, up to those that serving will run; it never fails anything.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from ringserve.broker.messages import Code, InputSpec, LaneSpec, ModelOptions
from ringserve.config.tfrecord import WARMUP_FILE, WARMUP_RECORDS_MAX, scan_records
from ringserve.workers.failures import LoadError, RunFailure
from ringserve.workers.gather import layout_of
from ringserve.workers.interface import Model, ModelPlan
from ringserve.workers.lane import runs_alone
from ringserve.workers.tensor_parse import TensorParser
from ringserve.workers.warmup_runs import Feed, Reader, Run

log = logging.getLogger(__name__)

Clock = Callable[[], int]

#: How long one model's larger batches may take in all. A load should not take much longer because of them.
WIDEN_NS_MAX: Final = 2_000_000_000
#: A batch is not doubled when its inputs would take more than this, or the process grew by more in the run before.
_FEEDS_BYTES_MAX: Final = 64 * 2**20
_GROWTH_BYTES_MAX: Final = 256 * 2**20
#: The second run of a size is dearer than the third, too: only then is the memory kept that the first one asked for.
_RUNS_OF_A_SIZE: Final = 2


class Lane(NamedTuple):
    """A kind of request, ready to be run. rows: one array of rows per input, or whole tensors when not batchable."""

    spec: LaneSpec
    plan: ModelPlan
    rows: list[Any]


# ---------------------------------------------------------------------------------------------------- the file's runs


class Replayed(NamedTuple):
    """What a warm-up file came to. lanes: those that its records ran in, each with the first rows seen."""

    records: int
    ns: int
    lanes: list[Lane]


def replay(model: Model, path: Path, iterations: int, options: ModelOptions, clock: Clock) -> Replayed:
    """Run every record of the warm-up file at `path` `iterations` times. Raises LoadError."""
    started_ns = clock()
    lanes: dict[LaneSpec, Lane] = {}
    parser = TensorParser()
    signature_defs = get_model_metadata_pb2.SignatureDefMap.FromString(model.signature_defs).signature_def
    reader = Reader(signature_defs, parser)
    count = 0
    try:
        for record in _records(path):
            count += 1
            if count > WARMUP_RECORDS_MAX:
                text = f"Number of warmup records exceeds the maximum ({WARMUP_RECORDS_MAX}) at {path}"
                raise LoadError(Code.INVALID_ARGUMENT, text)
            _replay_record(model, reader, record, path, count, iterations, options, lanes)
    finally:
        parser.close()
    took_ns = clock() - started_ns
    log.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.",
        path,
        count,
        took_ns // 1000,
    )
    return Replayed(count, took_ns, list(lanes.values()))


def _records(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            records = scan_records(file)
            while True:
                try:
                    record = next(records, None)
                except ValueError as error:
                    text = f"{error}. Please verify your warmup data is in TFRecord format."
                    raise LoadError(Code.DATA_LOSS, text) from None
                if record is None:
                    return
                yield record
    except OSError as error:
        raise LoadError(Code.UNAVAILABLE, f"Cannot read the warm-up file {path}: {error}") from error


def _replay_record(
    model: Model,
    reader: Reader,
    record: bytes,
    path: Path,
    number: int,
    iterations: int,
    options: ModelOptions,
    lanes: dict[LaneSpec, Lane],
) -> None:
    try:
        prediction_log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        text = f"Failed to parse warmup record: {error} from {path}"
        raise LoadError(Code.INVALID_ARGUMENT, text) from None
    try:
        for run in reader.runs(prediction_log):
            lane = lane_of(model, run)
            lanes.setdefault(lane.spec, lane)
            feeds = padded(lane, options)
            for _ in range(iterations):
                outputs = lane.plan.run(feeds)
                run.check([_unpadded(output, lane, feeds) for output in outputs])
    except RunFailure as error:
        raise LoadError(error.failure.code, f"{error.failure.text} (warm-up record {number} of {path})") from None


def lane_of(model: Model, run: Run) -> Lane:
    """The lane that a frontend would send this request in, near enough: what is warmed below it is the same."""
    inputs = list(run.inputs.items())
    rows = {feed.array.shape[0] if feed.array.ndim else 0 for _, feed in inputs}
    batchable = len(rows) == 1 and 0 not in rows and all(_has_row_axis(model, run, alias) for alias in run.inputs)
    specs = tuple(InputSpec(a, feed.dtype, feed.array.shape[1 if batchable else 0 :]) for a, feed in inputs)
    spec = LaneSpec(model.name, model.version, run.signature, specs, run.outputs, batchable)
    return Lane(spec, model.plan(spec), [_fed(given, feed) for given, (_, feed) in zip(specs, inputs, strict=True)])


def _has_row_axis(model: Model, run: Run, alias: str) -> bool:
    signature = model.signatures.get(run.signature)
    try:
        declared = model.shape(signature.inputs[alias]) if signature is not None else None
    except (KeyError, ValueError):
        return False  # `Model.plan` says what is wrong
    return declared is not None and declared[:1] == (None,) and len(declared) == run.inputs[alias].array.ndim


def _fed(spec: InputSpec, feed: Feed) -> Any:
    """The array as it is fed: quantized types are structures of one integer there."""
    dtype = layout_of(spec).dtype
    return feed.array if dtype is None or feed.array.dtype == dtype else feed.array.view(dtype)


def padded(lane: Lane, options: ModelOptions) -> list[Any]:
    """The feeds of the batch that the executor would make of these rows alone."""
    if not lane.spec.batchable or runs_alone(lane.plan, assumed=options.assumes_independence):
        return lane.rows
    rows = len(lane.rows[0])
    return [with_rows(array, _allowed(rows, options)) for array in lane.rows]


def _allowed(rows: int, options: ModelOptions) -> int:
    return next((size for size in options.batch_rows_allowed if size >= rows), rows)


def with_rows(array: Any, rows: int) -> Any:
    """So many rows, by repeating those that are there."""
    return array if len(array) == rows else array[np.arange(rows) % len(array)]


def _unpadded(output: Any, lane: Lane, feeds: Sequence[Any]) -> Any:
    if not lane.spec.batchable or not output.ndim or len(output) != len(feeds[0]):
        return output
    return output[: len(lane.rows[0])]


# ------------------------------------------------------------------------------------------------------ larger batches


def batch_sizes(options: ModelOptions) -> list[int]:
    """The numbers of rows that batches will be warmed for: those allowed, else powers of two up to the largest."""
    if options.batch_rows_allowed:
        return list(options.batch_rows_allowed)
    largest = max(options.batch_rows_max, 1)
    return [1 << exponent for exponent in range(largest.bit_length()) if 1 << exponent < largest] + [largest]


def widen(lanes: Sequence[Lane], sizes: Sequence[int], clock: Clock) -> list[int]:
    """Run the lanes' rows in batches of these sizes, smallest first, while time and memory allow; the sizes run.

    What does not run is left out. A lane that is not batchable is run as it is, which counts as size 0.
    """
    deadline_ns = clock() + WIDEN_NS_MAX
    done = set()
    live = [_Growing(lane) for lane in lanes if not lane.plan.changes_state]
    for rows in (0, *sizes):
        for growing in list(live):
            if growing.lane.spec.batchable is (rows == 0):
                continue
            if growing.run(rows, clock, deadline_ns):
                done.add(rows)
            else:
                live.remove(growing)
    return sorted(done)


class _Growing:
    """One lane on its way to larger batches."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._rows = 0
        self._run_ns = 0
        self._growth_bytes = 0

    def run(self, rows: int, clock: Clock, deadline_ns: int) -> bool:
        """Run a batch of so many rows (0: as it is). False: not run, or not to be made any larger."""
        lane = self.lane
        factor = rows / self._rows if self._rows else 1.0
        nbytes = sum(layout_of(spec).row_bytes for spec in lane.spec.inputs) * max(rows, 1)
        if nbytes > _FEEDS_BYTES_MAX or self._growth_bytes * factor > _GROWTH_BYTES_MAX:
            return False
        if clock() + self._run_ns * factor > deadline_ns:
            return False
        feeds = [with_rows(array, rows) for array in lane.rows] if rows else lane.rows
        peak_before = _peak_bytes()
        try:
            for _ in range(_RUNS_OF_A_SIZE):
                started_ns = clock()
                lane.plan.run(feeds)
                self._run_ns = clock() - started_ns
        except RunFailure as error:
            log.debug("a warm-up run of %s failed: %s", lane.spec.signature, error)
            return False
        self._rows = rows
        self._growth_bytes = _peak_bytes() - peak_before
        return True


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def find_file(directory: Path) -> Path | None:
    """The warm-up file of the version in `directory`, if it has one."""
    path = directory / WARMUP_FILE
    if path.is_file():
        return path
    log.info("No warmup data file found at %s", path)
    return None
