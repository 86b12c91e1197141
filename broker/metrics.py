"""What the broker counts: batches when they are over, loads as workers report them, how requests end.

The core's calls (`observer.Observer`) only add to plain lists, one *book* for each lane with something new; the books
go into the broker's metric file some times a second, a few in each turn of the loop. No clock: `now_ns` is an argument.
"""

from __future__ import annotations

import json
import signal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ringserve.broker.messages import Code, LaneSpec, Loaded
from ringserve.broker.statistics import Queue
from ringserve.config import metrics
from ringserve.config.metric_family import Family, Ladder
from ringserve.config.metric_file import Labels, MetricFile

_FLUSH_NS: Final = 50_000_000
_ENDS_NS: Final = 1_000_000_000
#: Books flushed in one turn of the loop: some 0.3 ms. The next turn for the others comes this much later.
_FLUSH_BOOKS: Final = 8
_FLUSH_NEXT_NS: Final = 1_000_000
#: A round over many books is followed by a pause that grows with them, up to the longest: 2 % of a core is enough.
_PAUSE_BOOK_NS: Final = 2_000_000
_PAUSE_NS_MAX: Final = 1_000_000_000
#: Version directories whose loads are told; those that were first loaded longest ago are forgotten.
_PATHS_MAX: Final = 500
_PATHS_MORE: Final = 100
#: Execution batch sizes above this are told as the power of two above, so that there are not too many.
_SIZES_EXACT_MAX: Final = 1_024
#: What ends workers, as a rule.
_ENDS_COMMON: Final = ("SIGKILL", "SIGSEGV", "SIGABRT", "failed")
#: Rows of batches that a list counts, which is quicker than a dict.
_SIZES_LISTED: Final = 129
#: What TF Serving's label thread_pool_name says, in fact.
_NO_NAME: Final = ("",)

#: (model, version, why, where) -> requests that were given up: `outcomes.GivenUp`.
_GivenUp = Mapping[tuple[str, str, str, str], int]

_WAITS: Final = Ladder(metrics.QUEUING_LATENCY, metrics.QUEUE_DURATION)
_WAIT_EDGES: Final = _WAITS.edges
_RUNS: Final = Ladder(metrics.RUN_DURATION)
_RUN_EDGES: Final = _RUNS.edges


class Memory(NamedTuple):
    """What models take. weights: (model, version, bytes) of those that workers share. limit_bytes: 0 = no limit."""

    weights: Sequence[tuple[str, int, int]]
    limit_bytes: int
    budgeted_bytes: int


class _Book:
    """What is new of one lane.

    waits, runs: counts by bucket, and at the end the sum in ns. sizes: how many batches of so many rows that were not
    padded; batches: how many of (rows, rows run), the others. ones: requests of one row; requests: how many of so many.
    """

    __slots__ = ("batches", "lane", "ones", "requests", "runs", "sizes", "waits")

    def __init__(self, lane: LaneSpec) -> None:
        self.lane = lane
        self.sizes = [0] * _SIZES_LISTED
        self.batches: dict[tuple[int, int], int] = {}
        self.ones = 0
        self.requests: dict[int, int] = {}
        self.waits = [0] * (_WAITS.size + 1)
        self.runs = [0] * (_RUNS.size + 1)


