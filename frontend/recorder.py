"""Keeps the next requests of a model as warm-up records: what `client.infer` gets, by whichever protocol it came.

There is a recorder only while somebody waits for records; without one a request pays for one comparison. Requests are
kept as they go to the workers: checked, complete with defaults, from the lane that they were bound to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from ringserve.config.protos import PredictionLog
from ringserve.config.tfrecord import WARMUP_RECORDS_MAX, write_record
from ringserve.frontend.handler import Buffer
from ringserve.frontend.lanes import Lane
from ringserve.shm.dtype import STRING

#: Bytes of records that one recording keeps at most; it ends when it has as many.
RECORDING_BYTES_MAX: Final = 64 * 2**20
#: Recordings at one time.
RECORDINGS_MAX: Final = 4


class Recording:
    """Records of one model: at most `count`. `done`: set when it has them, or as many bytes as it may keep."""

    def __init__(self, model: str, count: int) -> None:
        self.model = model
        self.done = asyncio.Event()
        self._count = min(count, WARMUP_RECORDS_MAX)
        self._records: list[bytes] = []
        self._bytes = 0

    @property
    def count(self) -> int:
        """Records so far."""
        return len(self._records)

    def add(self, log: bytes) -> None:
        """Keep one serialized PredictionLog."""
        if self.done.is_set():
            return
        self._bytes += len(log)
        if self._bytes <= RECORDING_BYTES_MAX or not self._records:
            self._records.append(write_record(log))
        if len(self._records) >= self._count or self._bytes >= RECORDING_BYTES_MAX:
            self.done.set()

    def file(self) -> bytes:
        """The records as a warm-up file."""
        return b"".join(self._records)


class Recorder:
    """The recordings that go on in this frontend."""

    def __init__(self) -> None:
        self._recordings: list[Recording] = []

    def see(self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], api: str) -> None:
        """A request is about to run. api: `Predict`, `Classify` or `Regress`; others are not for warm-up files."""
        wanted = [each for each in self._recordings if each.model == lane.spec.model and not each.done.is_set()]
        if not wanted or api not in _MAKERS:
            return
        log = _MAKERS[api](lane, rows, payloads).SerializeToString()
        for recording in wanted:
            recording.add(log)

    def begin(self, model: str, count: int) -> Recording | None:
        """Begin a recording; None when there are too many."""
        if len(self._recordings) >= RECORDINGS_MAX:
            return None
        recording = Recording(model, count)
        self._recordings.append(recording)
        return recording

    def end(self, recording: Recording) -> bool:
        """End a recording. True when it was the last."""
        self._recordings.remove(recording)
        return not self._recordings


# ----------------------------------------------------------------------------------------------------------- records


def _predict(lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]]) -> Any:
    log = PredictionLog()
    request = log.predict_log.request
    _name(request.model_spec, lane)
    heads = lane.heads or [None] * len(payloads)
    for spec, head, payload in zip(lane.spec.inputs, heads, payloads, strict=True):
        tensor = request.inputs[spec.alias]
        tensor.dtype = spec.dtype
        inner = spec.shape if head is None else head
        tensor.tensor_shape.SetInParent()
        for size in (rows, *inner) if lane.spec.batchable else inner:
            tensor.tensor_shape.dim.add(size=size)
        if spec.dtype == STRING:
            assert isinstance(payload, list)
            tensor.string_val.extend(payload)
        else:
            assert not isinstance(payload, list)
            tensor.tensor_content = bytes(payload)
    request.output_filter.extend(lane.spec.outputs)
    return log


def _classify(lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]]) -> Any:
    log = PredictionLog()
    _fill(log.classify_log.request, lane, payloads)
    return log


def _regress(lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]]) -> Any:
    log = PredictionLog()
    _fill(log.regress_log.request, lane, payloads)
    return log


def _fill(request: Any, lane: Lane, payloads: Sequence[Buffer | list[bytes]]) -> None:
    _name(request.model_spec, lane)
    (examples,) = payloads
    assert isinstance(examples, list)
    for example in examples:
        request.input.example_list.examples.add().MergeFromString(example)


def _name(model_spec: Any, lane: Lane) -> None:
    model_spec.name = lane.spec.model
    model_spec.signature_name = lane.spec.signature


_MAKERS: Final = {"Predict": _predict, "Classify": _classify, "Regress": _regress}
