"""docs/performance.md from the figures that perf/all.py gathered: tables, targets met or missed, plots.

Pure text from pure data, but for the plots. What is said of a figure beside its number, the reasons, is in
perf/page_texts.py; what did not pay is in perf/what_did_not_pay.md, which people write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from perf import host, page_plots, page_texts
from perf.loadgen import PERF
from perf.overload_report import GOODPUT_SHARE_MIN
from perf.scaling import FULL

Result = dict[str, Any]
#: A figure is told with its neighbours' share of the machine above this.
OTHERS_CPUS_MAX = 0.1
#: The host had one speed if it took no more than so many times as long for the same at the end, or at the beginning.
STEPS_RATIO_MAX = 1.25


def number(value: float) -> str:
    """Three or four digits that count; thousands apart."""
    if value != value or abs(value) == float("inf"):
        return "never"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def cell(result: Result, name: str, scale: float = 1.0) -> str:
    """`82,000 (81,300–82,900)`: the median, and the smallest and largest of the repetitions; empty when unknown."""
    figure = result["figures"].get(name)
    if figure is None:
        return ""
    text = number(figure["value"] * scale)
    low, high = figure.get("spread", (figure["value"],) * 2)
    return text if low == high else f"{text} ({number(low * scale)}–{number(high * scale)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Without the columns that nobody has anything in."""
    rows = [list(row) for row in rows]
    kept = [index for index in range(len(header)) if index == 0 or any(row[index] for row in rows)]
    lines = ["| " + " | ".join(header[index] for index in kept) + " |", "|---" * len(kept) + "|"]
    lines += ["| " + " | ".join(row[index].replace("|", "/") for index in kept) + " |" for row in rows]
    return [*lines, ""]


def pivot(result: Result, rows: Sequence[tuple[str, str]], columns: Sequence[tuple[str, str, float]]) -> list[str]:
    """rows: (what is written, the figures' first words); columns: (heading, the figures' last words, scale)."""
    lines = []
    for label, prefix in rows:
        cells = [cell(result, f"{prefix} {suffix}", scale) for _, suffix, scale in columns]
        if any(cells):
            lines.append([label, *cells])
    return table(["", *(heading for heading, _, _ in columns)], lines) if lines else []


def targets(result: Result) -> list[str]:
    rows = []
    for one in result["targets"]:
        unit = f" {one['unit']}" if one["unit"] else ""
        relation = "at least" if one["at_least"] else "at most"
        mark = "met" if one["met"] else "**missed**"
        rows.append([one["name"], f"{relation} {number(one['bound'])}{unit}", f"{number(one['value'])}{unit}", mark])
    return table(["target", "bound", "measured", ""], rows) if rows else []


def source(result: Result) -> list[str]:
    """Where the figures of a section are from."""
    others = {name: one for name, one in result["figures"].items() if name.endswith(" others")}
    words = f"`python {result['command']}`, {result['at']}, revision {result['revision']}, {result['machine']}."
    if result["failures"]:
        words += f" **{result['failures']} calls failed.**"
    step = result["figures"].get(host.STEP)
    if step is not None:
        low, high = step.get("spread", (step["value"],) * 2)
        words += f" A step of Python took {number(low)} to {number(high)} ns before and after"
        words += ": **the host changed its speed.**" if high > STEPS_RATIO_MAX * low else "."
    if others:
        most = max(one.get("spread", (0, one["value"]))[1] for one in others.values())
        words += f" Others used at most {most:.2f} CPUs beside a run"
        words += ": **not a quiet machine.**" if most > OTHERS_CPUS_MAX else "."
    return [words, ""]


LATENCIES = (("p50 µs", "latency p50", 1.0), ("p99", "latency p99", 1.0), ("p99.9", "latency p99_9", 1.0))
RATE = ("requests/s", "rate", 1.0)
CPU = tuple((role, f"cpu {role}", 1.0) for role in ("frontend", "broker", "worker", "generator"))


