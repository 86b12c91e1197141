"""Pure: on which worker a lane's next batch runs, how large it should be, or when to ask again.

Four questions, each a function with its reason beside it:

    among     how many rows should a worker get, when others will be free soon?
    spread    may the lane use one more idle worker, or should its requests wait for those it uses already?
    share     how many rows should this one get, when others are idle already?
    prefetch  may a worker that is still busy be sent its next batch already?

`place` asks them in this order. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ringserve.broker.batcher import is_closed
from ringserve.broker.fleet import Worker
from ringserve.broker.lanes import Lane
from ringserve.broker.leases import Lease
from ringserve.broker.runtimes import RunTimes
from ringserve.broker.sizes import rows_in_time

#: A known run is overdue this many `spread_ns` after its time. On a host whose cores are shared a worker is often put
#: aside for some milliseconds and comes back; a second worker then only competes for the core that it waits for.
_OVERDUE_SPREADS = 6
#: A row that takes so many times what is paid for a batch, whatever its rows, costs hardly less in a large one.
_ROW_TIMES_FIXED = 2


class Placement(NamedTuple):
    """worker: who gets the batch, None = nobody now. rows_max: its size at most.

    ask_ns: when the answer may change without a message (0 = it will not). waits_for: the workers that the lane waits
    for; they are not to be given to lanes after it, or it would never get them.
    """

    worker: Worker | None
    rows_max: int = 0
    ask_ns: int = 0
    waits_for: tuple[Worker, ...] = ()


def place(lane: Lane, workers: Sequence[Worker], now_ns: int, *, credit_max: int, lanes_waiting: int) -> Placement:
    """Where the next batch of `lane` goes. `workers`: the ready ones that serve it, preferred ones first."""
    idle = [worker for worker in workers if not worker.leases]
    if lane.solo:
        # It may end its worker: it runs where nothing else is held and nothing else is sent.
        idle = [worker for worker in idle if worker.lent_for is None]
        return Placement(latest_used(lane, idle), 1) if idle else Placement(None, waits_for=tuple(workers))
    rows_max = among(lane, len(workers) // max(1, lanes_waiting))
    ask_ns = spread(lane, workers, now_ns) if idle else 0
    if idle and not ask_ns:
        return start(lane, idle, lanes_waiting, rows_max)
    full = is_closed(lane, now_ns)
    if idle:  # which are left alone, so the batch may only go behind one that runs this lane already
        workers = [worker for worker in workers if any(lease.lane is lane for lease in worker.leases)]
    worker, prefetch_ask_ns = prefetch(lane, workers, now_ns, full=full, credit_max=credit_max)
    if worker is not None:
        return Placement(worker, rows_max)
    if idle and full:  # and those that run the lane take no more: another worker costs it nothing
        return start(lane, idle, lanes_waiting, rows_max)
    soonest = min(workers, key=lambda w: free_ns(w.leases, now_ns), default=None)
    return Placement(None, 0, earliest(ask_ns, prefetch_ask_ns), (soonest,) if soonest else ())


def start(lane: Lane, idle: Sequence[Worker], lanes_waiting: int, rows_max: int) -> Placement:
    """A batch for an idle worker, which is one of several lanes' to share. One that waited to be full is not shared."""
    workers_count = len(idle) // max(1, lanes_waiting)
    if workers_count > 1 and not lane.single and lane.policy.batching == "adaptive":
        rows_max = min(rows_max, share(lane, workers_count))
    return Placement(latest_used(lane, unlent(lane, idle) or idle), rows_max)


def unlent(lane: Lane, idle: Sequence[Worker]) -> list[Worker]:
    """Those that do nothing for certain: one that is lent may be about something that nobody knows of yet. If it is of
    the lane itself, and over within `spread_ns`, another worker is no better."""
    lent_for = lane if lane.predict(1) <= lane.policy.spread_ns else None
    return [worker for worker in idle if worker.lent_for in (None, lent_for)]


def latest_used(lane: Lane, idle: Sequence[Worker]) -> Worker:
    """The idle worker whose caches know this lane best, else the first. `idle` is not empty."""
    for worker_id in lane.recent:
        for worker in idle:
            if worker.worker_id == worker_id:
                return worker
    return idle[0]


