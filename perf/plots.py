"""Plots of what was measured. matplotlib is optional (the extra `perf`): without it there are only the tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.sampling import ROLES, Sample


def pyplot() -> Any:
    """matplotlib.pyplot that draws into files, or None (said on standard error) where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (the extra `perf`)", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def memory_over_time(axes: Any, samples: Sequence[Sample], from_s: float) -> None:
    """PSS by role, one upon the other."""
    seconds = [one.at_s - from_s for one in samples]
    layers = [[one.by_role.get(role, 0.0) for one in samples] for role in ROLES]
    layers.append([one.unmapped_mib for one in samples])
    axes.stackplot(seconds, *layers, labels=[*ROLES, "in no process"], linewidth=0)
    axes.set_ylabel("PSS, MiB")
    axes.legend(loc="upper left", fontsize="small", ncols=3)


def bars(path: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> bool:
    """One group of bars, MiB, for each of `groups`. False without matplotlib."""
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    width = 0.8 / max(len(series), 1)
    for index, (name, values) in enumerate(series.items()):
        places = [place + index * width for place in range(len(values))]
        axes.bar(places, values, width, label=name, color="0.8" if name == "target" else None)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value, f"{value:,.0f}", ha="center", va="bottom", fontsize="small")
    axes.set_xticks([place + width * (len(series) - 1) / 2 for place in range(len(groups))], groups)
    axes.set_ylabel("MiB")
    axes.set_title(title)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
