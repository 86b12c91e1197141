"""Every metric family, declared once: name, kind, labels, buckets, and one line of why.

Two tables. TFS has TensorFlow Serving's families under its internal names (`/tensorflow/serving/request_count`), with
its labels and bucket limits, so that its dashboards and alerts go on working. OWN has what it lacks, all of it named
`ringserve_...` in base units (seconds, bytes). docs/metrics.md is made from both.
"""

from __future__ import annotations

from typing import Final

from ringserve.config.metric_family import BROKER, COUNTER, FRONTEND, GAUGE, HISTOGRAM, SCRAPE, Family, exponential

#: What stands for the name of a model that the server does not know: clients must not be able to make time series.
UNKNOWN_MODEL: Final = "(unknown)"

_NS_PER_US: Final = 1_000
_NS_PER_S: Final = 1_000_000_000

_LATENCY: Final = exponential(10, 1.8, 33)
_MILLISECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
_DURATION: Final = tuple(ms / 1_000 for ms in _MILLISECONDS)
_ROWS: Final = exponential(1, 2, 14)


def _us_histogram(name: str, labels: tuple[str, ...], source: str, limits: tuple[float, ...], why: str) -> Family:
    return Family(name, HISTOGRAM, labels, why, source, limits, _NS_PER_US)


def _seconds(name: str, labels: tuple[str, ...], source: str, why: str) -> Family:
    return Family(name, HISTOGRAM, labels, why, source, _DURATION, _NS_PER_S)


# -------------------------------------------------------------------------------------------- TensorFlow Serving's

REQUEST_COUNT: Final = Family(
    "/tensorflow/serving/request_count",
    COUNTER,
    ("model_name", "status"),
    "requests by outcome: gRPC Predict, Classify, Regress, and every REST request below /v1",
    FRONTEND,
)
REQUEST_LATENCY: Final = _us_histogram(
    "/tensorflow/serving/request_latency",
    ("model_name", "API", "entrypoint"),
    FRONTEND,
    _LATENCY,
    "µs from a request's bytes to its answer's; successful requests",
)
RUNTIME_LATENCY: Final = _us_histogram(
    "/tensorflow/serving/runtime_latency",
    ("model_name", "API", "runtime"),
    FRONTEND,
    _LATENCY,
    "µs of the model's run, the wait for its batch included; successful requests",
)
EXAMPLE_COUNTS: Final = Family(
    "/tensorflow/serving/request_example_counts",
    HISTOGRAM,
    ("model",),
    "examples of one request; MultiInference only",
    FRONTEND,
    exponential(1, 2, 15),
)
EXAMPLE_COUNT_TOTAL: Final = Family(
    "/tensorflow/serving/request_example_count_total", COUNTER, ("model",), "their sum; MultiInference only", FRONTEND
)
REQUEST_LOG_COUNT: Final = Family(
    "/tensorflow/serving/request_log_count", COUNTER, ("model_name", "status_code"),
    "never counted, as in TF Serving's open-source build", FRONTEND,
)  # fmt: skip
WARMUP_LATENCY: Final = _us_histogram(
    "/tensorflow/serving/model_warmup_latency",
    ("model_path", "status"),
    BROKER,
    _LATENCY,
    "µs that the replay of a version's warm-up records took in one worker",
)
WARMUP_RECORDS: Final = Family(
    "/tensorflow/serving/model_warmup_records_read",
    COUNTER,
    ("model_path", "status"),
    "warm-up records replayed",
    BROKER,
)
QUEUING_LATENCY: Final = _us_histogram(
    "/tensorflow/serving/batching_session/queuing_latency",
    ("thread_pool_name",),
    BROKER,
    exponential(100, 1.2, 52),
    "µs from a request's arrival at the broker until the batch that answers it went out; the label is empty, as in TF "
    "Serving",
)
WRAPPED_RUN_COUNT: Final = Family(
    "/tensorflow/serving/batching_session/wrapped_run_count", COUNTER, (), "batches run, answered or not", BROKER
)
PADDING_SIZE: Final = Family(
    "/tensorflow/serving/batching_session/padding_size",
    HISTOGRAM,
    ("execution_batch_size",),
    "rows added to a batch to reach an allowed size; sizes above 1024 are told as the power of two above",
    BROKER,
    _ROWS,
)
INPUT_BATCH_SIZE: Final = Family(
    "/tensorflow/serving/batching_session/input_batch_size",
    HISTOGRAM,
    (),
    "rows of a request; one sample for each of its input tensors",
    BROKER,
    _ROWS,
)
PROCESSED_BATCH_SIZE: Final = Family(
    "/tensorflow/serving/batching_session/processed_batch_size",
    HISTOGRAM,
    (),
    "rows of a batch as it was run, padding included",
    BROKER,
    _ROWS,
)
MLMD_MAP: Final = Family(
    "/tensorflow/serving/mlmd_map", GAUGE, ("model_name", "version"), "no values, as in TF Serving", FRONTEND
)
LOAD_ATTEMPT_COUNT: Final = Family(
    "/tensorflow/cc/saved_model/load_attempt_count",
    COUNTER,
    ("model_path", "status"),
    "loads by outcome (`success`, `fail`), counted in each worker process",
    BROKER,
)
LOAD_LATENCY: Final = Family(
    "/tensorflow/cc/saved_model/load_latency",
    COUNTER,
    ("model_path",),
    "µs that loads took, summed over the worker processes",
    BROKER,
)

