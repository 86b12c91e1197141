"""The plots of docs/performance.md: latency by share of calls, latency against rate, and the same beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.plots import pyplot

TITLES = {
    "throughput": "Throughput against latency, closed loop, MLP",
    "latency": "Latency by share of calls, open loop, MLP over gRPC",
    "latency-rate": "Latency against rate, open loop",
    "comparison": "Latency by share of calls at equal rate: others, and ours dashed",
}


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


def throughput(axes: Any, programs: Mapping[str, Any]) -> bool:
    drawn = False
    lines: dict[str, tuple[Mapping[str, Any], str, Sequence[int]]] = {}
    if "figures" in (ours := programs.get("end_to_end", {})):
        for label, prefix in (("ringserve, gRPC", "mlp grpc"), ("ringserve, REST", "mlp rest")):
            if f"{prefix} 128 in flight rate" in ours["figures"]:
                lines[label] = ours["figures"], prefix, (1, 8, 32, 128)
    if "figures" in (others := programs.get("compare_servers", {})):
        figures = others["figures"]
        names = [name.removesuffix(" 32 in flight rate") for name in figures if name.endswith(" 32 in flight rate")]
        for name in names:
            lines.setdefault(name, (figures, name, (1, 32, 128)))
    for label, (figures, prefix, counts) in lines.items():
        keys = [f"{prefix} {count} in flight" for count in counts if f"{prefix} {count} in flight rate" in figures]
        if keys:
            rates = [figures[f"{key} rate"]["value"] for key in keys]
            axes.plot(rates, [figures[f"{key} latency p99"]["value"] / 1e3 for key in keys], "o-", label=label)
            drawn = True
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("p99, ms")
    return drawn


def latency(axes: Any, programs: Mapping[str, Any]) -> bool:
    curves = programs.get("open_loop", {}).get("curves", {})
    for name, curve in curves.items():
        if name.startswith("mlp "):
            latency_curve(axes, f"{name.split()[1]} of capacity", curve)
    finish_latency(axes)
    return any(name.startswith("mlp ") for name in curves)


def latency_rate(axes: Any, programs: Mapping[str, Any]) -> bool:
    figures = programs.get("open_loop", {}).get("figures", {})
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


def comparison(axes: Any, programs: Mapping[str, Any]) -> bool:
    curves = programs.get("compare_servers", {}).get("curves", {})
    for name, curve in curves.items():
        if not name.endswith(", ours"):
            before = len(axes.lines)
            latency_curve(axes, name.removesuffix(" open"), curve)
            if f"{name}, ours" in curves:
                latency_curve(axes, "_", curves[f"{name}, ours"], color=axes.lines[before].get_color(), linestyle="--")
    finish_latency(axes)
    return bool(curves)


_MAKERS = {"throughput": throughput, "latency": latency, "latency-rate": latency_rate, "comparison": comparison}


def draw(programs: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes FOLDER/performance-NAME.svg where there is data for it, and removes it where not; returns the names."""
    plt = pyplot()
    if plt is None:
        return []
    plt.rcParams["svg.fonttype"] = "none"  # text as text: half of the bytes
    plt.rcParams["svg.hashsalt"] = "ringserve"  # the same figures give the same file
    written = []
    for name, maker in _MAKERS.items():
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        if maker(axes, programs):
            axes.grid(visible=True, which="major", linewidth=0.3)
            axes.set_title(TITLES[name], fontsize="medium")
            axes.legend(fontsize="small")
            figure.savefig(folder / f"performance-{name}.svg", metadata={"Date": None})
            written.append(name)
        else:
            (folder / f"performance-{name}.svg").unlink(missing_ok=True)
        plt.close(figure)
    return written
