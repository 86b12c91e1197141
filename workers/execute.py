"""Execute -> Results and Done, given the rings and the servables: gather, run, scatter. No sockets, no waiting.

Outcome is per request: a run of several parts that fails answers none of them. They go back to the broker and come
again in smaller batches, so that the part which is to blame fails alone (`suspects.py`). Where the result ring is full
the batch stops half way and is taken up again by `Batch.proceed`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from ringserve.broker.messages import Code, Done, Execute, Failure, LaneSpec, ModelOptions, Result
from ringserve.broker.wire import unpack_lane
from ringserve.shm.ring import RingWriter
from ringserve.workers.comparing import LONG_NS, Answers, are_copies, may_answer, try_together
from ringserve.workers.failures import RunFailure
from ringserve.workers.feeding import Feeder
from ringserve.workers.gather import FRONTEND, REQUEST, ROW_START, ROWS, Columns, Part, whole_feeds
from ringserve.workers.interface import Model
from ringserve.workers.lane import Lane
from ringserve.workers.scatter import Block
from ringserve.workers.shares import Shares
from ringserve.workers.suspects import Suspicions
from ringserve.workers.trial import Trial, Trials

#: Lanes whose plans are kept. A client that varies shapes makes new ones without end.
_LANES_MAX = 1024

_NOT_PER_ROW = (
    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input tensors, "
    "so a request of this size, which had to be split, has no answer; send fewer rows."
)

_NO_ROOM = (
    "The result ring is full of answers that a frontend does not take; try again, or raise result_ring_bytes."
)

Servables = Mapping[tuple[str, int], Model]


class Batch:
    """One Execute on its way: send what `take_results` gives, then `done` if it is there, else `proceed` later."""

    __slots__ = ("_results", "_run", "_steps", "done", "waits_for_bytes")

    def __init__(self, run: _Run, results: list[tuple[int, Result]], steps: Generator[int, None, Done]) -> None:
        self._run = run
        self._results = results
        self._steps = steps
        #: The end of the batch; None while it waits for room in the result ring.
        self.done: Done | None = None
        #: The record for which there is no room yet; 0 when none waits.
        self.waits_for_bytes = 0

    def take_results(self) -> list[tuple[int, Result]]:
        """(frontend_id, Result) made since the last call."""
        results = self._results[:]
        self._results.clear()
        return results

    @property
    def waited_ns(self) -> int:
        """For how long it has waited, up to the last `look`."""
        return self._run.waited_ns

    def look(self, now_ns: int) -> None:
        """It waits, and has since the last look, unless it was told to proceed after that."""
        run = self._run
        if run.waits_since_ns:
            run.waited_ns += now_ns - run.waits_since_ns
        run.waits_since_ns = now_ns

    def give_up(self) -> None:
        """Wait for no room any more: what finds none fails. Call `proceed` to go on."""
        self._run.waits = False

    def proceed(self) -> bool:
        """Go on until the batch is done (True) or the result ring is full (False: call again after a Release)."""
        if self.done is None:
            self._run.waits_since_ns = 0
            try:
                self.waits_for_bytes = next(self._steps)
            except StopIteration as end:
                self.done = end.value
                self.waits_for_bytes = 0
        return self.done is not None


class _Run:
    """What is counted and sent while one batch runs. waits: for room in the result ring."""

    __slots__ = ("message", "ns", "rows_count", "send", "span", "waited_ns", "waits", "waits_since_ns")

    def __init__(self, message: Execute, send: Callable[[tuple[int, Result]], None]) -> None:
        self.message = message
        self.send = send
        self.ns = 0
        self.rows_count = 0
        #: The last call of TensorFlow, as in Result; empty where nobody wants to know.
        self.span: list[int] = []
        self.waits = True
        self.waits_since_ns = 0
        self.waited_ns = 0


class Executor:
    """One worker's batches, one at a time. `rings`, `servables`: live views of what main attaches and loads.

    results: the writable bytes behind `ring`. allowed_batch_rows: by model name, the sizes up to which a batch's rows
    are padded (ascending), until `set_options` says otherwise; models that are not there are not padded. traces: say in
    each Result when TensorFlow ran (clock_ns then is the monotonic clock). awaits: whether a frontend that has no ring
    yet will have one: a batch may overtake the news of it, and waits then.
    """

    def __init__(
        self,
        servables: Servables,
        rings: Mapping[int, memoryview],
        ring: RingWriter,
        results: memoryview,
        worker_id: int,
        *,
        allowed_batch_rows: Mapping[str, Sequence[int]] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        traces: bool = False,
        awaits: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._servables = servables
        self._awaits = awaits
        self._rings = rings
        self._ring = ring
        self._results = results
        self.worker_id = worker_id
        self._feeder = Feeder(rings, allowed_batch_rows or {})
        self._assumes_independence: set[str] = set()
        self.trials = Trials()
        self._suspicions = Suspicions()
        self._clock_ns = clock_ns
        self._traces = traces
        self._lanes: OrderedDict[bytes, Lane | Failure] = OrderedDict()
        #: What each frontend holds.
        self.shares = Shares(ring, rings)

    def execute(self, message: Execute) -> Batch:
        """Run a batch. The one before must be done: its feeds may lie in memory that this one uses."""
        results: list[tuple[int, Result]] = []
        run = _Run(message, results.append)
        batch = Batch(run, results, self._steps(run))
        batch.proceed()
        return batch

    def release(self, frontend_id: int, record_ids: Sequence[int]) -> None:
        """A Release from this frontend."""
        self.shares.release(frontend_id, record_ids)

    def frontend_left(self, frontend_id: int) -> None:
        """Take back what this frontend holds. Its ring must be gone from `rings` by now."""
        self.shares.left(frontend_id)

    def set_options(self, name: str, options: ModelOptions) -> None:
        """How batches of the model `name` are run from the next one on. Lanes say by themselves whether they pad."""
        self._feeder.set_options(name, options)
        if options.assumes_independence != (name in self._assumes_independence):
            self._assumes_independence ^= {name}
            self.forget_lanes()

    def forget_lanes(self) -> None:
        """Drop all plans: the servables behind them change."""
        self._lanes.clear()
        self._suspicions.clear()

    # -------------------------------------------------------------------------------------------------- the steps
    # Generators: each yields the bytes it waits for while the result ring is full, and goes on when resumed; or 0.

    def _steps(self, run: _Run) -> Generator[int, None, Done]:
        message = run.message
        parts: list[Part] = [part for part in message.parts if part[FRONTEND] in self._rings]
        while len(parts) < len(message.parts) and any(self._awaits(part[FRONTEND]) for part in message.parts):
            yield 0
            parts = [part for part in message.parts if part[FRONTEND] in self._rings]
        lane = self._lane(message.lane_key)
        left = parts_max = 0
        if isinstance(lane, Failure):
            for part in parts:
                self._fail(run, part, lane)
        else:
            alone: list[Part] = []
            if lane.trial is not None:
                lane.heed(lane.trial)
            copies = lane.lone and are_copies(lane, self._feeder, parts)
            if not copies:
                parts_max = lane.parts_max or self._suspicions.first(message.lane_key, message.parts)
            if parts_max:
                parts, left = self._first(parts_max, message.parts)
            if lane.pads:
                pieces = [self._feeder.is_piece(lane, part) for part in parts]
                alone = [part for part, piece in zip(parts, pieces, strict=True) if piece]
                parts = [part for part, piece in zip(parts, pieces, strict=True) if not piece]
            shares = copies or not lane.lone
            if parts and not (shares and (yield from self._answer_together(run, lane, parts))):
                alone = parts + alone
                if lane.parts_max:  # as this run may have shown
                    alone, left = self._first(lane.parts_max, message.parts)
                elif not lane.lone:  # it failed
                    alone, left = [], len(message.parts)
            if lane.trial is not None and len(alone) > 1 and not shares:
                yield from self._answer_on_trial(run, lane, lane.trial, alone)
            else:
                for part in alone:
                    yield from self._answer_alone(run, lane, part)
            parts_max = lane.parts_max or self._suspicions.parts_max(message.lane_key)
            if copies and not alone:
                parts_max = 0
        requests = [part[ROWS] for part in message.parts] if message.waits else []
        done = Done(self.worker_id, message.batch_id, run.ns, run.rows_count, run.waited_ns, left, parts_max)
        return done._replace(requests=requests, waits=message.waits) if requests else done

    def _first(self, count: int, parts: Sequence[Part]) -> tuple[list[Part], int]:
        """Of the parts of a batch of which not all may be run: those that this batch runs, and how many it leaves.

        Nobody gets an answer before the batch is over, and its lease is for one run.
        """
        kept = parts[:count]
        return [part for part in kept if part[FRONTEND] in self._rings], len(parts) - len(kept)

    def _answer_together(self, run: _Run, lane: Lane, parts: list[Part]) -> Generator[int, None, bool]:
        """Run all parts in one go. False: no part has been answered: it failed, or each must be run by itself."""
        groups = self._feeder.group(parts)
        rows_count = sum([group.rows_count for group in groups])
        rows_fed = self._feeder.rows_fed(lane, rows_count)
        try:
            # The feeds are no local of a generator that may wait: they would keep the ring of a frontend that leaves.
            outputs = self._call(run, lane, self._feeder.feeds(lane, groups, rows_count, rows_fed), rows_count)
        except RunFailure as error:
            if not lane.lone:  # then they run alone next
                self._suspicions.failed(run.message.lane_key, parts)
            if len(parts) > 1:
                return False
            self._fail(run, parts[0], error.failure)
            return True
        self._suspicions.passed(run.message.lane_key, parts)
        if not all(output.ndim and len(output) == rows_fed for output in outputs):
            # Never right for this lane, so do not try again. A lone part that was not padded has its answer already.
            lane.run_alone()
            if len(parts) > 1 or rows_fed != rows_count:
                return False
            yield from self._send_whole(run, lane, parts[0], outputs, rows_fed)
            return True
        if lane.trial is not None and not may_answer(lane, lane.trial, self._feeder, groups, outputs, run.ns):
            return False
        first = 0
        for group in groups:
            rows = [output[first : first + group.rows_count] for output in outputs]
            yield from self._send_rows(run, lane, group.parts, rows)
            first += group.rows_count
        return True

    def _answer_on_trial(self, run: _Run, lane: Lane, trial: Trial, parts: list[Part]) -> Generator[int, None, None]:
        """Run each part by itself, then all of them together to see whether that makes a difference."""
        answers = Answers()
        has_waited = False
        for part in parts:
            for nbytes in self._answer_alone(run, lane, part, answers):
                has_waited = True
                yield nbytes
        # Results go out when a batch waits, and whoever has an answer takes the request's memory back.
        if not has_waited and len(answers.parts) > 1:
            together_ns = try_together(lane, trial, self._feeder, answers, self._clock_ns)
            # What the trial takes beyond that is not told to the broker, for it would find that batches do not pay; but
            # where it is long, deadlines depend on it.
            run.ns = run.ns + together_ns if run.ns > LONG_NS else together_ns or run.ns
        lane.heed(trial)

    def _answer_alone(
        self, run: _Run, lane: Lane, part: Part, answers: Answers | None = None
    ) -> Generator[int, None, None]:
        """Run one part by itself. answers: where to keep what it is answered."""
        ring = self._rings.get(part[FRONTEND])
        if ring is None:
            return  # gone while the parts before this one waited for room
        rows_fed = part[ROWS] if lane.lone else self._feeder.rows_fed(lane, part[ROWS])
        try:
            if lane.batchable:
                feeds = self._feeder.feeds(lane, [Columns(ring, [part])], part[ROWS], rows_fed)
            else:
                feeds = whole_feeds(lane.layouts, ring, part)
            outputs = self._call(run, lane, feeds, part[ROWS])
        except RunFailure as error:
            self._fail(run, part, error.failure)
            return
        del feeds
        if answers is not None:
            answers.keep(part, outputs)
        yield from self._send_whole(run, lane, part, outputs, rows_fed)

    def _send_whole(
        self, run: _Run, lane: Lane, part: Part, outputs: list[Any], rows_fed: int
    ) -> Generator[int, None, None]:
        """The outputs of a run of one part. Those that do not follow the rows are its answer as they are."""
        if lane.batchable:
            follow = [bool(output.ndim) and len(output) == rows_fed for output in outputs]
            if part[ROW_START] and not all(follow):
                self._fail(run, part, Failure(Code.FAILED_PRECONDITION, _NOT_PER_ROW))
                return
            outputs = [o[: part[ROWS]] if follows else o for o, follows in zip(outputs, follow, strict=True)]
        yield from self._send_rows(run, lane, [part], outputs)

    def _send_rows(self, run: _Run, lane: Lane, parts: list[Part], outputs: list[Any]) -> Generator[int, None, None]:
        """One record with `outputs`, which are the rows of these parts of one frontend, and the Result that says so."""
        frontend_id = parts[0][FRONTEND]
        if frontend_id not in self._rings:
            return  # gone while the parts before these waited for room
        block = Block(outputs, lane.plan.output_dtypes)
        if block.nbytes > self._ring.record_bytes_max:
            yield from self._send_less(run, lane, parts, outputs, block.nbytes)
            return
        offset = -1
        if block.nbytes:
            while (offset := self.shares.claim(frontend_id, block.nbytes)) < 0:
                if not run.waits or self.shares.is_hopeless(frontend_id, block.nbytes):
                    self.shares.end_wait()
                    for part in parts:
                        self._fail(run, part, Failure(Code.RESOURCE_EXHAUSTED, _NO_ROOM))
                    return
                yield block.nbytes
                if frontend_id not in self._rings:
                    self.shares.end_wait()
                    return
        described = block.write(self._results, offset)
        firsts = accumulate([part[ROWS] for part in parts], initial=0)
        answers = [[part[REQUEST], first, part[ROWS], part[ROW_START]] for part, first in zip(parts, firsts)]  # noqa: B905
        message = run.message
        result = Result(self.worker_id, message.batch_id, message.lane_key, offset, described, answers, [], run.span)
        run.send((frontend_id, result))

    def _send_less(
        self, run: _Run, lane: Lane, parts: list[Part], outputs: list[Any], nbytes: int
    ) -> Generator[int, None, None]:
        """A record that the ring can never hold: half of the parts at a time, and a part that is too large fails."""
        if len(parts) == 1:
            text = (
                f"The outputs of this request take {nbytes} bytes and the result ring has "
                f"{self._ring.record_bytes_max}: raise result_ring_bytes, or ask for fewer rows or outputs."
            )
            self._fail(run, parts[0], Failure(Code.RESOURCE_EXHAUSTED, text))
            return
        half = len(parts) // 2
        rows = sum(part[ROWS] for part in parts[:half])
        yield from self._send_rows(run, lane, parts[:half], [output[:rows] for output in outputs])
        yield from self._send_rows(run, lane, parts[half:], [output[rows:] for output in outputs])

    # ------------------------------------------------------------------------------------------------------- pieces

    def _call(self, run: _Run, lane: Lane, feeds: list[Any], rows_count: int) -> list[Any]:
        run.rows_count += rows_count
        started_ns = self._clock_ns()
        try:
            return lane.plan.run(feeds)
        finally:
            ended_ns = self._clock_ns()
            run.ns += ended_ns - started_ns
            if self._traces:
                run.span = [started_ns, ended_ns, rows_count]

    def _fail(self, run: _Run, part: Part, failure: Failure) -> None:
        message = run.message
        failures = [[part[REQUEST], int(failure.code), failure.text, part[ROWS], part[ROW_START]]]
        result = Result(self.worker_id, message.batch_id, message.lane_key, -1, [], [], failures, run.span)
        run.send((part[FRONTEND], result))

    def _lane(self, key: bytes) -> Lane | Failure:
        lane = self._lanes.get(key)
        if lane is None:
            try:
                lane = self._make_lane(unpack_lane(key))
            except RunFailure as error:
                lane = error.failure
            self._lanes[key] = lane
            if len(self._lanes) > _LANES_MAX:
                self._lanes.popitem(last=False)
        else:
            self._lanes.move_to_end(key)
        return lane

    def _make_lane(self, spec: LaneSpec) -> Lane:
        model = self._servables.get((spec.model, spec.version))
        if model is None:
            text = f"Version {spec.version} of model {spec.model} is not loaded in this worker."
            raise RunFailure(Code.UNAVAILABLE, text)
        return Lane(spec, model, self.trials, assumed=spec.model in self._assumes_independence)
