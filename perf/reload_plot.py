"""The plot of `reload.py`: latency and memory over time, with what was done meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perf import plots

if TYPE_CHECKING:
    from perf.reload import Course

COLOURS = {"load": "tab:red", "unload": "tab:orange", "switch": "tab:purple"}


def draw(course: Course, path: Path) -> bool:
    """False without matplotlib."""
    plt = plots.pyplot()
    if plt is None:
        return False
    from_s = course.runs[0].from_s
    figure, (latency, memory) = plt.subplots(2, 1, figsize=(14, 9), sharex=True, layout="constrained")
    named: set[str] = set()

    def label(text: str) -> str | None:
        """Once in the legend."""
        if text in named:
            return None
        named.add(text)
        return text

    for run in course.runs:
        slices = run.figures.slices
        seconds = [run.from_s - from_s + (index + 0.5) * slices.ms / 1e3 for index in range(len(slices.max))]
        for name, values, colour in (("max", slices.max, "0.75"), ("p99", slices.p99, "tab:blue"),
                                     ("p50", slices.p50, "tab:green")):  # fmt: skip
            shown = [value / 1e3 or float("nan") for value in values]
            latency.plot(seconds, shown, color=colour, linewidth=0.8, label=label(f"{name} of {slices.ms:.0f} ms"))
        latency.text(seconds[0], 1.01, run.kind, transform=latency.get_xaxis_transform(), fontsize="small")
        for axes in (latency, memory):
            axes.axvline(run.from_s - from_s, color="0.5", linewidth=0.8)
            for one in run.events:
                start_s = one.at_s - from_s
                axes.axvspan(start_s, start_s + one.seconds, color=COLOURS[one.what], alpha=0.12, linewidth=0,
                             label=label(one.what) if axes is latency else None)  # fmt: skip
    latency.set_yscale("log")
    latency.set_ylabel("latency of A, ms")
    latency.set_title(f"{course.rate:,.0f} calls a second on A", loc="right")
    latency.legend(loc="upper right", fontsize="small", ncols=6)
    plots.memory_over_time(memory, course.samples, from_s)
    memory.set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
