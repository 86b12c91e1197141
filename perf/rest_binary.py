"""REST with binary bodies beside REST with JSON: the same row, in three forms, at the same addresses' server.

    python -m perf.rest_binary            (about a minute)
    python -m perf.rest_binary --quick

`json`: TensorFlow Serving's predict. `open inference`: the binary extension of the Open Inference protocol. `npy`:
numpy's file format, in and out. A form that the server does not take is told, and not measured. Closed loop, MLP, one
row a request; status and values of every answer are checked. Exit status: 1 if any call failed.
"""

from __future__ import annotations

import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from perf import loadgen, models
from perf.loadgen import Exchange, Load
from perf.models import INPUT, OUTPUT, PerfModel
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, median, print_table
from perf.series import Series, measure
from perf.servers import Ringserve

IN_FLIGHT = (1, 32, 128)
RATE_MIN = {"json": 15_000, "binary": 25_000}


@dataclass(frozen=True)
class Form:
    """One way to say the same. headers: beside Content-Type."""

    name: str
    path: str
    exchanges: Sequence[Exchange]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    compare: str = "json"


def forms(model: PerfModel) -> list[Form]:
    inference: list[Exchange] = []
    npy: list[Exchange] = []
    head = b""
    for exchange in model.rest_exchanges:
        rows = np.asarray(json.loads(exchange.request)["instances"], "<f4")
        answer = np.asarray(json.loads(exchange.expected or b"")["predictions"], "<f4").tobytes()
        head = json.dumps({
            "inputs": [{"name": INPUT, "shape": rows.shape, "datatype": "FP32",
                        "parameters": {"binary_data_size": rows.nbytes}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }).encode()  # fmt: skip
        inference.append(Exchange(head + rows.tobytes(), answer))
        file = io.BytesIO()
        np.save(file, rows)
        npy.append(Exchange(file.getvalue(), answer))
    predict = f"/v1/models/{model.name}:predict"
    return [
        Form("json", predict, model.rest_exchanges),
        Form("open inference", f"/v2/models/{model.name}/infer", inference, "application/octet-stream",
             {"Inference-Header-Content-Length": str(len(head))}, "floats"),
        Form("npy", predict, npy, "application/x-npy", {"Accept": "application/x-npy"}, "floats"),
    ]  # fmt: skip


def refusal(form: Form, port: int) -> str:
    """Why the server does not take it; empty when it does."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{form.path}", form.exchanges[0].request, method="POST")
    for name, value in {"Content-Type": form.content_type, **form.headers}.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=10):
            return ""
    except urllib.error.HTTPError as error:
        words = " ".join(error.read(200).decode(errors="replace").split())
        return f"answered {error.code}" if words.startswith("<") else f"answered {error.code}: {words}"


def run(runs: int, seconds: float, flags: tuple[str, ...], report: Report) -> int:
    model = models.prepared("mlp")["mlp"]
    with Ringserve(model.name, model.base_path, flags) as server:
        server.wait_ready(model.exchanges[0])
        server.settle()
        taken = []
        for form in forms(model):
            if words := refusal(form, server.rest_port):
                report.notes[form.name] = words
                print(f"{form.name}: NOT MEASURED, {words}")
            else:
                taken.append(form)
        series = {(form.name, n): Series() for form in taken for n in IN_FLIGHT}
        for _ in range(runs):
            for form in taken:
                options = [f"--content_type={form.content_type}"]
                options += [f"--header={name}: {value}" for name, value in form.headers.items()]
                for n in IN_FLIGHT:
                    load = Load(server.rest_port, form.exchanges, path=form.path, rest=True, connections=n, in_flight=n,
                                warmup_s=0.5, duration_s=seconds, compare=form.compare, errors_allowed=True,
                                extra=options)  # fmt: skip
                    measure(server, load, series[form.name, n])
    tell(series, report)
    return sum(one.failures() for one in series.values())


def tell(series: dict[tuple[str, int], Series], report: Report) -> None:
    rows = []
    for (name, in_flight), one in series.items():
        key = f"{name} {in_flight} in flight"
        rate = report.figure_of(f"{key} rate", one.rates(), "requests/s")
        for quantile in ("p50", "p99"):
            report.figure_of(f"{key} latency {quantile}", one.latencies_us(quantile), "us")
        frontend = report.figure_of(f"{key} cpu frontend", one.cpus("frontend"), "us/request")
        report.figure_of(f"{key} others", one.others_cpus, "CPUs")
        rows.append([name, str(in_flight), f"{rate:,.0f}", f"{one.latency_us('p50'):,.0f}",
                     f"{one.latency_us('p99'):,.0f}", f"{frontend:.1f}", str(one.failures()),
                     f"{median(one.others_cpus):.2f}"])  # fmt: skip
    print_table("REST, MLP, closed loop",
                ["", "in flight", "req/s", "p50 µs", "p99", "frontend CPU µs", "failed", "others' CPUs"],
                rows)  # fmt: skip
    binary = [one.rate() for (name, n), one in series.items() if name != "json" and n == 128]
    report.budget("REST, JSON, 128 in flight", series["json", 128].rate(), RATE_MIN["json"], "requests/s",
                  at_least=True)  # fmt: skip
    report.budget("REST, binary bodies, 128 in flight", max(binary, default=0.0), RATE_MIN["binary"],
                  "requests/s", at_least=True)  # fmt: skip


def main() -> int:
    options = program_parser(__doc__, "rest_binary", runs=5).parse_args()
    runs, seconds = (1, 1.0) if options.quick else (options.runs, 2.5)
    report = Report()

    def program() -> int:
        loadgen.build()
        return run(runs, seconds, server_flags(options), report)

    return run_program("rest_binary", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