def in_flight(prefix: str, counts: Sequence[int] = (1, 8, 32, 128)) -> list[tuple[str, str]]:
    return [(f"{count} in flight", f"{prefix} {count} in flight") for count in counts]


# ------------------------------------------------------------------------------------------------------------ sections


def end_to_end(result: Result) -> list[str]:
    lines = []
    for title, prefix in (
        ("MLP, gRPC", "mlp grpc"), ("MLP, REST with JSON", "mlp rest"), ("Convolution net, gRPC", "conv grpc"),
        ("Baseline: a bare C++ echo server of the MLP's requests", "mlp echo"),
        ("Baseline: a naive grpc.aio server, MLP", "mlp naive"),
    ):  # fmt: skip
        body = pivot(result, in_flight(prefix), (RATE, *LATENCIES))
        if body:
            lines += [f"### {title}", "", *body]
    costs = [row for prefix in ("mlp grpc", "mlp rest", "conv grpc") for row in in_flight(prefix)]
    named = [(f"{prefix.rsplit(' ', 3)[0]}, {label}", prefix) for label, prefix in costs]
    lines += ["### CPU µs per request", "", *pivot(result, named, CPU)]
    raw = [[name.removesuffix(" rows").replace(" raw loop ", ", rows a call: "), cell(result, name)]
           for name in result["figures"] if " raw loop " in name]  # fmt: skip
    return lines + (["### TensorFlow alone", "", *table(["raw loop", "rows/s"], raw)] if raw else [])


def rest(result: Result) -> list[str]:
    rows = [row for form in ("json", "open inference", "npy") for row in in_flight(form, (1, 32, 128))]
    named = [(prefix.replace(" 1", ", 1").replace(" 32", ", 32"), prefix) for _, prefix in rows]
    lines = pivot(result, named, (RATE, *LATENCIES[:2], ("frontend, CPU µs", "cpu frontend", 1.0)))
    return lines + [f"- {name}: not measured, {words}" for name, words in result["notes"].items()] + [""]


def open_loop(result: Result) -> list[str]:
    lines = []
    for key, title in (("mlp", "MLP, gRPC"), ("rest", "MLP, REST with JSON"), ("conv", "Convolution net, gRPC")):
        shares = sorted({int(name.split()[1][:-1]) for name in result["figures"] if name.startswith(f"{key} ")
                         and name.split()[1].endswith("%")})  # fmt: skip
        if not shares:
            continue
        columns = (RATE, *LATENCIES, ("max", "latency max", 1.0), ("sent late, p99", "late start p99", 1.0))
        lines += [f"### {title}: capacity {cell(result, f'{key} capacity')} requests/s", ""]
        lines += pivot(result, [(f"{share} %", f"{key} {share}%") for share in shares], columns)
    return lines


def idle(result: Result) -> list[str]:
    roles = [name.removeprefix("idle cpu") for name in result["figures"] if name.startswith("idle cpu")]
    rows = [[role.strip() or "all", cell(result, f"idle cpu{role}"), cell(result, f"idle wakes{role}")]
            for role in roles]  # fmt: skip
    return table(["process", "% of a core", "wakes a second"], rows)


def many(result: Result) -> list[str]:
    titles = [name.removesuffix(" rate") for name in result["figures"] if name.endswith(" rate")]
    columns = (("rows/s", "rate", 1.0), ("of the single model's", "share", 1.0), ("p99 µs", "latency p99", 1.0))
    lines = pivot(result, [(title, title) for title in titles], columns)
    memory = cell(result, "memory of an idle connection")
    lines += [f"An idle gRPC connection takes {memory} KiB of its frontend.", ""]
    if "echo share" in result["figures"]:
        share = cell(result, "echo share")
        lines += ["Each connection more is a read and a write more for each request: the bare C++ echo server keeps "
                  f"{share} of its own rate when 500 connections ask it instead of 4.", ""]  # fmt: skip
    return lines


