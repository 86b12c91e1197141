"""Question: what does one gRPC call cost in the native HTTP/2 engine, beside grpc.aio's server in the same run?

    python -m perf.http2 [--seconds 3] [--bytes 3200] [--engine native] [--in-flight 1,8,32,128]

An echo handler in a process of its own, driven over loopback by `h2load` (one connection, a closed loop of the given
number of calls in flight). On a machine that is shared, read the CPU time per call of the server process, which other
load changes little; calls/s and latency include the load generator's share of the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import Buffer, Call, EngineLimits, Methods
from ringserve.frontend.http2.server import serve_native

ENGINES = ("native", "grpcio")
METHOD = "/perf.Echo/Echo"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def echo(call: Call, message: Buffer) -> None:
    call.finish(bytes(message))


async def serve(engine: str) -> None:
    """The server process: prints its port, then serves until it is killed."""
    methods = Methods({METHOD: echo})
    if engine == "grpcio":
        server = await serve_grpcio(methods, ["127.0.0.1:0"], EngineLimits())  # lives as long as its name does
        port = server.ports[0]
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        await serve_native(methods, [listener], EngineLimits())
    gc.collect()
    gc.freeze()
    print(port, flush=True)
    await asyncio.Event().wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def drive(port: int, in_flight: int, seconds: int, body: Path, timeout: str) -> str:
    """What h2load says about that many calls in flight for that long."""
    headers = ["content-type: application/grpc", "te: trailers"] + ([f"grpc-timeout: {timeout}"] if timeout else [])
    command = ["h2load", "-D", str(seconds), "-c", "1", "-m", str(in_flight), "-d", str(body)]
    for header in headers:
        command += ["-H", header]
    command.append(f"http://127.0.0.1:{port}{METHOD}")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout


def figure(report: str, cpu: float, label: str) -> str:
    """One line from h2load's report."""
    done = re.search(r"(\d+) succeeded, (\d+) failed", report)
    rate = re.search(r"finished in [\d.]+s, ([\d.]+) req/s", report)
    latency = re.search(r"time for request: +(\S+) +(\S+) +(\S+)", report)
    if not (done and rate and latency):
        raise RuntimeError(f"h2load says nothing that is known: {report}")
    if int(done[2]) or not int(done[1]):
        raise RuntimeError(f"calls failed: {report}")
    calls = int(done[1])
    return (
        f"{label}  {float(rate[1]):>9,.0f} calls/s  latency mean {latency[3]:>8} max {latency[2]:>8}  "
        f"server CPU {cpu * 1e6 / calls:6.2f} µs/call"
    )


def measure(engine: str, in_flights: list[int], seconds: int, body: Path, timeout: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "perf.http2", "--serve", engine], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        drive(port, 8, 1, body, timeout)  # warm up
        for in_flight in in_flights:
            before = cpu_seconds(server.pid)
            report = drive(port, in_flight, seconds, body, timeout)
            print(figure(report, cpu_seconds(server.pid) - before, f"{engine:6} {in_flight:4} in flight"), flush=True)
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: both")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=3_200, help="message size")
    parser.add_argument("--in-flight", default="1,8,32,128")
    parser.add_argument("--timeout", default="", help="a grpc-timeout header, such as 5S")
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
        return
    if not shutil.which("h2load"):
        parser.error("h2load (package nghttp2-client) is not installed")
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(b"\0" + arguments.bytes.to_bytes(4, "big") + bytes(arguments.bytes))
        in_flights = [int(number) for number in arguments.in_flight.split(",")]
        for engine in arguments.engine or ENGINES:
            measure(engine, in_flights, arguments.seconds, body, arguments.timeout)


if __name__ == "__main__":
    main()