def spread(lane: Lane, workers: Sequence[Worker], now_ns: int) -> int:
    """May the lane start on one more worker? 0 = yes, else when to ask again.

    No worker runs it: yes. A second worker halves the batches of a cheap lane and takes a core from the frontends:
    measured, it costs 40 % of the throughput. For a lane whose run takes longer it doubles the rate. So the lane
    waits while any worker that runs it is predicted to be free within `spread_ns`; a run of unknown length, or one
    that is overdue, counts as long once it has shown itself to be so. (A lane whose next batch is closed gets another
    worker all the same, when those that run it have no credit left: see `place`.)
    """
    if not lane.leases_count:
        return 0
    spread_ns = lane.policy.spread_ns
    ask_ns = 0
    for worker in workers:
        leases = worker.leases
        if not any(lease.lane is lane for lease in leases):
            continue
        head = leases[0]
        known = head.lane.times.known and head.expected_ns
        if known and free_ns(leases, now_ns) - now_ns > spread_ns:
            continue
        overdue_ns = _OVERDUE_SPREADS * spread_ns + 2 * int(head.lane.times.turnaround_ns)
        patience_ns = head.expected_ns + overdue_ns if known else spread_ns
        if now_ns - head.started_ns >= patience_ns:
            continue
        ask_ns = earliest(ask_ns, head.started_ns + patience_ns)
    return ask_ns


