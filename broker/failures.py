"""The broker's answers to requests that will not run: codes and texts, TF Serving's own where it has one.

A client's retry code may look at these, so they stand in one place and change only with a changelog line.
"""

from __future__ import annotations

from ringserve.broker.messages import Code, Failure, ModelVersion

#: TF Serving's code for a full queue, which clients' retry policies know (HTTP 503).
QUEUE_FULL_CODE = Code.UNAVAILABLE

#: TF Serving's text for a deadline that passes while a request waits or runs; where it was comes after it.
TIMED_OUT = "Timed out waiting for notification"
DEADLINE_PASSED = Failure(Code.DEADLINE_EXCEEDED, f"{TIMED_OUT}: the deadline had passed before the request was queued")
DEADLINE_QUEUED = Failure(Code.DEADLINE_EXCEEDED, f"{TIMED_OUT}: the request was still queued")
DEADLINE_LOADING = Failure(Code.DEADLINE_EXCEEDED, f"{TIMED_OUT}: no worker serves the model yet")
CANCELLED = Failure(Code.CANCELLED, "Cancelled by the client while the request waited for a worker")
CANCELLED_RUNNING = Failure(Code.CANCELLED, "Cancelled by the client while a worker ran it; the worker ended")
NO_ROWS = Failure(Code.INVALID_ARGUMENT, "A request must have at least one row")
ENDED_TWO_WORKERS = Failure(
    Code.INTERNAL, "Running this request ended two worker processes; it will not be tried again"
)
TOO_MANY_LANES = Failure(
    Code.RESOURCE_EXHAUSTED,
    "Too many different combinations of signature, outputs, dtypes and inner shapes are being served at once",
)

TOO_LATE_TEXT = "The queue is too long for this request's deadline:"
_FULL = "The batch scheduling queue to which this task was submitted is full; "


def not_found(servable: ModelVersion) -> Failure:
    return Failure(Code.NOT_FOUND, f"Servable not found for request: Specific({servable.name}, {servable.version})")


def replaced(servable: ModelVersion) -> Failure:
    return Failure(
        Code.UNAVAILABLE,
        f"Model {servable.name} version {servable.version} was replaced while this request was on its way, try again",
    )


def no_worker(servable: ModelVersion, waited_ns: int) -> Failure:
    return Failure(
        Code.UNAVAILABLE,
        f"No worker has served model {servable.name} version {servable.version} for {waited_ns / 1e9:.1f} s; "
        "it is being replaced, try again later",
    )


def too_large(rows: int, rows_max: int) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, f"Task size {rows} is larger than maximum input batch size {rows_max}")


def queue_full(requests: int, requests_max: int, rows: int, rows_max: int) -> Failure:
    """rows_max: 0 where rows are not limited."""
    limits = f"limits are {requests_max} requests and {rows_max} rows" if rows_max else f"limit is {requests_max}"
    return Failure(QUEUE_FULL_CODE, f"{_FULL}currently {requests} requests with {rows} rows enqueued and the {limits}")


def queue_slow(rows: int, rows_max: int, wait_ns_max: int) -> Failure:
    return Failure(
        QUEUE_FULL_CODE,
        f"{_FULL}currently {rows} rows enqueued, and {rows_max} are predicted to wait for the "
        f"{wait_ns_max / 1e6:.0f} ms that queue_ms_max allows",
    )


def queue_full_batches(batches: int, batches_max: int) -> Failure:
    """TF Serving's text, word for word: requests are not split, and no further batch may be opened."""
    return Failure(
        QUEUE_FULL_CODE, f"{_FULL}currently {batches} batches enqueued and max_enqueued_batches is {batches_max}"
    )


def no_capacity(rows: int, rows_queued: int, batch_rows_max: int, batches_max: int) -> Failure:
    """TF Serving's text, word for word: requests may be split, and this one's pieces do not all fit.

    Pieces fill batches to the brim, so all batches are full but the last one, which is open (and counts when empty).
    """
    batches = max(1, -(-rows_queued // batch_rows_max))
    return Failure(
        QUEUE_FULL_CODE,
        f"{_FULL}task size is {rows} but scheduling capacity is only {batches_max * batch_rows_max - rows_queued} "
        f"(num_enqueued_batches={batches}, max_enqueued_batches={batches_max}, "
        f"open_batch_size={rows_queued - (batches - 1) * batch_rows_max}, max_execution_batch_size={batch_rows_max})",
    )


def too_late(wait_ns: int) -> Failure:
    return Failure(
        Code.RESOURCE_EXHAUSTED,
        f"{TOO_LATE_TEXT} an answer can be promised in {wait_ns / 1e6:.0f} ms at the earliest",
    )
