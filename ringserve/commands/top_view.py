"""Pure: two looks at a server's metrics become what `ringserve top` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, nan
from typing import Any, Final, NamedTuple

import click

from ringserve.commands.console import duration_text, size_text, table

#: (name, labels sorted) -> value
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

_REQUESTS: Final = "ringserve_requests_total"
_DURATION: Final = "ringserve_request_duration_seconds"
_QUEUED: Final = "ringserve_queue_duration_seconds"
_RUN: Final = "ringserve_run_duration_seconds"
_STATES: Final = {"AVAILABLE": "green", "LOADING": "yellow", "START": "yellow", "UNLOADING": "yellow", "END": "red"}


class ModelRow(NamedTuple):
    """One model version. Rates a second, times in seconds (not a number: nothing ran)."""

    model: str
    version: str
    state: str
    rate: float
    errors: float
    p50: float
    p99: float
    queue_p99: float
    queued: int
    rows_per_batch: float
    run_p50: float
    busy: float


class ProcessRow(NamedTuple):
    """One process. cpu: of one CPU; memory_bytes: its share of what it maps (PSS)."""

    name: str
    cpu: float
    memory_bytes: int
    resident_bytes: int
    starts: int


class View(NamedTuple):
    """Everything shown. busy: workers' worth of time spent in models. seconds: between the two looks."""

    version: str
    generation: int
    workers: dict[str, int]
    rate: float
    errors: float
    p50: float
    p99: float
    pending: int
    queued: int
    oldest_s: float
    connections: int
    ring_used: float
    memory_bytes: int
    models: list[ModelRow]
    processes: list[ProcessRow]
    seconds: float


