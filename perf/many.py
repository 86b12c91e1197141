"""Many models, many connections, mixed sizes: what is left of the single model's rate? What does a connection cost?

    python -m perf.many            (about two minutes)
    python -m perf.many --quick

Two servers run: one with the MLP alone, one with 100 models of its size under other names. Each repetition measures the
single model with 128 calls in flight (over 4 connections), and beside it: the 100 models asked in turn; one of the 100;
500 connections with a call in flight each, alone and while 5,000 others are open and idle; and requests of 1, 4, 8 and
32 rows mixed, where rows count. Every answer is checked; idle connections must still be open at the end of each. Memory
per connection: what the frontends' private memory grew by, opening them for the first time. A bare C++ echo server of
the same requests, where it can be built, tells what 500 connections cost a server that does nothing.
Exit status: 1 if any call failed or an idle connection was lost.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from perf import echo, loadgen, models, processes
from perf.answers import renamed, together
from perf.loadgen import Exchange, Load
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, median, print_table
from perf.series import Series, measure
from perf.servers import Ringserve, ServerError, model_config

SHARE_MIN = 0.8
MODELS, IDLE, ACTIVE, IN_FLIGHT = 100, 5_000, 500, 128
CONNECTIONS = 4
ROWS = (1, 1, 4, 1, 1, 8, 1, 1, 1, 32)  # of ten requests in turn
#: A client's first words: the preface and SETTINGS; and the acknowledgement of the server's.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0"


class IdleConnections:
    """gRPC connections that are open and say nothing."""

    def __init__(self, port: int, count: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                self._sockets.append(socket.create_connection(("127.0.0.1", port), timeout=10.0))
                self._sockets[-1].sendall(_PREFACE)
            for one in self._sockets:
                one.recv(4096)  # the server's own SETTINGS: it has taken the connection in
        except BaseException:
            self.close()
            raise

    def lost(self) -> int:
        """How many the server has closed."""
        poll = select.poll()
        for one in self._sockets:
            poll.register(one, select.POLLRDHUP)
        return len(poll.poll(0))

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frontend_mib(server: Ringserve) -> float:
    return sum(one.private_mib for one in processes.memories(server.session) if one.role == "frontend")


def raise_file_limit(wanted: int) -> None:
    """This process holds the idle connections, and its children take the limit over. Raises ServerError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ServerError(f"{wanted} open files are needed, and {hard} are allowed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def run(runs: int, seconds: float, idle_count: int, flags: tuple[str, ...], report: Report) -> int:
    raise_file_limit(idle_count + 2_000)
    model = models.prepared("mlp")["mlp"]
    names = [f"mlp-{index:03}" for index in range(MODELS)]
    of_many = [renamed(model.exchanges[index % len(model.exchanges)], name) for index, name in enumerate(names)]
    of_one = [renamed(exchange, names[0]) for exchange in model.exchanges]
    mixed, start = [], 0
    for turn in range(20):
        count = ROWS[turn % len(ROWS)]
        chosen = [model.exchanges[(start + index) % len(model.exchanges)] for index in range(count)]
        mixed.append(together(chosen))
        start += count
    titles = ("single model", "100 models, in turn", "100 models, one asked", f"{ACTIVE} connections",
              f"{ACTIVE} and {idle_count:,} idle", "1 to 32 rows, mixed")  # fmt: skip
    series = {title: Series() for title in titles}
    bare = {connections: Series() for connections in (CONNECTIONS, ACTIVE)}
    lost, grown_mib = 0, 0.0

    def load(
        port: int, exchanges: Sequence[Exchange], in_flight: int = IN_FLIGHT, connections: int = CONNECTIONS
    ) -> Load:
        return Load(port, exchanges, connections=connections, in_flight=in_flight, warmup_s=min(seconds / 2, 1.0),
                    duration_s=seconds, errors_allowed=True)  # fmt: skip

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perf-many-")))
        single = stack.enter_context(Ringserve(model.name, model.base_path, flags))
        config = model_config(folder / "models.config", dict.fromkeys(names, model.base_path))
        many = stack.enter_context(Ringserve(names[0], config, flags))
        single.wait_ready(model.exchanges[0])
        many.wait_until(many.all_available, "all models to be available", patience_s=300.0)
        for server in (single, many):
            server.settle()
        other = stack.enter_context(echo.Echo()) if echo.available() else None
        if other is not None:
            other.wait_ready(model.exchanges[0])
        for turn in range(runs):
            measure(single, load(single.port, model.exchanges), series[titles[0]])
            measure(many, load(many.port, of_many), series[titles[1]])
            measure(many, load(many.port, of_one), series[titles[2]])
            measure(single, load(single.port, model.exchanges, ACTIVE, ACTIVE), series[titles[3]])
            before_mib = frontend_mib(single)
            with IdleConnections(single.port, idle_count) as idle:
                if turn == 0:  # later ones find what the first ones left
                    grown_mib = frontend_mib(single) - before_mib
                measure(single, load(single.port, model.exchanges, ACTIVE, ACTIVE), series[titles[4]])
                lost += idle.lost()
            measure(single, load(single.port, mixed), series[titles[5]])
            if other is not None:
                same = echo.exchanges(model.exchanges)
                for connections, in_flight in ((CONNECTIONS, IN_FLIGHT), (ACTIVE, ACTIVE)):
                    one = replace(load(other.port, same, in_flight, connections), compare="exact")
                    measure(other, one, bare[connections])
    tell(series, 1024 * grown_mib / idle_count, lost, idle_count, report)
    if other is not None:
        tell_echo(series[titles[0]], series[titles[3]], bare, report)
    return lost + sum(one.failures() for one in (*series.values(), *bare.values()))


def tell_echo(few: Series, many: Series, bare: dict[int, Series], report: Report) -> None:
    rows = []
    for connections, ours in ((CONNECTIONS, few), (ACTIVE, many)):
        rate = report.figure_of(f"echo {connections} connections rate", bare[connections].rates(), "requests/s")
        report.figure_of(f"echo {connections} connections others", bare[connections].others_cpus, "CPUs")
        ratio = report.figure(f"{connections} connections of echo", ours.rate() / rate, "")
        rows.append([str(connections), f"{rate:,.0f}", f"{ratio:.2f}"])
    share = report.figure("echo share", bare[ACTIVE].rate() / bare[CONNECTIONS].rate(), "")
    print_table(f"A bare C++ echo server of the same requests: {ACTIVE} connections leave it {share:.2f}",
                ["connections", "requests/s", "ours, of it"], rows)  # fmt: skip


def tell(series: dict[str, Series], per_connection: float, lost: int, idle_count: int, report: Report) -> None:
    rows = []
    (alone, base), *others = series.items()
    for title, one in series.items():
        each = sum(ROWS) / len(ROWS) if "rows" in title else 1.0
        rates = [rate * each for rate in one.rates()]
        report.figure_of(f"{title} rate", rates, "rows/s")
        report.figure_of(f"{title} latency p99", one.latencies_us("p99"), "us")
        report.figure_of(f"{title} others", one.others_cpus, "CPUs")
        share = report.figure(f"{title} share", median(rates) / base.rate(), "")
        rows.append([title, f"{median(rates):,.0f}", f"{share:.2f}", f"{one.latency_us('p50'):,.0f}",
                     f"{one.latency_us('p99'):,.0f}", str(one.failures()),
                     f"{median(one.others_cpus):.2f}"])  # fmt: skip
    print_table(f"MLP over gRPC, closed loop; shares are of {alone!r}",
                ["", "rows/s", "share", "p50 µs", "p99", "failed", "others' CPUs"], rows)  # fmt: skip
    for title, _ in others:
        report.budget(f"{title}: rows a second, of the single model's", report.figures[f"{title} share"][0], SHARE_MIN,
                      "", at_least=True)  # fmt: skip
    report.figure("memory of an idle connection", per_connection, "KiB")
    print(f"\nAn idle gRPC connection takes {per_connection:.1f} KiB of its frontend; {lost} of {idle_count:,} "
          "were lost, in all repetitions")  # fmt: skip


def main() -> int:
    parser = program_parser(__doc__, "many", runs=5)
    options = parser.parse_args()
    runs, seconds, idle_count = (1, 1.0, IDLE) if options.quick else (options.runs, 2.5, IDLE)
    report = Report()

    def program() -> int:
        loadgen.build()
        return run(runs, seconds, idle_count, server_flags(options), report)

    return run_program("many", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
