"""Pure: what the core holds now, counted, for tests, operators and metrics. Each call walks over the lanes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ringserve.broker.lanes import Lane
from ringserve.broker.leases import Leases
from ringserve.broker.messages import LaneSpec


class Queue(NamedTuple):
    """One lane now. requests, rows: waiting. oldest_wait_ns: of the one that waits longest; 0 when none waits.

    batches: granted and not done. rows_best: rows of its largest batch (`Lane.rows_best`).
    """

    lane: LaneSpec
    requests: int
    rows: int
    oldest_wait_ns: int
    batches: int
    rows_best: int


class Usage(NamedTuple):
    """busy_ns: how long each worker has been running batches since it joined, by id. waiting: models with requests
    that wait for a worker."""

    busy_ns: dict[int, int]
    waiting: frozenset[str]


def usage(lanes: Iterable[Lane], leases: Leases, now_ns: int) -> Usage:
    """As it is now."""
    return Usage(leases.busy_ns(now_ns), frozenset(lane.servable.name for lane in lanes if lane.waiting))


def queues(lanes: Iterable[Lane], now_ns: int) -> list[Queue]:
    """Every lane that has something waiting or running."""
    return [
        Queue(
            lane.spec,
            len(lane.queue) + len(lane.solo),
            lane.rows_queued + sum(part[2] for part, _, _ in lane.solo),
            max((now_ns - entries[0][2] for entries in (lane.queue, lane.solo) if entries), default=0),
            lane.leases_count,
            lane.rows_best,
        )
        for lane in lanes
        if not lane.idle
    ]


def held(lanes: Iterable[Lane], leases: Leases) -> dict[str, int]:
    """queued, leased: whole requests; split: requests that run in parts; and the rows and leases there are.

    At any moment the core's `submitted` = the six ends of `outcomes.ENDS` + queued + leased + split.
    """
    lanes = list(lanes)
    splits = [split for lane in lanes for split in lane.splits.values()]
    queued = sum(len(lane.queue) + len(lane.solo) for lane in lanes)
    leased = sum(len(lease.entries) for lease in leases)
    return {
        "queued": queued - sum(split.parts_queued for split in splits),
        "queued_rows": sum(lane.rows_queued for lane in lanes),
        "leased": leased - sum(split.parts_leased for split in splits),
        "split": len(splits),
        "leases": len(leases),
        "lanes": len(lanes),
    }
