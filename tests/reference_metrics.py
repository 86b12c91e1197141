"""docs/metrics.md as text, from the tables of families; `tests/reference.py` writes it with the other pages."""

from __future__ import annotations

from ringserve.config import metrics
from ringserve.config.metric_family import HISTOGRAM, Family
from ringserve.config.metrics import UNKNOWN_MODEL


def metrics_md() -> str:
    """The reference of every metric family."""
    return "\n".join(
        [
            *_head(),
            "",
            "## TensorFlow Serving's",
            "",
            "Named, labelled and bucketed as there; a bucket's upper bound is exclusive.",
            "",
            *_table(metrics.TFS),
            "",
            "## ringserve's own",
            "",
            "In seconds and bytes; a bucket's upper bound is inclusive, as Prometheus has it.",
            "",
            *_table(metrics.OWN),
            "",
            *_tail(),
        ]
    )


def _head() -> list[str]:
    return [
        "# Metrics",
        "",
        "<!-- Written by `python -m tests.reference` from config/metrics.py; a test compares. -->",
        "",
        "On the REST port (unless `rest_metrics` is false), on `metrics_port`, and on the operators' socket and port",
        "there are two pages, both in Prometheus's text format and both about the whole server, whichever frontend",
        "answers:",
        "",
        "| path | what |",
        "|---|---|",
        "| `/monitoring/prometheus/metrics` (`metrics_path`) | TensorFlow Serving's families, in its form |",
        "| `/metrics` | everything, with help texts |",
        "",
        "Counts outlive the process that counted: a frontend or a broker that is replaced goes on where the one before",
        "it stopped, until the server as a whole ends. What other processes counted may be a tenth of a second old,",
        "or up to a second where hundreds of models are asked at once.",
        "",
        f'Requests for models that are not configured share `model_name="{UNKNOWN_MODEL}"` (TensorFlow Serving makes a',
        "series for every name that any client sends). Series of models and versions that were removed are no longer",
        "shown.",
        "",
        "## In = answered + refused + cancelled",
        "",
        "Each frontend keeps books of all calls and requests, whatever method or path they name: `calls_received`",
        "= `calls_ended` (by gRPC code or HTTP status, or CANCELLED) + `calls_in_flight`, at every scrape, by",
        "process and protocol (`grpc`, `rest`; `admin` and `metrics` for those ports). In flight is 0 when nobody",
        "asks, but for the scrape itself. Once a second each frontend also looks at all of its connections:",
        "`calls_unbalanced` is what the books are off by, which is never other than 0. Of these, `requests_total`",
        "counts by model and API what became a Predict, Classify or Regress over gRPC, or named a path below /v1",
        "over REST.",
        "",
        "What a frontend that is killed had in flight when it put its books down for the last time, a second ago",
        "at most, is booked as LOST by the one that takes its place, though some of it may have been answered",
        "since; what came to it after that is in none of the books. `requests_total` loses a twentieth of a",
        "second at most. Streams that were refused or reset because they break HTTP/2's rules are no calls: see",
        "`client_refusals`.",
    ]


def _table(families: tuple[Family, ...]) -> list[str]:
    lines = ["| name | kind | labels | buckets | what | set by |", "|---|---|---|---|---|---|"]
    for family in families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(
            f"| `{family.exposed}` | {family.kind} | {labels} | {_buckets(family)} | {family.why} | {family.source} |"
        )
    return lines


def _buckets(family: Family) -> str:
    if family.kind != HISTOGRAM:
        return ""
    first, second, *_, last = (f"{limit:g}" for limit in family.limits)
    return f"{first}, {second} … {last} ({len(family.limits)})"


def _tail() -> list[str]:
    return [
        "## Questions, and what answers them",
        "",
        "| question | PromQL |",
        "|---|---|",
        "| requests a second, by outcome | `sum by (model, code) (rate(ringserve_requests_total[1m]))` |",
        "| 99th percentile of latency | "
        "`histogram_quantile(0.99, sum by (model, le) (rate(ringserve_request_duration_seconds_bucket[5m])))` |",
        "| how much of it is waiting | "
        "`histogram_quantile(0.99, sum by (model, le) (rate(ringserve_queue_duration_seconds_bucket[5m])))` |",
        "| rows of a batch, on average | "
        "`rate(ringserve_batch_rows_sum[1m]) / rate(ringserve_batch_rows_count[1m])` |",
        "| busy workers, on average | `sum(rate(ringserve_run_duration_seconds_sum[1m]))` |",
        "| rows computed for nothing | "
        "`rate(ringserve_padding_rows_total[1m]) / rate(ringserve_batch_rows_sum[1m])` |",
        "| is anything lost in a frontend | `ringserve_calls_unbalanced != 0` |",
        "| is every model served | `min(ringserve_model_ready)` |",
        "| did a process die | `changes(ringserve_process_start_time_seconds[1h]) > 0` |",
        "| does a frontend's loop stall | "
        "`histogram_quantile(0.99, rate(ringserve_event_loop_lag_seconds_bucket[5m]))` |",
        "",
    ]