def parse(text: str) -> Samples:
    """The samples of Prometheus's text format. Raises ValueError."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Prometheus's histogram_quantile: of cumulative counts by upper bound, linear inside of a bucket."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return nan
    wanted, low, before = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == inf:
                return low
            inside = buckets[bound] - before
            return low + (bound - low) * ((wanted - before) / inside if inside > 0 else 1.0)
        low, before = bound, buckets[bound]
    return low


class _Looks:
    """Two looks, and what changed between them."""

    def __init__(self, before: Samples, after: Samples, seconds: float) -> None:
        self._before, self._after, self._seconds = before, after, seconds
        self._by_name: dict[str, list[tuple[dict[str, str], float, float]]] = {}
        for (name, labels), value in after.items():
            was = before.get((name, labels), 0.0)
            # A counter that went back began anew, with its process.
            gain = value - was if value >= was else value
            self._by_name.setdefault(name, []).append((dict(labels), value, gain))

    def rows(self, name: str, **labels: str) -> Iterable[tuple[dict[str, str], float, float]]:
        """(labels, value, gain) of the samples with these labels."""
        for row in self._by_name.get(name, ()):
            if all(row[0].get(key) == value for key, value in labels.items()):
                yield row

    def value(self, name: str, **labels: str) -> float:
        """The sum of the values."""
        return sum(row[1] for row in self.rows(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        """The sum of the gains, a second."""
        return sum(row[2] for row in self.rows(name, **labels)) / self._seconds

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """Of the observations between the looks."""
        buckets: dict[float, float] = {}
        for row, _, gain in self.rows(f"{name}_bucket", **labels):
            bound = float(row["le"])
            buckets[bound] = buckets.get(bound, 0.0) + gain
        return quantile(buckets, share)


def view(before: Samples, after: Samples, seconds: float) -> View:
    """What happened between two looks that lie so far apart."""
    looks = _Looks(before, after, seconds)
    versions = [labels for labels, value, _ in looks.rows("ringserve_model_version_state") if value]
    models = [
        _model(looks, labels["model"], labels["version"], labels["state"])
        for labels in sorted(versions, key=lambda labels: (labels["model"], -int(labels["version"])))
    ]
    processes = [
        ProcessRow(
            labels["process"],
            looks.rate("ringserve_process_cpu_seconds_total", process=labels["process"]),
            int(looks.value("ringserve_process_proportional_bytes", process=labels["process"])),
            int(value),
            int(looks.value("ringserve_process_starts_total", process=labels["process"])),
        )
        for labels, value, _ in looks.rows("ringserve_process_resident_bytes")
    ]
    failed = sum(gain for labels, _, gain in looks.rows(_REQUESTS) if labels.get("code") != "OK") / seconds
    info = next(iter(looks.rows("ringserve_build_info")), ({}, 0.0, 0.0))[0]
    capacity = looks.value("ringserve_ring_capacity_bytes")
    return View(
        version=info.get("version", "?"),
        generation=int(looks.value("ringserve_generation")),
        workers={labels["state"]: int(value) for labels, value, _ in looks.rows("ringserve_workers") if value},
        rate=looks.rate(_REQUESTS),
        errors=failed,
        p50=looks.quantile(_DURATION, 0.5),
        p99=looks.quantile(_DURATION, 0.99),
        pending=int(looks.value("ringserve_requests_pending")),
        queued=int(looks.value("ringserve_queue_requests")),
        oldest_s=max((value for _, value, _ in looks.rows("ringserve_queue_oldest_seconds")), default=0.0),
        connections=int(looks.value("ringserve_connections")),
        ring_used=looks.value("ringserve_ring_used_bytes") / capacity if capacity else 0.0,
        memory_bytes=sum(process.memory_bytes or process.resident_bytes for process in processes),
        models=models,
        processes=sorted(processes, key=lambda process: process.name),
        seconds=seconds,
    )


def _model(looks: _Looks, model: str, version: str, state: str) -> ModelRow:
    about = {"model": model, "version": version}
    ours = looks.rows(_REQUESTS, **about)
    failed = sum(gain for labels, _, gain in ours if labels.get("code") != "OK")
    batches = looks.rate("ringserve_batch_rows_count", **about)
    rate = looks.rate(_REQUESTS, **about)
    return ModelRow(
        model, version, state, rate, failed / looks._seconds,
        looks.quantile(_DURATION, 0.5, **about), looks.quantile(_DURATION, 0.99, **about),
        looks.quantile(_QUEUED, 0.99, **about), int(looks.value("ringserve_queue_requests", **about)),
        looks.rate("ringserve_batch_rows_sum", **about) / batches if batches else nan,
        looks.quantile(_RUN, 0.5, **about), looks.rate(f"{_RUN}_sum", **about),
    )  # fmt: skip


def as_json(shown: View) -> dict[str, Any]:
    """The view as JSON's values; null for what nothing tells."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return None if value != value else value
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return clean(value._asdict())
        return [clean(each) for each in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = clean(shown)
    return cleaned


def render(shown: View, url: str) -> list[str]:
    """The view as lines of text."""
    workers = ", ".join(f"{count} {state}" for state, count in sorted(shown.workers.items())) or "none"
    failing = click.style(f"{shown.errors:.1f}/s", fg="red" if shown.errors else None)
    lines = [
        f"{click.style('ringserve', bold=True)} {shown.version} at {url}   workers: {workers}   "
        f"generation {shown.generation}   memory {size_text(shown.memory_bytes)}",
        f"requests {shown.rate:.1f}/s   errors {failing}   p50 {duration_text(shown.p50)}"
        f"   p99 {duration_text(shown.p99)}   pending {shown.pending}"
        f"   queued {shown.queued} (oldest {duration_text(shown.oldest_s)})"
        f"   connections {shown.connections}   ring {shown.ring_used:.0%}",
        "",
    ]
    heads = [*("MODEL", "VERSION", "STATE", "REQ/S", "ERR/S", "P50", "P99"),
             *("WAIT P99", "QUEUE", "ROWS", "RUN P50", "BUSY")]  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (
            row.model, row.version, click.style(row.state, fg=_STATES.get(row.state)), f"{row.rate:.1f}",
            f"{row.errors:.1f}", duration_text(row.p50), duration_text(row.p99), duration_text(row.queue_p99),
            row.queued, "-" if row.rows_per_batch != row.rows_per_batch else f"{row.rows_per_batch:.1f}",
            duration_text(row.run_p50), f"{row.busy:.0%}",
        )
        for row in shown.models
    ]  # fmt: skip
    lines += table(heads, rows, right=range(3, 12)).splitlines() if rows else ["no models"]
    heads = ["PROCESS", "CPU", "MEMORY", "RSS", "STARTS"]
    rows = [
        (row.name, f"{row.cpu:.0%}", size_text(row.memory_bytes), size_text(row.resident_bytes), row.starts or "-")
        for row in shown.processes
    ]
    return [*lines, "", *table(heads, rows, right=(1, 2, 3, 4)).splitlines()]
