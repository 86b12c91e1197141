"""What this frontend counts: requests by outcome, and how long they took. The API's files call it.

One call per request, when it is answered; under half a microsecond, because it stands on the hot path: a lookup, a
search for the bucket and two additions in plain lists. What has gathered goes into the process's metric file
(`config/metric_file.py`) a few times a second, some cells a turn of the loop, so that it delays no request.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ringserve.broker.messages import Code
from ringserve.config import metrics
from ringserve.config.metric_family import COUNTER, Ladder
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.console_failures import RecentFailures, shown_text
from ringserve.frontend.lanes import Lane
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.metric_sums import MetricSums

GRPC: Final = "GRPC"
REST: Final = "REST"

_FLUSH_S: Final = 0.05
#: Keys flushed in one turn of the loop: some 0.3 ms.
_FLUSH_KEYS: Final = 16
#: Keys that may gather before they are flushed at once: clients choose the names in them.
_KEYS_MAX: Final = 4_096
#: A round over many keys is followed by a pause that grows with them, up to the longest: 2 % of a core is enough.
_PAUSE_KEY_S: Final = 0.001
_PAUSE_S_MAX: Final = 1.0

#: Longer names are those of no model, as a rule: as long as a message may be, and they would be held by the thousand.
_NAME_CHARS_MAX: Final = 256
#: By its first so many characters a failure's text is known for one of a kind, among those of one model and code.
_HEAD_CHARS: Final = 32

_REQUESTS: Final = Ladder(metrics.REQUEST_LATENCY, metrics.REQUEST_DURATION)
_REQUEST_EDGES: Final = _REQUESTS.edges
_REQUEST_SLOTS: Final = _REQUESTS.size
_RUNS: Final = Ladder(metrics.RUNTIME_LATENCY)
_RUN_EDGES: Final = _RUNS.edges
_RUN_SLOTS: Final = _RUNS.size
_EXAMPLES: Final = Ladder(metrics.EXAMPLE_COUNTS)

#: A request: entry point, API, model, code, lane. A run: API, model.
_RequestKey = tuple[str, str, str, int, Lane | None]
_RunKey = tuple[str, str]
_NO_LANE: Final = ("", "")

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Tally:
    """Counters of one frontend process. `clock_ns`: what `started_ns` below was taken with.

    file: where the counts go; without one they are thrown away. scope: which models may be named. later: runs a
    function after so many seconds (an event loop's call_later); without it only `flush` flushes. sums: what all
    processes have counted, for `count`. failures: where failures are noted, for the console.
    """

    def __init__(
        self,
        file: MetricFile | None = None,
        scope: MetricScope | None = None,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
        sums: MetricSums | None = None,
        failures: RecentFailures | None = None,
    ) -> None:
        self.clock_ns = time.monotonic_ns
        self._failures = failures
        self._file = file
        self._scope = scope or MetricScope()
        self._later = later
        self._sums = sums
        self._flush_planned = False
        self._round = self._left = 0  # keys of this round of flushing, and how many of them are left
        # Counts by bucket, and at the end the sum in ns. What is flushed is taken out: these hold what is new.
        self._requests: dict[_RequestKey, list[int]] = {}
        self._runs: dict[_RunKey, list[int]] = {}
        self._examples: dict[str, list[int]] = {}

    def request(
        self, entrypoint: str, api: str, model: str, code: int, started_ns: int, lane: Lane | None = None
    ) -> None:
        """A request that TF Serving counts has been answered with `code`.

        entrypoint: GRPC or REST. api: `Predict`, `Classify`, `Regress` over gRPC; `predict`, `classify`, `regress`
        over REST, "" for its GETs and what is malformed. model: as the client sent it, "" when there is none.
        started_ns: when its bytes were there, by `clock_ns`. lane: what it was bound to, if it got that far.
        """
        took_ns = self.clock_ns() - started_ns
        key = (entrypoint, api, model, code, lane)
        counts = self._requests.get(key)
        if counts is None:
            counts = self._new_counts(key)
        counts[bisect_right(_REQUEST_EDGES, took_ns)] += 1
        counts[_REQUEST_SLOTS] += took_ns

    def failure(
        self, entrypoint: str, api: str, model: str, code: int, text: str, started_ns: int, lane: Lane | None = None
    ) -> None:
        """A request as in `request` has failed, with this text."""
        self.request(entrypoint, api, model, code, started_ns, lane)
        self._note(entrypoint, api, model, code, text, lane)

    def refused(
        self, entrypoint: str, api: str, model: str, code: int, text: str, lane: Lane, count: int
    ) -> None:
        """So many requests as in `failure` have failed alike, and at once."""
        key = (entrypoint, api, model, code, lane)
        counts = self._requests.get(key) or self._new_counts(key)
        counts[0] += count
        self._note(entrypoint, api, model, code, text, lane, count)

    def _new_counts(self, key: _RequestKey) -> list[int]:
        """Zeros for these requests; what was counted already where their model's long name is a label's."""
        self._plan_flush()
        entrypoint, api, model, code, lane = key
        if len(model) > _NAME_CHARS_MAX:
            key = (entrypoint, api, self._scope.label_of(model), code, lane)
        return self._requests.setdefault(key, [0] * (_REQUEST_SLOTS + 1))

    def _note(
        self, entrypoint: str, api: str, model: str, code: int, text: str, lane: Lane | None, count: int = 1
    ) -> None:
        if len(model) > _NAME_CHARS_MAX:
            model = self._scope.label_of(model)
        known_as = (entrypoint, api, model, code, lane, text[:_HEAD_CHARS])
        if self._failures is not None and not self._failures.again(known_as, count):
            version = "" if lane is None else str(lane.spec.version)
            kept = shown_text(code, text, ran=lane is not None)
            what = (entrypoint, api, self._scope.label_of(model), version, Code(code).name, kept)
            self._failures.note(what, time.time(), known_as, count)

    def run(self, api: str, model: str, started_ns: int) -> None:
        """A model run for this request has ended well. api is capitalised for both entry points.

        started_ns: when it was handed to the client (so waiting in the broker's queue counts, as in TF Serving).
        """
        took_ns = self.clock_ns() - started_ns
        key = (api, model)
        counts = self._runs.get(key)
        if counts is None:
            self._plan_flush()
            counts = self._runs[key] = [0] * (_RUN_SLOTS + 1)
        counts[bisect_right(_RUN_EDGES, took_ns)] += 1
        counts[_RUN_SLOTS] += took_ns

    def answered(
        self, entrypoint: str, api: str, model: str, lane: Lane, runs_ns: Sequence[int], requests_ns: Sequence[int]
    ) -> None:
        """Requests of one kind have been answered together: `run` and `request` of each; how long each took."""
        self._add(self._runs, (api, model), _RUNS, runs_ns)
        self._add(self._requests, (entrypoint, api, model, 0, lane), _REQUESTS, requests_ns)

    def _add(self, gathered: dict[_Key, list[int]], key: _Key, ladder: Ladder, took_ns: Sequence[int]) -> None:
        counts = gathered.get(key)
        if counts is None:
            self._plan_flush()
            counts = gathered[key] = [0] * (ladder.size + 1)
        edges = ladder.edges
        for each_ns in took_ns:
            counts[bisect_right(edges, each_ns)] += 1
        counts[ladder.size] += sum(took_ns)

    def examples(self, model: str, count: int) -> None:
        """A MultiInference of so many examples."""
        self._plan_flush()
        counts = self._examples.setdefault(model, [0] * (_EXAMPLES.size + 1))
        counts[bisect_right(_EXAMPLES.edges, count)] += 1
        counts[_EXAMPLES.size] += count

    def count(self, name: str) -> int:
        """The first cell of TF Serving's counter `name` (`/tensorflow/serving/request_count`); 0 when unknown.

        Of all processes together; what other processes counted may be missing for a tenth of a second, or for a second
        where there are very many series.
        """
        family = next((family for family in metrics.TFS if family.name == name), None)
        if family is None or family.kind != COUNTER or self._sums is None:
            return 0
        self.flush()
        self._sums.read()
        cells = self._sums.cells(family)
        return int(cells[0].values[0]) if cells else 0

    # ------------------------------------------------------------------------------------------------------ flushing

    def flush(self) -> None:
        """Put everything that has gathered into the file."""
        while self.flush_some():
            pass

    def flush_some(self) -> bool:
        """Put some of it into the file. True when there is more."""
        file = self._file
        if file is None:
            self._requests.clear()
            self._runs.clear()
            self._examples.clear()
            return False
        scope = self._scope
        if scope.shrank():
            file.forget(scope.is_gone)
        for _ in range(_FLUSH_KEYS):
            if self._requests:
                _put_requests(file, scope.label_of, *_pop_oldest(self._requests))
            elif self._runs:
                _put_runs(file, scope.label_of, *_pop_oldest(self._runs))
            elif self._examples:
                _put_examples(file, scope.label_of, *_pop_oldest(self._examples))
            else:
                return False
        return True

    def _keys(self) -> int:
        return len(self._requests) + len(self._runs) + len(self._examples)

    def _plan_flush(self) -> None:
        if self._keys() >= _KEYS_MAX:
            self.flush()
        elif not self._flush_planned and self._later is not None:
            self._flush_planned = True
            self._later(_FLUSH_S, self._flush_on_time)

    def _flush_on_time(self) -> None:
        self._flush_planned = False
        if self._left <= 0:
            self._round = self._left = self._keys()
        more = self.flush_some()
        self._left -= _FLUSH_KEYS
        if more and self._later is not None:
            self._flush_planned = True
            pause_s = min(max(_FLUSH_S, self._round * _PAUSE_KEY_S), _PAUSE_S_MAX)
            self._later(0.0 if self._left > 0 else pause_s, self._flush_on_time)


def _pop_oldest(gathered: dict[_Key, _Value]) -> tuple[_Key, _Value]:
    """The key that has waited longest: none waits for ever while others come back."""
    key = next(iter(gathered))
    return key, gathered.pop(key)


def _put_requests(file: MetricFile, named: Callable[[str], str], key: _RequestKey, counts: list[int]) -> None:
    entrypoint, api, model, code, lane = key
    name = named(model)
    count = sum(counts) - counts[_REQUEST_SLOTS]
    status = Code(code).name
    file.add(metrics.REQUEST_COUNT, (name, status), count)
    version, signature = (str(lane.spec.version), lane.spec.signature) if lane is not None else _NO_LANE
    labels = (name, version, signature, api.lower(), entrypoint)
    file.add(metrics.REQUESTS, (*labels, status), count)
    if code == Code.OK:
        in_us, in_s = _REQUESTS.split(counts)
        total_ns = counts[_REQUEST_SLOTS]
        latency, duration = metrics.REQUEST_LATENCY, metrics.REQUEST_DURATION
        file.observe(latency, (name, api, entrypoint), in_us, total_ns / latency.scale)
        file.observe(duration, labels, in_s, total_ns / duration.scale)


def _put_runs(file: MetricFile, named: Callable[[str], str], key: _RunKey, counts: list[int]) -> None:
    api, model = key
    (latency,) = _RUNS.split(counts)
    family = metrics.RUNTIME_LATENCY
    file.observe(family, (named(model), api, "TF1"), latency, counts[_RUN_SLOTS] / family.scale)


def _put_examples(file: MetricFile, named: Callable[[str], str], model: str, counts: list[int]) -> None:
    name = named(model)
    (buckets,) = _EXAMPLES.split(counts)
    file.observe(metrics.EXAMPLE_COUNTS, (name,), buckets, counts[_EXAMPLES.size])
    file.add(metrics.EXAMPLE_COUNT_TOTAL, (name,), counts[_EXAMPLES.size])
