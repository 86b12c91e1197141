"""`python -m perf.reload --reloads N`: a model is loaded and unloaded N times as fast as it goes: what memory remains?

Over REST (added and removed), or with --by versions by new versions in its base path. Another model answers a light
load meanwhile. After each load and each unload, when no worker is coming or going, the memory of all processes is
taken. Pages of files (TensorFlow's library) are left out of the judgement: they are divided among all processes of the
machine that map them, and the kernel may drop them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from perf import models, plots, sampling
from perf.changes import PATIENCE_S, ComingAndGoing, Event, Versions
from perf.light_load import LightLoad
from perf.models import PerfModel
from perf.report import Report, median, print_table
from perf.sampling import Sample
from perf.servers import Ringserve

#: The memory after the last reload may differ by so much from the memory after the first five.
SHARE_MAX = 0.05
_FIRST = 5


def level(samples: Sequence[Sample]) -> float:
    """MiB, pages of files left out: the median, so that one odd sample decides nothing."""
    return median(one.made_mib for one in samples)


def _over_rest(server: Ringserve, model: PerfModel, reloads: int) -> tuple[dict[str, list[Sample]], list[Event]]:
    """Added and removed so many times; the memory with it and without."""
    coming = ComingAndGoing(server, model)
    samples: dict[str, list[Sample]] = {"with B loaded": [], "after B left": []}
    for index in range(reloads):
        coming.load()
        server.settle(PATIENCE_S)
        samples["with B loaded"].append(sampling.sample(server.session))
        coming.unload()
        samples["after B left"].append(sampling.sample(server.session))
        _progress(index, samples["after B left"][-1])
    return samples, coming.events


def _in_directories(server: Ringserve, model: PerfModel, reloads: int) -> tuple[dict[str, list[Sample]], list[Event]]:
    """A new version so many times; the memory with each."""
    samples: dict[str, list[Sample]] = {"with a version of B": []}
    with tempfile.TemporaryDirectory(prefix="perf-churn-") as folder:
        versions = Versions(Path(folder) / "b", (model,))
        body = {"base_path": str(versions.base_path)}
        server.call("PUT", f"/ringserve/v1/models/{model.name}", body, PATIENCE_S)
        for index in range(reloads):
            versions.switch(server)
            samples["with a version of B"].append(sampling.sample(server.session))
            _progress(index, samples["with a version of B"][-1])
    return samples, versions.events


def _progress(index: int, sample: Sample) -> None:
    if index % 20 == 19:
        print(f"  {index + 1} reloads, {sample.made_mib:,.0f} MiB", file=sys.stderr)


#: How B is reloaded.
WAYS = {"rest": _over_rest, "versions": _in_directories}


def run(
    reloads: int, way: str, other: str, flags: Sequence[str], rate: float, output: Path, report: Report
) -> int:
    """Prints and writes the memory. Returns how many calls failed."""
    chosen = models.prepared("mlp", other)
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve("mlp", chosen["mlp"].base_path, ("--settle_ms", "0", *flags)))
        server.wait_ready(chosen["mlp"].exchanges[0])
        server.settle()
        before = sampling.sample(server.session)
        load = stack.enter_context(LightLoad(server, chosen["mlp"], rate))
        series, events = WAYS[way](server, chosen[other], reloads)
    first = min(_FIRST, max(reloads // 2, 1))
    rows = []
    for name, samples in series.items():
        # Around the fifth and the last: the three that end there.
        early, late = samples[max(first - 3, 0) : first], samples[-3:]
        growth = level(late) / level(early) - 1.0
        report.figure(f"churn {name} early", level(early), "MiB")
        report.figure(f"churn {name} last", level(late), "MiB")
        report.figure(f"churn {name} growth", 100 * growth, "%")
        report.budget(f"memory {name}, last against after the first {first}", 100 * growth, 100 * SHARE_MAX, "%")
        group, available, total = (
            [median(getattr(one, name) for one in part) for part in (early, late)]
            for name in ("group_mib", "available_mib", "total_mib")
        )
        rows.append([name, f"{level(early):,.1f}", f"{level(late):,.1f}", f"{100 * growth:+.2f} %",
                     f"{total[0]:,.0f} → {total[1]:,.0f}", f"{group[0]:,.0f} → {group[1]:,.0f}",
                     f"{available[0]:,.0f} → {available[1]:,.0f}"])  # fmt: skip
    header = [f"of {reloads} reloads", f"after {first}", "last", "growth", "with files", "control group", "available"]
    print_table(f"Memory without pages of files, MiB (before any: {before.made_mib:,.1f})", header, rows)
    for what in dict.fromkeys(one.what for one in events):
        seconds = [one.seconds for one in events if one.what == what]
        report.figure(f"churn {what} time", median(seconds), "s")
        print(f"  {what}: median {median(seconds):.2f} s, longest {max(seconds):.2f} s")
    report.figure("churn reloads", reloads, "")
    print(f"  light load on A: {load.told()}")
    report.budget("failed or wrong calls", report.figure("churn failed", load.failures, "calls"), 0, "calls")
    for name, samples in series.items():
        sampling.write_tsv(output / f"churn {name}.tsv".replace(" ", "_"), samples, before.at_s)
    plotted = draw(output / "churn.png", series)
    print(f"  tables{' and plot' if plotted else ''} in {output}")
    return load.failures


def draw(path: Path, series: Mapping[str, Sequence[Sample]]) -> bool:
    """False without matplotlib. The bands are what the target allows."""
    plt = plots.pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for name, samples in series.items():
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
