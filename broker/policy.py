"""What an operator may decide about a model's lanes: batching, queue bounds, splitting, spreading, patience.

Plain numbers with units in their names; `config/` fills them, `core.py` uses them. Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

MICROSECOND_NS = 1_000
MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000

#: Rows without a limit: more than there can be.
ROWS_ANY = 1 << 62

Batching = Literal["adaptive", "timeout", "none"]


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """The rules of every lane of one model.

    batching: `adaptive`: whatever waits goes, up to `batch_rows_max`, as soon as a worker is free; no timer.
      `timeout`: TF Serving's: a batch goes when it is full, when a request waits that does not fit it, or when its
      oldest request has waited `batch_wait_ns_max`.
      `none`: each request by itself, whatever its rows.
    batch_rows_max: rows of one batch. A request with more is split, or runs by itself when `split` is off.
    batch_rows_allowed: ascending sizes up to which workers pad a batch's rows; empty = batches keep their size.
    batch_wait_ns_max: only for `timeout`; with 0 a batch goes as soon as a worker is free.
    batch_enough_ns: only for `adaptive`: where rows cost the time, a batch that runs for longer than this holds no more
      rows than make a row cheap (see `RunTimes.rows_enough`); 0 = whatever waits goes, however long it runs.
    batches_at_once_max: batches of all models that may run at the same time; 0 = as many as there are workers. Only the
      default policy's counts.
    request_rows_max: a request with more rows is refused; 0 = no limit.
    queue_requests_max, queue_rows_max: what may wait in one lane. A request that finds the lane empty is always taken.
      One that will run by itself, as it has more rows than a batch, counts for a batch; with `none` rows do not count.
    queue_bytes_max: likewise, of their inputs with all of their rows, as far as dtypes and shapes tell; 0 = not
      limited this way.
    queue_ns_max: a request that by prediction would wait longer is refused, whatever its deadline; 0 = not limited.
    queue_batches_max: TF Serving's `max_enqueued_batches`: whole batches that may wait in one lane; 0 = not limited
      this way.
    split: does a request with more rows than `batch_rows_max` run as several parts? Rows that depend on each other get
      other answers then.
    workers_max: how many workers may run this model, always the same ones; 0 = all that have loaded it.
    lease_ns_max: a batch that runs longer has hung and its worker is ended. Never less than
      `leases.RUN_TIMES_MAX` times the learned run time, so that a slow model is not taken for a hung one.
    lease_waits_ns_max: nor is one that has run for less than this, as long as the deadline of a request in it is still
      to come, or one has none; 0 = it is.
    spread_ns: a wait shorter than this is better spent filling the batch than on one more worker.
    prefetch_ns: this long before a worker is predicted to be free it is sent its next batch, so that it does not idle
      while messages travel. 0 = never (but see the next).
    prefetch_full_ns: the same for a batch that is full already, which waiting cannot make better. Not much longer
      than messages take: what is sent ahead stands before every other lane's next batch.
    refuse_late: refuse requests that by the learned run times cannot make their deadline (only when these are known
      well, and never the only one waiting, so that a wrong prediction corrects itself).
    keep_free_ns: a model whose batches run longer than `spread_ns` leaves one worker to the others for so long after
      the last request of one of them (see `neighbours.py`); 0 = it need not.
    lend_after_requests: after so many batches in a row of one request each, of one lane and one frontend and with
      nothing else to do, that frontend is lent the worker (see `loans.py`); 0 = never.
    no_worker_ns_max: how long requests wait when no worker serves their model version (one is being replaced). Longer
      than a new pool needs to import TensorFlow, which on a busy host is above ten seconds.
    """

    batching: Batching = "adaptive"
    batch_rows_max: int = 128
    batch_rows_allowed: tuple[int, ...] = ()
    batch_wait_ns_max: int = 0
    batch_enough_ns: int = 2 * MILLISECOND_NS
    batches_at_once_max: int = 0
    request_rows_max: int = 0
    queue_requests_max: int = 8_192
    queue_rows_max: int = 65_536
    queue_bytes_max: int = 0
    queue_ns_max: int = 0
    queue_batches_max: int = 0
    split: bool = True
    workers_max: int = 0
    lease_ns_max: int = 60 * SECOND_NS
    lease_waits_ns_max: int = 0
    spread_ns: int = MILLISECOND_NS
    prefetch_ns: int = MILLISECOND_NS
    prefetch_full_ns: int = 5 * MILLISECOND_NS
    refuse_late: bool = True
    keep_free_ns: int = 100 * MILLISECOND_NS
    lend_after_requests: int = 4
    no_worker_ns_max: int = 30 * SECOND_NS

    def __post_init__(self) -> None:
        if self.batching not in ("adaptive", "timeout", "none"):
            raise ValueError(f"batching must be adaptive, timeout or none; it is {self.batching!r}")
        for name in ("batch_rows_max", "queue_requests_max", "queue_rows_max", "lease_ns_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; it is {getattr(self, name)}")
        for name in (
            "batch_wait_ns_max",
            "batch_enough_ns",
            "batches_at_once_max",
            "request_rows_max",
            "queue_bytes_max",
            "queue_ns_max",
            "queue_batches_max",
            "keep_free_ns",
            "lend_after_requests",
            "workers_max",
            "spread_ns",
            "prefetch_ns",
            "prefetch_full_ns",
            "no_worker_ns_max",
            "lease_waits_ns_max",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; it is {getattr(self, name)}")
        allowed = self.batch_rows_allowed
        if allowed and (allowed[0] < 1 or any(one >= next_one for one, next_one in pairwise(allowed))):
            raise ValueError(f"batch_rows_allowed must be ascending and at least 1; it is {allowed}")
