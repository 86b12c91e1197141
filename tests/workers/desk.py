"""Both ends of an Executor for tests: request rings with requests in them, Results read back as a frontend would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringserve.broker import wire
from ringserve.broker.messages import Done, Execute, InputSpec, LaneSpec, Result
from ringserve.shm import dtype as dtypes
from ringserve.shm import tensor
from ringserve.shm.head import pack_head
from ringserve.shm.layout import align
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment
from ringserve.workers.execute import Batch, Executor
from ringserve.workers.servable import Servable

#: Quantized types share numpy's type with a plain one, whose number is lower.
NUMBER_OF: dict[Any, int] = {
    entry.numpy: number
    for number, entry in sorted(dtypes.DTYPES.items(), reverse=True)
    if entry.numpy is not None and not entry.name.startswith("q")
}


def number_of(array: Any) -> int:
    """TensorFlow's DataType number of an array; objects are strings."""
    return dtypes.STRING if array.dtype == object else NUMBER_OF[array.dtype]


def lane(
    servable: Servable,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    batchable: bool = True,
    signature: str = "serving_default",
) -> LaneSpec:
    """The lane of a request with these arrays."""
    specs = tuple(
        InputSpec(alias, number_of(array), array.shape[1:] if batchable else array.shape)
        for alias, array in inputs.items()
    )
    return LaneSpec(servable.name, servable.version, signature, specs, tuple(outputs), batchable)


def open_lane(servable: Servable, inputs: Mapping[str, Any], outputs: Sequence[str], signature: str) -> LaneSpec:
    """The lane of requests whose inner axes differ: those that the graph leaves open are -1."""
    spec = lane(servable, inputs, outputs, signature=signature)
    declared = servable.signatures[signature].inputs
    opened = []
    for each in spec.inputs:
        shape = servable.shape(declared[each.alias])
        assert shape is not None
        opened.append(each._replace(shape=tuple(-1 if size is None else size for size in shape[1:])))
    return spec._replace(inputs=tuple(opened))


def rows_of(*values: float) -> dict[str, Any]:
    """Inputs of the one-input models: float x."""
    return {"x": np.array(values, np.float32)}


def words(*values: bytes) -> Any:
    """An array of strings [n]."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


class Ring:
    """A frontend's request ring: written at one mapping, read by the worker at another, read-only one."""

    def __init__(self, nbytes: int) -> None:
        self.segment = Segment.create("test-requests", nbytes)
        self.reader = Segment.attach(self.segment.fd)
        self.at = 0

    def put(self, array: Any, head: bytes = b"") -> int:
        """Write one record, with that head, at the next free place; its offset."""
        offset = self.at
        if array.dtype == object:
            values = [head] * bool(head) + array.reshape(-1).tolist()
            nbytes = tensor.string_record_bytes(values)
            tensor.write_strings(self.segment.data, offset, values)
        else:
            self.segment.data[offset : offset + len(head)] = head
            nbytes = len(head) + array.nbytes
            if array.nbytes:
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                np.ndarray(raw.shape, np.uint8, self.segment.data, offset + len(head))[:] = raw
        self.at = offset + align(nbytes)
        return offset