def among(lane: Lane, workers_count: int) -> int:
    """Rows for the next batch when `workers_count` workers, busy ones too, will each take their part of what waits.

    Where rows cost the time, each makes all others of its batch wait for as long as another worker would need for it,
    and saves little. A queue that grows makes the parts larger by itself. In simulated time, 4 ms a row and a fifth
    of that a batch, at 65 % of what two workers can do: p99 39 ms in place of 49, where the first to be free took all;
    with eight workers 18 in place of 37. Where a batch costs as much as a row nothing is gained.
    """
    rows_max, times = lane.rows_best, lane.times
    if workers_count < 2 or not lane.knows_best:
        return rows_max
    if times.row_ns < _ROW_TIMES_FIXED * (times.fixed_ns + times.turnaround_ns):
        return rows_max
    part = -(-lane.rows_queued // workers_count)
    saved_ns = (min(lane.rows_queued, rows_max) - part) * times.row_ns
    return min(rows_max, lane.rows_run(part)) if saved_ns > lane.policy.spread_ns else rows_max


def share(lane: Lane, workers_count: int) -> int:
    """Rows for the next batch when `workers_count` idle workers could each take a part of what waits.

    Two batches at once end sooner than one of twice the size only by the time of the rows that moved; the fixed time
    of a batch is then paid twice. So another worker is counted in while that saves more than `spread_ns` and a
    batch's rows still cost more than its fixed time.
    """
    rows_max = lane.rows_best
    rows = lane.rows_queued
    times = lane.times
    if workers_count < 2 or rows >= rows_max * workers_count:
        return rows_max
    return rows_per_worker(min(rows, rows_max * workers_count), rows_max, workers_count, times, lane.policy.spread_ns)


def rows_per_worker(rows: int, rows_max: int, workers_count: int, times: RunTimes, spread_ns: int) -> int:
    """`rows` over at most `workers_count` workers: the rows of the largest part that is still worth it."""
    best = min(rows, rows_max)
    if best * times.row_ns <= spread_ns:
        return rows_max
    for count in range(2, workers_count + 1):
        part = -(-rows // count)
        if part * times.row_ns < times.fixed_ns:
            break
        if (best - part) * times.row_ns > spread_ns:
            best = part
    return best


def prefetch(
    lane: Lane, workers: Sequence[Worker], now_ns: int, *, full: bool, credit_max: int
) -> tuple[Worker | None, int]:
    """May a busy worker be sent a batch ahead of time? (the one that is free soonest or None, when to ask again).

    What it gains is the time of two messages. What it costs is that the batch is closed early and bound to this worker:
    nothing when it is full already and its turn is near; too much when it is not, unless the running batch is about to
    end. A run of less than `prefetch_ns` is over before the next batch is worth closing; one that is unknown or
    overdue promises nothing; and behind a `solo` batch nothing is sent.
    """
    policy = lane.policy
    window_ns = policy.prefetch_full_ns if full else policy.prefetch_ns
    best: Worker | None = None
    best_ns = ask_ns = 0
    for worker in workers:
        leases = worker.leases
        if not leases or len(leases) >= credit_max:
            continue
        head = leases[0]
        expected_ns = head.expected_ns
        if not expected_ns or any(lease.solo for lease in leases) or not window_ns:
            continue
        if not full and expected_ns < policy.prefetch_ns:
            continue
        if now_ns - head.started_ns > 2 * expected_ns + policy.prefetch_ns:
            continue
        ends_ns = free_ns(leases, now_ns)
        if ends_ns - now_ns > window_ns:
            # Behind an overdue run the end moves along with the time: asking then would be asking without a pause.
            if head.started_ns + expected_ns > now_ns:
                ask_ns = earliest(ask_ns, ends_ns - window_ns)
        elif best is None or ends_ns < best_ns:
            best, best_ns = worker, ends_ns
    return best, ask_ns


def late_by_prediction(lane: Lane, worker: Worker, rows_max: int, now_ns: int) -> int:
    """A request in a batch that is sent to `worker` now and whose deadline is not after this will not make it.

    `now_ns` (only what has expired) unless predictions are confident, and unless more waits than the batch takes: a
    place in the batch that nobody else wants costs nothing, and running it keeps the prediction honest.
    """
    if not (lane.deadline_min_ns and lane.policy.refuse_late and lane.times.confident):
        return now_ns
    if lane.single:
        rows, wanted = lane.queue[0][0][2], len(lane.queue) > 1
    else:
        rows, wanted = rows_max, lane.rows_queued > rows_max
    if not wanted:
        return now_ns
    return free_ns(worker.leases, now_ns) + lane.predict(rows) + int(lane.times.turnaround_ns)


def soonest_answer(lane: Lane, workers: Sequence[Worker], now_ns: int) -> tuple[int, float]:
    """(when a new request with an empty queue before it could be answered, ns that each queued row that counts adds).

    The queue goes as fast as it lately did; while that is not known, as if every worker, once it has run what it holds,
    ran nothing but full batches of this lane. (0, 0) when neither is known well enough.
    """
    times = lane.times
    if not (workers and times.known):
        return 0, 0.0
    held_ns = sum(free_ns(worker.leases, now_ns) - now_ns for worker in workers) // len(workers)
    rows = 1 if lane.single else rows_in_time(lane, min(lane.rows_best, lane.rows_queued + 1))
    soonest_ns = now_ns + held_ns + lane.predict(rows) + int(times.turnaround_ns)
    row_ns = lane.pace.row_ns(now_ns)
    if row_ns:
        return soonest_ns, row_ns
    if not times.confident:
        return 0, 0.0
    if lane.single:
        row_ns = lane.predict(lane.rows_queued // (len(lane.queue) or 1) or 1)
    else:
        rows_best = lane.rows_best if lane.predict(lane.rows_best) else times.rows_reach
        row_ns = lane.predict(rows_best) / rows_best
        soonest_ns += lane.predict(lane.rows_beyond) // len(workers) if lane.rows_beyond else 0
    return soonest_ns, row_ns / len(workers)


def free_ns(leases: Sequence[Lease], now_ns: int) -> int:
    """When a worker that holds these is predicted to be free; `now_ns` at the earliest. Unknown runs count as 0."""
    if not leases:
        return now_ns
    head = leases[0]
    ends_ns = max(now_ns, head.started_ns + head.expected_ns)
    for lease in leases[1:]:
        ends_ns += lease.expected_ns
    return ends_ns


def earliest(a_ns: int, b_ns: int) -> int:
    """The earlier of two times, where 0 is never."""
    return min(a_ns, b_ns) if a_ns and b_ns else a_ns or b_ns
