"""The part of `overload.py` about starvation: a light load on B, alone and beside four times what A can do."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from perf import loadgen, models
from perf.loadgen import Exchange, Figures, Load
from perf.overload_report import failed_otherwise
from perf.report import Report, median, print_table
from perf.series import found_rate
from perf.servers import Ringserve

SLOW, LIGHT = "conv", "mlp"
SHARE = 4.0
LIGHT_RATE = 200.0
DEADLINE_MS = 100.0
P99_TIMES_MAX = 1.5
#: A's load begins this much before B's window and ends this much after it.
MARGIN_S = 1.0


class Beside:
    """A load that runs as long as the `with`; `figures` are there when it has ended."""

    def __init__(self, load: Load) -> None:
        self.figures: Figures | None = None
        self._error: Exception | None = None
        self._load = load
        self._thread = threading.Thread(target=self._run, name="load beside", daemon=True)

    def _run(self) -> None:
        try:
            self.figures = loadgen.run(self._load)
        except Exception as error:  # told where the `with` ends
            self._error = error

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error


def _load(server: Ringserve, exchanges: Sequence[Exchange], rate: float, warmup_s: float, duration_s: float,
          seed: int) -> Load:  # fmt: skip
    return Load(server.port, exchanges, connections=4, in_flight=100_000, rate=rate, tick_us=200.0,
                warmup_s=warmup_s, duration_s=duration_s, deadline_ms=DEADLINE_MS, errors_allowed=True,
                extra=[f"--seed={seed}"])  # fmt: skip


def run(duration_s: float, rate: float, flags: tuple[str, ...], report: Report) -> int:
    """rate: A's capacity, calls a second; 0: measured. Returns how many calls failed, neither refused nor late."""
    chosen = models.prepared(SLOW, LIGHT)
    slow, light = chosen[SLOW], chosen[LIGHT]
    runs: list[tuple[str, Figures, Figures | None]] = []
    with Ringserve(slow.name, slow.base_path, flags) as server:
        server.wait_ready(slow.exchanges[0])
        server.call("PUT", f"/ringserve/v1/models/{light.name}", {"base_path": str(light.base_path)})
        server.settle()
        closed = Load(server.port, slow.exchanges, connections=4, in_flight=32, warmup_s=1.0,
                      duration_s=duration_s / 2)  # fmt: skip
        full_rate = rate or found_rate(loadgen.run(closed).calls_per_second)
        for turn in range(2):
            one = _load(server, light.exchanges, LIGHT_RATE, MARGIN_S, duration_s, 1 + turn)
            runs.append(("alone", loadgen.run(one), None))
            other = _load(server, slow.exchanges, SHARE * full_rate, 0.0, duration_s + 2 * MARGIN_S, 11 + turn)
            with Beside(other) as beside:
                figures = loadgen.run(one)
            runs.append(("beside", figures, beside.figures))
    rows = []
    for kind, figures, other_figures in runs:
        latency = figures.latency_us
        beside_text = "-"
        if other_figures is not None:
            beside_text = f"{other_figures.latency_us.count / other_figures.seconds:,.0f}"
        rows.append([kind, f"{figures.calls_per_second:,.0f}", f"{latency.p50:,.0f}", f"{latency.p99:,.0f}",
                     f"{latency.p99_9:,.0f}", str(figures.refused_us.count), str(figures.late),
                     beside_text])  # fmt: skip
    print_table(f"Starvation: {LIGHT} at {LIGHT_RATE:,.0f}/s, alone and beside {SLOW} at {SHARE * full_rate:,.0f}/s",
                ["", "calls/s", "p50 µs", "p99", "p99.9", "refused", "late", f"goodput of {SLOW}"], rows)  # fmt: skip
    p99 = {kind: median(one.latency_us.p99 for name, one, _ in runs if name == kind) for kind in ("alone", "beside")}
    for kind, value in p99.items():
        report.figure(f"starvation {kind} p99", value, "us")
    goodputs = [other.latency_us.count / other.seconds for _, _, other in runs if other is not None]
    report.figure("starvation slow goodput", median(goodputs), "requests/s")
    ratio = report.figure("starvation p99 to alone", p99["beside"] / max(p99["alone"], 1e-9), "")
    report.budget(f"starvation: p99 of {LIGHT} beside {SLOW} at 400 %, times alone", ratio, P99_TIMES_MAX, "")
    lost = sum(one.late + one.refused_us.count for kind, one, _ in runs if kind == "beside")
    due = sum(one.due for kind, one, _ in runs if kind == "beside")
    report.budget(f"starvation: {LIGHT} refused or late", report.figure("starvation lost", lost / max(due, 1), ""),
                  0.001, "")  # fmt: skip
    return sum(failed_otherwise(one) for _, figures, other in runs for one in (figures, other) if one is not None)