class Desk:
    """An executor with frontends. Answers are copied out of the result ring before the record is given back."""

    def __init__(
        self,
        *servables: Servable,
        frontends: int = 1,
        ring_bytes: int = 1 << 20,
        result_bytes: int = 1 << 20,
        allowed_batch_rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.rings = {frontend_id: Ring(ring_bytes) for frontend_id in range(1, frontends + 1)}
        self.mapped = {frontend_id: ring.reader.data for frontend_id, ring in self.rings.items()}
        self.results = Segment.create("test-results", result_bytes)
        self.writer = RingWriter(result_bytes)
        self.executor = Executor(
            {(s.name, s.version): s for s in servables},
            self.mapped,
            self.writer,
            self.results.data,
            77,
            allowed_batch_rows=allowed_batch_rows,
            awaits=lambda frontend_id: frontend_id in self.awaited,
        )
        self.awaited: set[int] = set()  # frontends of which there is no news yet
        self.batches = 0
        self.requests = 0
        self.rows: dict[int, int] = {}
        #: Records received and not given back: (frontend_id, record_id).
        self.held: list[tuple[int, int]] = []

    def part(
        self,
        inputs: Mapping[str, Any],
        batchable: bool = True,
        frontend_id: int = 1,
        row_start: int = 0,
        rows: int = 0,
        spec: LaneSpec | None = None,
    ) -> list[int]:
        """A request with these arrays, put into its frontend's ring; `rows` of it from `row_start` on (0: all).

        spec: of a lane that leaves axes open; its records say their own shape.
        """
        ring = self.rings[frontend_id]
        opened = {each.alias for each in spec.inputs if -1 in each.shape} if spec is not None else set()
        offsets = [
            ring.put(array, pack_head(array.shape) if alias in opened else b"") for alias, array in inputs.items()
        ]
        self.requests += 1
        rows = rows or (len(next(iter(inputs.values()))) if batchable else 1)
        self.rows[self.requests] = rows
        return [frontend_id, self.requests, rows, row_start, *offsets]

    def start(self, spec: LaneSpec, parts: list[list[int]]) -> Batch:
        self.batches += 1
        return self.executor.execute(Execute(self.batches, wire.pack_lane(spec), parts))

    def run(self, spec: LaneSpec, parts: list[list[int]]) -> tuple[dict[int, Any], Done]:
        """Execute, release everything: {request_id: list of outputs | (code, text)}, and the Done of all.

        As the broker does, execute once more what a batch leaves.
        """
        answers: dict[int, Any] = {}
        run_ns = rows = 0
        while True:
            batch = self.start(spec, parts)
            while True:
                self.read(batch, spec, answers)
                if batch.done is not None:
                    break
                # All has been given back, so the next record must fit.
                assert batch.proceed() or batch._results
            run_ns += batch.done.run_ns
            rows += batch.done.rows
            if not batch.done.parts_left:
                return answers, batch.done._replace(run_ns=run_ns, rows=rows)
            parts = parts[-batch.done.parts_left :]

    def read(self, batch: Batch, spec: LaneSpec, answers: dict[int, Any], release: bool = True) -> None:
        """Take the batch's results into `answers`; each request must be answered once."""
        for frontend_id, result in batch.take_results():
            assert (result.worker_id, result.lane_key) == (77, wire.pack_lane(spec))
            for request_id, code, text, _rows, _row_start in result.failures:
                assert request_id not in answers
                answers[request_id] = (code, text)
            outputs = [self.output(*described) for described in result.outputs]
            self._split(result, spec, outputs, answers)
            if result.record_id >= 0:
                self.held.append((frontend_id, result.record_id))
        if release:
            self.release()

    def _split(self, result: Result, spec: LaneSpec, outputs: list[Any], answers: dict[int, Any]) -> None:
        rows_count = sum(rows for _, _, rows, _ in result.answers)
        for request_id, row_first, rows, _ in result.answers:
            assert request_id not in answers
            assert rows == self.rows[request_id]
            # The rule of a batchable lane: an output that has not one row per row is one request's, as it is.
            whole = [not spec.batchable or not o.ndim or len(o) != rows_count for o in outputs]
            assert not any(whole) or len(result.answers) == 1
            answers[request_id] = [
                o if is_whole else o[row_first : row_first + rows] for o, is_whole in zip(outputs, whole, strict=True)
            ]

    def release(self) -> None:
        for frontend_id, record_id in self.held:
            self.executor.release(frontend_id, [record_id])
        self.held.clear()

    def output(self, number: int, shape: list[int], offset: int) -> Any:
        count = math.prod(shape)
        if number == dtypes.STRING:
            array = np.empty(count, dtype=object)
            array[:] = tensor.read_strings(self.results.data, offset, 0, count)
            return array.reshape(shape)
        numpy = dtypes.dtype_of(number).numpy
        if not count:
            return np.empty(shape, numpy)
        assert offset % 64 == 0
        return np.ndarray(shape, numpy, self.results.data, offset).copy()