def large(result: Result) -> list[str]:
    titles = [name.removesuffix(" rate") for name in result["figures"] if name.endswith(" rate")]
    columns = (("MB/s", "rate", 1.0), ("of the echo", "share", 1.0), ("p50 ms", "latency p50", 1e-3),
               ("p99", "latency p99", 1e-3), ("processor time, in copies", "cpu", 1.0))  # fmt: skip
    lines = pivot(result, [(title, title) for title in titles], columns)
    return [*lines, f"One core copies {cell(result, 'copy')} GB/s here.", ""]


def overload(result: Result) -> list[str]:
    lines = []
    for key in ("mlp", "mlp_400", "conv"):
        shares = sorted({int(name.split()[1][:-1]) for name in result["figures"] if name.startswith(f"{key} ")
                         and name.split()[1].endswith("%")})  # fmt: skip
        columns = (("goodput/s", "goodput", 1.0), ("refused %", "refused", 100.0), ("late %", "late", 100.0),
                   ("p50 ms", "latency p50", 1e-3), ("p99", "latency p99", 1e-3),
                   ("refusal p99 ms", "refusal p99", 1e-3))  # fmt: skip
        body = pivot(result, [(f"{share} %", f"{key} {share}%") for share in shares], columns)
        if body:
            lines += [f"### {key}: capacity {cell(result, f'{key} capacity')} requests/s", "", *body]
    return [f"A good level keeps {GOODPUT_SHARE_MIN:.0%} of the peak at twice the capacity.", "", *lines]


def comparison(result: Result) -> list[str]:
    last = " 128 in flight rate"
    names = [name.removesuffix(last) for name in result["figures"] if name.endswith(last)]
    columns = (("1: p50 µs", "1 in flight latency p50", 1.0), ("32: requests/s", "32 in flight rate", 1.0),
               ("128: requests/s", "128 in flight rate", 1.0), ("128: p99 ms", "128 in flight latency p99", 1e-3),
               ("CPU µs", "128 in flight cpu", 1.0))  # fmt: skip
    rows = [[name, *(cell(result, f"{name} {suffix}", scale) for _, suffix, scale in columns),
             cell(result, f"{name} failed") or "–"] for name in names]  # fmt: skip
    lines = ["### Closed loop", "", *table(["", *(heading for heading, _, _ in columns), "failed calls"], rows)]
    compared = (("requests/s", "open rate", 1.0), ("p50 µs", "open latency p50", 1.0), ("p99", "open latency p99", 1.0),
               ("p99.9", "open latency p99_9", 1.0), ("ours: p50", "open, ours latency p50", 1.0),
               ("p99", "open, ours latency p99", 1.0), ("p99.9", "open, ours latency p99_9", 1.0),
               ("p99, ours to theirs", "open p99, ours to theirs", 1.0))  # fmt: skip
    lines += ["### Open loop at equal rate: 70 % of what each reached", ""]
    lines += pivot(result, [(name, name) for name in names], compared)
    return [*lines, "### What was run", "", *table(["server", ""], [list(one) for one in result["notes"].items()])]


def scaling(result: Result) -> list[str]:
    figures = result["figures"]
    cores = sorted(int(name.split()[0]) for name in figures if name.endswith(" cores rate"))
    columns = (("measured/s", "rate", 1.0), ("of the cores used, %", "used", 1.0),
               *((f"by the costs on {n}", f"predicted by costs on {n}", 1.0) for n in cores))  # fmt: skip
    lines = ["### The check", "", *pivot(result, [(f"cores: {n}", f"{n} cores") for n in cores], columns)]
    lines += ["### CPU µs per request", "", *pivot(result, [(f"cores: {n}", f"{n} cores") for n in cores], CPU)]
    rows = []
    for name in figures:
        if name.startswith("predicted "):
            limit, _, needed = result["notes"].get(name, "").partition("; ")
            rows.append([name.split()[1], cell(result, name), limit, needed])
    lines += ["### Larger machines, as the model has it", "",
              f"With no core, the broker's included, busier than {FULL:.0%}, and clients elsewhere. The check leaves "
              "no such room: the same cores can do more there, and answer later.", ""]  # fmt: skip
    lines += table(["cores", "requests/s", "ended by", "needs"], rows)
    return [*lines, f"One broker with a core of its own: {cell(result, 'broker saturates')} requests/s, which this "
            f"model reaches on {cell(result, 'broker saturates at')} cores.", ""]  # fmt: skip


