"""The plots of docs/performance.md: latency by share of calls, latency against rate, and the same beside others.

Each is of one program's figures, which were measured in turns. Its last line, a comment, says of which: a plot that was
drawn from others is not shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.plots import pyplot

TITLES = {
    "throughput": "Throughput against latency, closed loop, MLP over gRPC",
    "latency": "Latency by share of calls, open loop, MLP over gRPC",
    "latency-rate": "Latency against rate, open loop",
    "throughput-others": "Throughput against latency, closed loop, MLP: others, and ours",
    "comparison": "Latency by share of calls at equal rate: others, and ours dashed",
}

#: A part of a program's result, by the figures' names.
Figures = Mapping[str, Any]


def latency_curve(axes: Any, label: str, curve: Sequence[Sequence[float]], **style: Any) -> None:
    """As HdrHistogram draws it: each nine of the share as wide as the one before. curve: (share of calls, µs)."""
    shown = [(1.0 / (1.0 - share), us / 1e3) for share, us in curve if share < 1.0]
    axes.plot([x for x, _ in shown], [y for _, y in shown], label=label, **style)


def finish_latency(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1, 10, 100, 1_000, 10_000], ["0", "90 %", "99 %", "99.9 %", "99.99 %"])
    axes.set_xlabel("share of calls that are not slower")
    axes.set_ylabel("ms")


def rates_and_tails(axes: Any, figures: Figures, labels: Mapping[str, str]) -> bool:
    """A line for each of `labels`, by the first words of its figures' names."""
    drawn = False
    for prefix, label in labels.items():
        keys = [f"{prefix} {count} in flight" for count in (1, 8, 32, 128)]
        keys = [key for key in keys if f"{key} rate" in figures]
        if keys:
            rates = [figures[f"{key} rate"]["value"] for key in keys]
            axes.plot(rates, [figures[f"{key} latency p99"]["value"] / 1e3 for key in keys], "o-", label=label)
            drawn = True
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("p99, ms")
    return drawn


def throughput(axes: Any, figures: Figures) -> bool:
    labels = {"mlp grpc": "ringserve", "mlp echo": "bare C++ echo", "mlp naive": "naive grpc.aio"}
    return rates_and_tails(axes, figures, labels)


def throughput_others(axes: Any, figures: Figures) -> bool:
    names = [name.removesuffix(" 32 in flight rate") for name in figures if name.endswith(" 32 in flight rate")]
    return rates_and_tails(axes, figures, {name: name for name in names})


def latency(axes: Any, curves: Figures) -> bool:
    for name, curve in curves.items():
        if name.startswith("mlp "):
            latency_curve(axes, f"{name.split()[1]} of capacity", curve)
    finish_latency(axes)
    return any(name.startswith("mlp ") for name in curves)


def latency_rate(axes: Any, figures: Figures) -> bool:
    for key, label in (("mlp", "MLP, gRPC"), ("rest", "MLP, REST"), ("conv", "convolution net")):
        found = [name for name in figures if name.startswith(f"{key} ") and name.endswith("% rate")]
        names = [name.removesuffix(" rate") for name in sorted(found, key=lambda name: float(figures[name]["value"]))]
        if not names:
            continue
        rates = [figures[f"{name} rate"]["value"] for name in names]
        (line,) = axes.plot(rates, [figures[f"{name} latency p99"]["value"] / 1e3 for name in names], "o-",
                            label=f"{label}: p99")  # fmt: skip
        axes.plot(rates, [figures[f"{name} latency p50"]["value"] / 1e3 for name in names], "o:",
                  color=line.get_color(), label=f"{label}: p50")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("ms")
    return bool(figures)


def comparison(axes: Any, curves: Figures) -> bool:
    for name, curve in curves.items():
        if not name.endswith(", ours"):
            before = len(axes.lines)
            latency_curve(axes, name.removesuffix(" open"), curve)
            if f"{name}, ours" in curves:
                latency_curve(axes, "_", curves[f"{name}, ours"], color=axes.lines[before].get_color(), linestyle="--")
    finish_latency(axes)
    return bool(curves)


#: Name -> the program, which part of its result, and what draws that: False where there is nothing to draw.
_MAKERS: dict[str, tuple[str, str, Callable[[Any, Figures], bool]]] = {
    "throughput": ("end_to_end", "figures", throughput),
    "latency": ("open_loop", "curves", latency),
    "latency-rate": ("open_loop", "figures", latency_rate),
    "throughput-others": ("compare_servers", "figures", throughput_others),
    "comparison": ("compare_servers", "curves", comparison),
}


def drawn_of(programs: Mapping[str, Any], name: str) -> Figures:
    program, part, _ = _MAKERS[name]
    found: Figures = programs.get(program, {}).get(part, {})
    return found


def mark(figures: Figures) -> str:
    """The last line of a plot of these."""
    return f"<!-- figures {hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:16]} -->\n"


def found(programs: Mapping[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """Names of the plots in FOLDER that were drawn from these figures, and of those that were drawn from others."""
    current: list[str] = []
    stale: list[str] = []
    for name in TITLES:
        file = folder / f"performance-{name}.svg"
        if file.exists():
            is_current = file.read_text().endswith(mark(drawn_of(programs, name)))
            (current if is_current else stale).append(name)
    return current, stale


def draw(programs: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes FOLDER/performance-NAME.svg where there is data for it, and removes it where not; returns the names."""
    plt = pyplot()
    if plt is None:
        return []
    plt.rcParams["svg.fonttype"] = "none"  # text as text: half of the bytes
    plt.rcParams["svg.hashsalt"] = "ringserve"  # the same figures give the same file
    written = []
    for name, (_, _, maker) in _MAKERS.items():
        file, figures = folder / f"performance-{name}.svg", drawn_of(programs, name)
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        if maker(axes, figures):
            axes.grid(visible=True, which="major", linewidth=0.3)
            axes.set_title(TITLES[name], fontsize="medium")
            axes.legend(fontsize="small")
            figure.savefig(file, metadata={"Date": None})
            file.write_text(file.read_text() + mark(figures))
            written.append(name)
        else:
            file.unlink(missing_ok=True)
        plt.close(figure)
    return written