class BrokerMetrics:
    """The broker's counts; an Observer of the core. `file` stays the caller's."""

    def __init__(self, file: MetricFile) -> None:
        self._file = file
        #: By the identity of the lane's spec, which is quicker than its hash; the book keeps the spec alive.
        self._books: dict[int, _Book] = {}
        self._due_ns = 0
        self._round = self._left = 0  # books of this round of flushing, and how many of them are left
        self._ends_due_ns = 0
        self._ends: dict[str, int] = {}
        self._paths: dict[str, None] = {}
        self._live: frozenset[tuple[str, ...]] = frozenset()
        # A counter whose first value is 1 has no increase that an alert could see.
        for end in _ENDS_COMMON:
            file.add(metrics.WORKERS_DIED, (end,), 0)

    # -------------------------------------------------------------------------------------------- the core's calls

    def batch_done(
        self, lane: LaneSpec, rows: int, rows_run: int, parts: list[list[int]], waits_ns: list[int], run_ns: int
    ) -> None:
        """See Observer."""
        book = self._books.get(id(lane)) or self._open(lane)
        if run_ns > 0:
            counts = book.runs
            counts[bisect_right(_RUN_EDGES, run_ns)] += 1
            counts[-1] += run_ns
        if not parts:
            return
        if rows == rows_run < _SIZES_LISTED:
            book.sizes[rows] += 1
        else:
            size = (rows, rows_run)
            book.batches[size] = book.batches.get(size, 0) + 1
        if rows == len(parts):
            book.ones += rows
        else:
            requests = book.requests
            for part in parts:
                requests[part[2]] = requests.get(part[2], 0) + 1
        counts = book.waits
        if len(waits_ns) == 1:
            counts[bisect_right(_WAIT_EDGES, waits_ns[0])] += 1
            counts[-1] += waits_ns[0]
        else:
            _count_waits(counts, waits_ns)

    def _open(self, lane: LaneSpec) -> _Book:
        book = self._books[id(lane)] = _Book(lane)
        return book

    # ---------------------------------------------------------------------------------------------- rarer news

    def loaded(self, path: str, report: Loaded) -> None:
        """A worker has loaded a version from this directory, or could not."""
        if report.again:
            return
        if path not in self._paths:
            self._paths[path] = None
            if len(self._paths) >= _PATHS_MAX + _PATHS_MORE:
                for oldest in list(self._paths)[:_PATHS_MORE]:
                    del self._paths[oldest]
                self._file.forget(self._is_old)
        succeeded = report.error_code == Code.OK
        self._file.add(metrics.LOAD_ATTEMPT_COUNT, (path, "success" if succeeded else "fail"))
        self._file.add(metrics.LOAD_LATENCY, (path,), report.load_ns / 1_000)
        if report.warmup_records >= 0:
            status = "OK" if succeeded else f"{Code(report.error_code).name}: {report.error_text}"
            bucket = bisect_right(metrics.WARMUP_LATENCY.edges, report.warmup_ns)
            self._file.observe(metrics.WARMUP_LATENCY, (path, status), ((bucket, 1),), report.warmup_ns / 1_000)
            self._file.add(metrics.WARMUP_RECORDS, (path, status), report.warmup_records)

    def _is_old(self, family: Family, labels: Labels) -> bool:
        return family.labels[:1] == ("model_path",) and labels[0] not in self._paths

    def serving(self, versions: Iterable[tuple[str, int]]) -> None:
        """These versions are or will be served: series of others may be forgotten. Call it when the catalog changes."""
        live = frozenset((name, str(version)) for name, version in versions)
        if not self._live <= live:
            self._live = live
            self._file.forget(self._is_gone)
        self._live = live

    def _is_gone(self, family: Family, labels: Labels) -> bool:
        return family.labels[:2] == ("model", "version") and labels[:2] not in self._live

    def author_ended(self, end: str) -> None:
        """An author has ended: `ok`, `failed` or `died`."""
        self._file.add(metrics.AUTHORS, (end,))

    def process_started(self, name: str) -> None:
        """A process of that name (`worker-0`) is being started."""
        self._file.add(metrics.PROCESS_STARTS, (name,))

    def worker_ended(self, status: int) -> None:
        """A worker process ended: exit status, negative for a signal."""
        if status:
            self._file.add(metrics.WORKERS_DIED, (signal.Signals(-status).name if status < 0 else "failed",))

    def generation_begun(self, group: str, reason: str) -> None:
        """New workers are made for this group."""
        self._file.add(metrics.GROUP_GENERATIONS, (group, reason))

    # ------------------------------------------------------------------------------------------------- flushing

    def tick(
        self, now_ns: int, ends: Callable[[], Mapping[str, int]], given_up: Callable[[], _GivenUp] = dict
    ) -> int:
        """Call it once per turn. Returns when to call it again at the latest; 0 when there is no need to.

        ends, given_up: `Core.ends` and `Core.take_given_up`, which are called once a second.
        """
        if now_ns >= self._ends_due_ns:
            self._ends_due_ns = now_ns + _ENDS_NS
            self._file.restore()
            self._put_ends(ends())
            self._put_given_up(given_up())
        if not self._books:
            return 0
        if not self._due_ns:
            self._due_ns = now_ns + _FLUSH_NS
        elif now_ns >= self._due_ns:
            if self._left <= 0:
                self._round = self._left = len(self._books)
            self._flush(_FLUSH_BOOKS)
            self._left -= _FLUSH_BOOKS
            pause_ns = min(max(_FLUSH_NS, self._round * _PAUSE_BOOK_NS), _PAUSE_NS_MAX)
            self._due_ns = now_ns + (_FLUSH_NEXT_NS if self._left > 0 else pause_ns) if self._books else 0
        return self._due_ns

    def flush(self, ends: Mapping[str, int], given_up: _GivenUp | None = None) -> None:
        """Put everything into the file now."""
        self._put_ends(ends)
        self._put_given_up(given_up or {})
        self._flush(len(self._books))

    def _flush(self, count: int) -> None:
        for _ in range(min(count, len(self._books))):
            book = self._books.pop(next(iter(self._books)))  # the oldest: none waits for ever
            self._put_batches(book)
            self._put_times(book)

    def _put_ends(self, ends: Mapping[str, int]) -> None:
        for name, count in ends.items():
            new = count - self._ends.get(name, 0)
            if new and name == "retried":
                self._file.add(metrics.BROKER_RETRIES, (), new)
            elif new:
                self._file.add(metrics.BROKER_REQUESTS, (name,), new)
        self._ends = dict(ends)

    def _put_given_up(self, given_up: _GivenUp) -> None:
        for labels, count in given_up.items():
            self._file.add(metrics.GIVEN_UP, labels, count)

    def _put_batches(self, book: _Book) -> None:
        file, lane = self._file, book.lane
        labels = (lane.model, str(lane.version), lane.signature)
        sizes: dict[int, int] = {}
        sizes_run: dict[int, int] = {}
        padding_rows = 0
        batches = {(rows, rows): count for rows, count in enumerate(book.sizes) if count}
        for (rows, rows_run), count in (*batches.items(), *book.batches.items()):
            sizes[rows] = sizes.get(rows, 0) + count
            sizes_run[rows_run] = sizes_run.get(rows_run, 0) + count
            padding_rows += (rows_run - rows) * count
            if lane.batchable:
                told = rows_run if rows_run <= _SIZES_EXACT_MAX else 1 << (rows_run - 1).bit_length()
                _put(file, metrics.PADDING_SIZE, (str(told),), {rows_run - rows: count})
        _put(file, metrics.BATCH_ROWS, labels, sizes)
        if padding_rows:
            file.add(metrics.PADDING_ROWS, labels, padding_rows)
        if lane.batchable:
            _put(file, metrics.PROCESSED_BATCH_SIZE, (), sizes_run)
            inputs = len(lane.inputs)
            requests = {**book.requests, 1: book.requests.get(1, 0) + book.ones}
            _put(file, metrics.INPUT_BATCH_SIZE, (), {rows: n * inputs for rows, n in requests.items() if n})

    def _put_times(self, book: _Book) -> None:
        file, lane = self._file, book.lane
        labels = (lane.model, str(lane.version), lane.signature)
        queuing, queue = _WAITS.split(book.waits)
        if queue:
            wait_ns = book.waits[-1]
            file.observe(metrics.QUEUE_DURATION, labels, queue, wait_ns / metrics.QUEUE_DURATION.scale)
            if lane.batchable:
                file.observe(metrics.QUEUING_LATENCY, _NO_NAME, queuing, wait_ns / metrics.QUEUING_LATENCY.scale)
        (runs,) = _RUNS.split(book.runs)
        if runs:
            file.observe(metrics.RUN_DURATION, labels, runs, book.runs[-1] / metrics.RUN_DURATION.scale)
            if lane.batchable:
                file.add(metrics.WRAPPED_RUN_COUNT, (), sum(count for _, count in runs))