# ------------------------------------------------------------------------------------------------------------- ours

_LANE: Final = ("model", "version", "signature")

REQUESTS: Final = Family(
    "ringserve_requests_total",
    COUNTER,
    (*_LANE, "api", "entrypoint", "code"),
    "requests answered; version and signature are empty where a request did not get that far",
    FRONTEND,
)
REQUEST_DURATION: Final = _seconds(
    "ringserve_request_duration_seconds",
    (*_LANE, "api", "entrypoint"),
    FRONTEND,
    "from a request's bytes to its answer's; successful requests",
)
ACCESS_LOG_LINES: Final = Family(
    "ringserve_access_log_lines_total", COUNTER, ("process", "end"),
    "lines of the access log: written, over_rate (left out), lost (could not be written)", FRONTEND,
)  # fmt: skip
PENDING: Final = Family(
    "ringserve_requests_pending", GAUGE, ("process",), "requests of a frontend that wait for their answer", FRONTEND
)
CALLS_RECEIVED: Final = Family(
    "ringserve_calls_received_total",
    COUNTER,
    ("process", "protocol"),
    "calls of any method and requests of any path that a frontend took in; each ends once",
    FRONTEND,
)
CALLS_ENDED: Final = Family(
    "ringserve_calls_ended_total",
    COUNTER,
    ("process", "protocol", "code"),
    "those that ended, by gRPC code or HTTP status; CANCELLED: the client went, or the server stopped, before "
    "there was an answer; REFUSED: no such method, or against gRPC's rules; LOST: their frontend died",
    FRONTEND,
)
CALLS_IN_FLIGHT: Final = Family(
    "ringserve_calls_in_flight",
    GAUGE,
    ("process", "protocol"),
    "those that have not ended, this scrape's own among them: received less ended",
    SCRAPE,
)
CALLS_UNREAD: Final = Family(
    "ringserve_calls_unread_total", COUNTER, ("process", "protocol"),
    "calls refused before anybody looked into them: a frontend with more to do than it can came to them too late",
    FRONTEND,
)  # fmt: skip
CALLS_UNBALANCED: Final = Family(
    "ringserve_calls_unbalanced",
    GAUGE,
    ("process", "protocol"),
    "received less ended less those that were found in flight by looking at every connection; other than 0 is a bug",
    FRONTEND,
)
CONNECTIONS: Final = Family(
    "ringserve_connections", GAUGE, ("process", "protocol"), "open client connections of a frontend", FRONTEND
)
REFUSALS: Final = Family(
    "ringserve_client_refusals_total",
    COUNTER,
    ("process", "protocol", "reason"),
    "connections ended for what their clients did or did not do: HTTP/2's error, or REST's HTTP status; `unread`: "
    "answers not taken; `address`: too many connections of one; `handshake`: TLS that did not begin in time",
    FRONTEND,
)
LOOP_LAG: Final = Family(
    "ringserve_event_loop_lag_seconds",
    HISTOGRAM,
    ("process",),
    "how late the frontend's loop came to a timer, looked at once a second; timers are exact to a millisecond",
    FRONTEND,
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    _NS_PER_S,
)
RING_CAPACITY: Final = Family(
    "ringserve_ring_capacity_bytes", GAUGE, ("ring",), "size of a frontend's request ring", FRONTEND
)
RING_EXTENT: Final = Family(
    "ringserve_ring_extent_bytes", GAUGE, ("ring",), "how much of the ring is in use as memory now", FRONTEND
)
RING_USED: Final = Family(
    "ringserve_ring_used_bytes", GAUGE, ("ring",), "bytes of requests in the ring now", FRONTEND
)
RING_FULL: Final = Family(
    "ringserve_ring_full_total", COUNTER, ("ring",), "claims that found no room, which were refused", FRONTEND
)
ACCESS_REFUSED: Final = Family(
    "ringserve_access_refused_total",
    COUNTER,
    ("reason",),
    "requests refused for their key: missing, unknown, scope, rate",
    FRONTEND,
)
CERTIFICATE_END: Final = Family(
    "ringserve_tls_certificate_end_time_seconds",
    GAUGE,
    ("process",),
    "when the certificate in use ends, in seconds since 1970 began; only with TLS",
    FRONTEND,
)
QUEUE_DURATION: Final = _seconds(
    "ringserve_queue_duration_seconds",
    _LANE,
    BROKER,
    "from a request's arrival at the broker until the batch that answers it went out",
)
BATCH_ROWS: Final = Family(
    "ringserve_batch_rows",
    HISTOGRAM,
    _LANE,
    "rows that a batch answered, without padding, once it is over; its count is the number of such batches",
    BROKER,
    tuple(float(2**power) for power in range(13)),
)
PADDING_ROWS: Final = Family(
    "ringserve_padding_rows_total", COUNTER, _LANE, "rows that were run only to fill a batch to an allowed size", BROKER
)
RUN_DURATION: Final = _seconds(
    "ringserve_run_duration_seconds", _LANE, BROKER, "a batch's time inside TensorFlow, answered or not"
)
BROKER_REQUESTS: Final = Family(
    "ringserve_broker_requests_total",
    COUNTER,
    ("end",),
    "requests by how they ended at the broker: done, refused, expired, cancelled, failed, dropped (its frontend went)",
    BROKER,
)
GIVEN_UP: Final = Family(
    "ringserve_given_up_requests_total",
    COUNTER,
    ("model", "version", "why", "where"),
    "requests that nobody waited for any more: expired or cancelled; while arriving, queued, loading (no worker served "
    "the model yet) or running (a worker finished it in vain)",
    BROKER,
)
BROKER_RETRIES: Final = Family(
    "ringserve_broker_retries_total", COUNTER, (), "requests queued again because their worker was gone", BROKER
)
PROCESS_STARTS: Final = Family(
    "ringserve_process_starts_total",
    COUNTER,
    ("process",),
    "how often the broker, a frontend or a worker of that name was started; one more than its restarts",
    f"{FRONTEND}, {BROKER}",
)
WORKERS_DIED: Final = Family(
    "ringserve_workers_died_total",
    COUNTER,
    ("end",),
    "worker processes that ended other than asked for: `SIGKILL` (the kernel without memory, or the broker when one "
    "hung), another signal, `failed`",
    BROKER,
)
QUEUE_REQUESTS: Final = Family(
    "ringserve_queue_requests", GAUGE, ("model", "version"), "requests waiting at the broker", SCRAPE
)
QUEUE_ROWS: Final = Family("ringserve_queue_rows", GAUGE, ("model", "version"), "rows waiting at the broker", SCRAPE)
QUEUE_OLDEST: Final = Family(
    "ringserve_queue_oldest_seconds",
    GAUGE,
    ("model", "version"),
    "how long the request that waits longest has waited",
    SCRAPE,
)
RUNNING_BATCHES: Final = Family(
    "ringserve_batches_running", GAUGE, ("model", "version"), "batches that workers hold", SCRAPE
)
LANES: Final = Family("ringserve_lanes", GAUGE, (), "lanes that the broker remembers", SCRAPE)
WORKERS: Final = Family("ringserve_workers", GAUGE, ("state",), "worker processes by state", SCRAPE)
GROUP_WORKERS_WANTED: Final = Family(
    "ringserve_group_workers_wanted", GAUGE, ("group",), "workers that a group is to have under its load", SCRAPE
)
GROUP_WORKERS_ACTIVE: Final = Family(
    "ringserve_group_workers_active", GAUGE, ("group",), "workers of a group that serve", SCRAPE
)
GROUP_GENERATIONS: Final = Family(
    "ringserve_group_generations_total",
    COUNTER,
    ("group", "reason"),
    "generations of workers that a group began: for other models (change), to try again what did not load (refresh), "
    "for their age or memory, or as the first (start)",
    BROKER,
)
GENERATION: Final = Family(
    "ringserve_generation", GAUGE, (), "how often the set of workers was replaced for other models", SCRAPE
)
WEIGHTS: Final = Family(
    "ringserve_weights_shared_bytes",
    GAUGE,
    ("model", "version"),
    "memory of a version's weights that workers share, once per host",
    SCRAPE,
)
MEMORY_LIMIT: Final = Family(
    "ringserve_memory_limit_bytes",
    GAUGE,
    (),
    "what weights and processes may take together; a load beyond it is refused",
    SCRAPE,
)
MEMORY_BUDGETED: Final = Family(
    "ringserve_memory_budgeted_bytes",
    GAUGE,
    (),
    "what they take by the budget: weights, graphs, and a fixed part of each process",
    SCRAPE,
)
AUTHORS: Final = Family(
    "ringserve_authors_total",
    COUNTER,
    ("end",),
    "processes that loaded weights for workers to share, by how they ended: ok, failed (the load), died",
    BROKER,
)
BROKER_UP: Final = Family(
    "ringserve_broker_up", GAUGE, (), "1 when the broker answered this scrape; its gauges are missing otherwise", SCRAPE
)
VERSION_STATE: Final = Family(
    "ringserve_model_version_state", GAUGE, ("model", "version", "state"), "1 for the state a version is in", SCRAPE
)
MODEL_READY: Final = Family(
    "ringserve_model_ready", GAUGE, ("model",), "1 when the configured model has an AVAILABLE version", SCRAPE
)
PROCESS_RESIDENT: Final = Family(
    "ringserve_process_resident_bytes", GAUGE, ("process",), "memory in RAM, shared pages counted whole (RSS)", SCRAPE
)
PROCESS_PROPORTIONAL: Final = Family(
    "ringserve_process_proportional_bytes",
    GAUGE,
    ("process",),
    "memory in RAM, each shared page divided among those who share it (PSS); looked up once a minute at most",
    SCRAPE,
)
PROCESS_START_TIME: Final = Family(
    "ringserve_process_start_time_seconds",
    GAUGE,
    ("process",),
    "when the process was started, in seconds since 1970 began",
    SCRAPE,
)
PROCESS_CPU: Final = Family(
    "ringserve_process_cpu_seconds_total", COUNTER, ("process",), "CPU time in user and system mode", SCRAPE
)
BUILD_INFO: Final = Family("ringserve_build_info", GAUGE, ("version",), "always 1", SCRAPE)


def _declared(of_tfs: bool) -> tuple[Family, ...]:
    found = [value for value in globals().values() if isinstance(value, Family) and value.of_tfs == of_tfs]
    return tuple(sorted(found, key=lambda family: family.name))


#: All families, in the order of a page.
TFS: Final = _declared(True)
OWN: Final = _declared(False)
BY_EXPOSED: Final = {family.exposed: family for family in (*TFS, *OWN)}
