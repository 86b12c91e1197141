"""Large tensors: how many bytes a second, and what does a byte cost?

    python -m perf.large          images of 224x224x3, 1 to 106 in a request: up to 64 MB (about two minutes)
    python -m perf.large --quick

Two models that compute nothing: `pixels` answers the first pixel of each image, so that only requests are large;
`mirror` answers what it was sent. Closed loop over gRPC, 4 calls in flight. Beside it what copying costs here: one core
that copies 64 MB from one place to another. `copies` is the processor time of all the server's processes per byte
between sockets and TensorFlow, in such copies: the two that the kernel makes at the socket, and whatever else is done.
`mirror` is also measured beside the bare C++ echo server.
Every answer is checked. Exit status: 1 if any call failed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from perf import echo, loadgen, models
from perf.answers import together
from perf.loadgen import Load
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, median, print_table
from perf.series import Series, measure
from perf.servers import Ringserve, model_config

ROWS = (1, 8, 32, 106)  # 0.6, 4.8, 19 and 64 MB
ROW_BYTES = 224 * 224 * 3 * 4
IN_FLIGHT = 4
ECHO_SHARE_MIN = 0.7
NAMES = ("pixels", "mirror")


def copy_gb_per_s() -> float:
    """Of one core that copies 64 MB to memory that is there already; the best of some."""
    source, target = np.ones(16 << 20, np.float32), np.empty(16 << 20, np.float32)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, source.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def run(runs: int, seconds: float, flags: tuple[str, ...], report: Report) -> int:
    prepared = models.prepared(*NAMES)
    loads = {
        (name, rows): [together((prepared[name].exchanges * rows)[index : index + rows]) for index in range(2)]
        for name in NAMES for rows in ROWS
    }  # fmt: skip
    series = {key: Series() for key in loads}
    bare = {rows: Series() for rows in ROWS}
    copies: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perf-large-")))
        config = model_config(folder / "models.config", {name: prepared[name].base_path for name in NAMES})
        server = stack.enter_context(Ringserve("pixels", config, flags))
        for name in NAMES:
            server.wait_ready(prepared[name].exchanges[0])
        server.settle()
        other = stack.enter_context(echo.Echo()) if echo.available() else None
        if other is not None:
            other.wait_ready(prepared["mirror"].exchanges[0])
        for _ in range(runs):
            copies.append(copy_gb_per_s())
            for key, exchanges in loads.items():
                # A gigabyte of memory that nobody had touched comes first where messages are so long.
                warmup_s, least_s = (0.5, 0.0) if key[1] <= 32 else (3.0, 2.5)
                load = Load(server.port, exchanges, connections=IN_FLIGHT, in_flight=IN_FLIGHT, warmup_s=warmup_s,
                            duration_s=max(least_s, seconds), errors_allowed=True)  # fmt: skip
                measure(server, load, series[key])
                if other is not None and key[0] == "mirror":
                    same = replace(load, port=other.port, exchanges=echo.exchanges(exchanges), compare="exact")
                    measure(other, same, bare[key[1]])
    tell(series, copies, report)
    if other is not None:
        tell_echo(series, bare, report)
    return sum(one.failures() for one in (*series.values(), *bare.values()))


def tell_echo(series: dict[tuple[str, int], Series], bare: dict[int, Series], report: Report) -> None:
    rows = []
    for count, one in bare.items():
        megabytes = 2 * count * ROW_BYTES / 1e6
        rate = report.figure_of(f"echo {count} rows rate", [rate * megabytes for rate in one.rates()], "MB/s")
        report.figure_of(f"echo {count} rows others", one.others_cpus, "CPUs")
        ratio = report.figure(f"mirror {count} rows share", series["mirror", count].rate() / one.rate(), "")
        rows.append([str(count), f"{rate:,.0f}", f"{ratio:.2f}", str(one.failures())])
        report.budget(f"{count} images there and back, of a bare C++ echo server's rate", ratio, ECHO_SHARE_MIN, "",
                      at_least=True)  # fmt: skip
    print_table("Beside a bare C++ echo of the same messages", ["rows", "echo, MB/s", "mirror, of it", "failed"], rows)


def tell(series: dict[tuple[str, int], Series], copies: list[float], report: Report) -> None:
    copy = report.figure_of("copy", copies, "GB/s")
    rows = []
    for (name, count), one in series.items():
        megabytes = count * ROW_BYTES * (2 if name == "mirror" else 1) / 1e6
        key = f"{name} {count} rows"
        rate = report.figure_of(f"{key} rate", [rate * megabytes for rate in one.rates()], "MB/s")
        for quantile in ("p50", "p99"):
            report.figure_of(f"{key} latency {quantile}", one.latencies_us(quantile), "us")
        report.figure_of(f"{key} others", one.others_cpus, "CPUs")
        spent = [sum(cpu.values()) - cpu["generator"] for cpu in one.cpu_us]  # µs a call
        one_copy_us = megabytes * 1e6 / (copy * 1e3)
        as_copies = report.figure_of(f"{key} cpu", [us / one_copy_us for us in spent], "copies")
        rows.append([name, str(count), f"{count * ROW_BYTES / 1e6:.1f}", f"{one.rate():,.1f}", f"{rate:,.0f}",
                     f"{one.latency_us('p50') / 1e3:,.1f}", f"{one.latency_us('p99') / 1e3:,.1f}", f"{as_copies:.1f}",
                     str(one.failures()), f"{median(one.others_cpus):.2f}"])  # fmt: skip
    print_table(
        f"Images over gRPC, {IN_FLIGHT} in flight; MB/s is of requests, of `mirror` of answers too; a core copies "
        f"{copy:.1f} GB/s",
        ["", "rows", "MB", "req/s", "MB/s", "p50 ms", "p99", "copies", "failed", "others' CPUs"], rows,
    )  # fmt: skip


def main() -> int:
    options = program_parser(__doc__, "large", runs=3).parse_args()
    runs, seconds = (1, 0.7) if options.quick else (options.runs, 3.0)
    report = Report()

    def program() -> int:
        loadgen.build()
        return run(runs, seconds, server_flags(options), report)

    return run_program("large", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