#: program, heading, what makes the tables, plots of it
SECTIONS: tuple[tuple[str, str, Callable[[Result], list[str]], tuple[str, ...]], ...] = (
    ("end_to_end", "End to end", end_to_end, ("throughput",)),
    ("rest_binary", "REST", rest, ()),
    ("open_loop", "Open loop: tails below capacity", open_loop, ("latency", "latency-rate")),
    ("idle", "Idle", idle, ()),
    ("many", "Many models, many connections, mixed sizes", many, ()),
    ("large", "Large tensors", large, ()),
    ("overload", "Overload", overload, ()),
    ("compare_servers", "Beside other servers", comparison, ("throughput-others", "comparison")),
    ("scaling", "Scaling: what the costs tell of larger machines", scaling, ()),
)


def text(known: Result, plots: Sequence[str], stale: Sequence[str] = ()) -> str:
    """The page. plots: names of those that were drawn, without their ending; stale: of other figures than these."""
    programs: dict[str, Result] = known["programs"]
    measured = [result for result in programs.values() if "figures" in result]
    lines = ["# Performance", "", *page_texts.INTRODUCTION.strip().splitlines(), ""]
    if known.get("quick"):
        lines += ["**Short windows, measured once: this shows that everything works, and no more.**", ""]
    if measured:
        versions = ", ".join(f"{name} {version}" for name, version in measured[-1]["versions"].items())
        machines = sorted({result["machine"] for result in measured})
        which = f"Machine: {machines[0]}" if len(machines) == 1 else (
            f"**Measured on different machines**, which each section names: {', '.join(machines)}"
        )  # fmt: skip
        lines += [f"{which}. Versions: {versions}.", ""]
    missed = [one for result in measured for one in result["targets"] if not one["met"]]
    judged = sum(len(result["targets"]) for result in measured)
    lines += [f"Of {judged} targets {judged - len(missed)} are met. **Missed:**" if missed else
              f"All {judged} targets are met.", ""]  # fmt: skip
    lines += [f"- {one['name']}: {number(one['value'])} {one['unit']}".rstrip() for one in missed]
    lines += [*([""] if missed else []), "## How it is measured", "", *page_texts.METHOD.strip().splitlines(), ""]
    for program, heading, make, drawn in SECTIONS:
        lines += [f"## {heading}", "", *page_texts.SECTIONS[program].strip().splitlines(), ""]
        result = programs.get(program, {"trouble": "it was not run"})
        if "figures" not in result:
            lines += [f"**Not measured: {result['trouble']}.**", ""]
            continue
        lines += [*source(result), *make(result), *targets(result)]
        lines += [f"![{page_plots.TITLES[name]}](images/performance-{name}.svg)\n" for name in drawn if name in plots]
        lines += [f"*Left out, as it was drawn from other figures: {page_plots.TITLES[name]}.*\n"
                  for name in drawn if name in stale]  # fmt: skip
    lines += ["## What did not pay", "", (PERF / "what_did_not_pay.md").read_text().partition("\n")[2].strip(), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def write(known: Result, docs: Path) -> Path:
    """Draws the plots into DOCS/images, where matplotlib is, and writes DOCS/performance.md.

    Where it is not, the plots of these very figures that are there already stay on the page, and no others.
    """
    images = docs / "images"
    images.mkdir(exist_ok=True)
    page_plots.draw(known["programs"], images)
    path = docs / "performance.md"
    path.write_text(text(known, *page_plots.found(known["programs"], images)))
    return path
