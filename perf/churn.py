"""`python -m perf.reload --reloads N`: a model is loaded and unloaded N times as fast as it goes: what memory remains?

Another model answers a light load meanwhile. After each load and each unload, when no worker is coming or going, the
memory of all processes is taken. Pages of files (TensorFlow's library) are left out of the judgement: they are divided
among all processes of the machine that map them, and the kernel may drop them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from perf import models, plots, sampling
from perf.changes import PATIENCE_S, ComingAndGoing
from perf.light_load import LightLoad
from perf.report import Report, median, print_table
from perf.sampling import Sample
from perf.servers import Ringserve

#: The memory after the last reload may differ by so much from the memory after the first five.
SHARE_MAX = 0.05
_FIRST = 5


def level(samples: Sequence[Sample]) -> float:
    """MiB, pages of files left out: the median, so that one odd sample decides nothing."""
    return median(one.made_mib for one in samples)


def run(reloads: int, other: str, flags: Sequence[str], rate: float, output: Path, report: Report) -> int:
    """Prints and writes the memory. Returns how many calls failed."""
    chosen = models.prepared("mlp", other)
    unloaded, loaded = list[Sample](), list[Sample]()
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve("mlp", chosen["mlp"].base_path, flags))
        server.wait_ready(chosen["mlp"].exchanges[0])
        server.settle()
        before = sampling.sample(server.session)
        load = stack.enter_context(LightLoad(server, chosen["mlp"], rate))
        coming = ComingAndGoing(server, chosen[other])
        for index in range(reloads):
            coming.load()
            server.settle(PATIENCE_S)
            loaded.append(sampling.sample(server.session))
            coming.unload()
            unloaded.append(sampling.sample(server.session))
            if index % 20 == 19:
                print(f"  {index + 1} reloads, {unloaded[-1].total_mib:,.0f} MiB", file=sys.stderr)
    first = min(_FIRST, max(reloads // 2, 1))
    rows = []
    for name, samples in (("with B loaded", loaded), ("after B left", unloaded)):
        # Around the fifth and the last: the three that end there.
        early, late = samples[max(first - 3, 0) : first], samples[-3:]
        growth = level(late) / level(early) - 1.0
        report.figure(f"churn {name} early", level(early), "MiB")
        report.figure(f"churn {name} last", level(late), "MiB")
        report.figure(f"churn {name} growth", 100 * growth, "%")
        report.budget(f"memory {name}, last against after the first {first}", 100 * abs(growth), 100 * SHARE_MAX, "%")
        group, available, total = (
            [median(getattr(one, name) for one in part) for part in (early, late)]
            for name in ("group_mib", "available_mib", "total_mib")
        )
        rows.append([name, f"{level(early):,.1f}", f"{level(late):,.1f}", f"{100 * growth:+.2f} %",
                     f"{total[0]:,.0f} → {total[1]:,.0f}", f"{group[0]:,.0f} → {group[1]:,.0f}",
                     f"{available[0]:,.0f} → {available[1]:,.0f}"])  # fmt: skip
    header = [f"of {reloads} reloads", f"after {first}", "last", "growth", "with files", "control group", "available"]
    print_table(f"Memory without pages of files, MiB (before any: {before.made_mib:,.1f})", header, rows)
    for what in ("load", "unload"):
        seconds = [one.seconds for one in coming.events if one.what == what]
        report.figure(f"churn {what} time", median(seconds), "s")
        print(f"  {what}: median {median(seconds):.2f} s, longest {max(seconds):.2f} s")
    report.figure("churn reloads", reloads, "")
    print(f"  light load on A: {load.told()}")
    report.budget("failed or wrong calls", report.figure("churn failed", load.failures, "calls"), 0, "calls")
    sampling.write_tsv(output / "churn_loaded.tsv", loaded, before.at_s)
    sampling.write_tsv(output / "churn_unloaded.tsv", unloaded, before.at_s)
    if draw(output / "churn.png", loaded, unloaded):
        print(f"  tables and plot in {output}")
    return load.failures


def draw(path: Path, loaded: Sequence[Sample], unloaded: Sequence[Sample]) -> bool:
    plt = plots.pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for name, samples in (("with B loaded", loaded), ("after B left", unloaded)):
        (line,) = axes.plot(range(1, len(samples) + 1), [one.made_mib for one in samples], label=name)
        early = level(samples[2:_FIRST] or samples)
        axes.axhspan(early * (1 - SHARE_MAX), early * (1 + SHARE_MAX), color=line.get_color(), alpha=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("reload")
    axes.set_ylabel("PSS of all processes without pages of files, MiB")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