def _count_waits(counts: list[int], waits_ns: list[int]) -> None:
    """Add the waits of one batch to counts by bucket, and to the sum at their end."""
    counts[-1] += sum(waits_ns)
    # Sorted (they nearly are), they are counted edge by edge, of which there are fewer between them.
    waits = sorted(waits_ns)
    last = bisect_right(_WAIT_EDGES, waits[-1])
    done = 0
    for bucket in range(bisect_right(_WAIT_EDGES, waits[0]), last):
        below = bisect_left(waits, _WAIT_EDGES[bucket], done)
        counts[bucket] += below - done
        done = below
    counts[last] += len(waits) - done


def _put(file: MetricFile, family: Family, labels: Labels, counts: Mapping[int, int]) -> None:
    """Add values, and how often each came, to a histogram."""
    if counts:
        buckets = [(bisect_right(family.edges, value), count) for value, count in counts.items()]
        file.observe(family, labels, buckets, sum(value * count for value, count in counts.items()))


def gauges(
    queues: Iterable[Queue],
    workers: Mapping[str, int],
    generation: int,
    lanes: int,
    groups: Mapping[str, tuple[int, int]],
    memory: Memory | None = None,
    served: Iterable[tuple[str, int]] = (),
) -> bytes:
    """The answer to the ask `metrics`: JSON, a list of [family name, labels, value].

    groups: by name, how many workers are wanted and how many serve. served: versions that have a queue even while
    nothing waits in it: a gauge that comes and goes is nothing that an autoscaler or an alert could go by.
    """
    found: list[list[Any]] = [
        [metrics.GENERATION.name, [], generation],
        [metrics.LANES.name, [], lanes],
        *([metrics.WORKERS.name, [state], count] for state, count in workers.items()),
        *([metrics.GROUP_WORKERS_WANTED.name, [name], wanted] for name, (wanted, _) in groups.items()),
        *([metrics.GROUP_WORKERS_ACTIVE.name, [name], active] for name, (_, active) in groups.items()),
    ]
    if memory is not None:
        found += [[metrics.WEIGHTS.name, [model, str(version)], count] for model, version, count in memory.weights]
        found += [[metrics.MEMORY_LIMIT.name, [], memory.limit_bytes]] if memory.limit_bytes else []
        found.append([metrics.MEMORY_BUDGETED.name, [], memory.budgeted_bytes])
    by_version: dict[tuple[str, int], list[float]] = {version: [0, 0, 0, 0.0] for version in served}
    for queue in queues:
        sums = by_version.setdefault((queue.lane.model, queue.lane.version), [0, 0, 0, 0.0])
        sums[0] += queue.requests
        sums[1] += queue.rows
        sums[2] += queue.batches
        sums[3] = max(sums[3], queue.oldest_wait_ns / 1e9)
    families = (metrics.QUEUE_REQUESTS, metrics.QUEUE_ROWS, metrics.RUNNING_BATCHES, metrics.QUEUE_OLDEST)
    for (model, version), sums in by_version.items():
        found += ([family.name, [model, str(version)], value] for family, value in zip(families, sums, strict=True))
    return json.dumps(found).encode()
