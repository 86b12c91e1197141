"""Builds the load generator (`loadgen*.c`) when it is needed, runs it, and reads its figures.

The C compiler is `$CC` or `cc`; the headers of libnghttp2 must be installed (Debian: libnghttp2-dev). What was built
lies in `perf/build/`, named by the sources' digest, so that a change builds anew and nothing stale is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PERF = Path(__file__).resolve().parent
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class LoadError(Exception):
    """The generator could not be built, or could not measure anything."""


@dataclass(frozen=True)
class Exchange:
    """A request body and, when answers are to be compared, the answer expected for it, and `others` as good."""

    request: bytes
    expected: bytes | None = None
    others: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Load:
    """What to send. `in_flight` counts over all connections; `rate` (calls a second) makes it an open loop.

    `count`: measure so many calls instead of a duration. `compare`: exact, predict, json or floats; None: the
    generator's default. `tick_us`: wake for arrivals at most so often, which is cheaper. `slice_ms`: figures of each
    such slice of the duration as well. `deadline_ms`: of each call, from when it should have started; told to the
    server, and kept here. `later_rate`: the rate from the second `later_s` of the measured window on. `cores`: those
    that the generator may use; none: its parent's. `extra`: further options of the generator, as they are.
    """

    port: int
    exchanges: Sequence[Exchange]
    host: str = "127.0.0.1"
    path: str = "/tensorflow.serving.PredictionService/Predict"
    rest: bool = False
    connections: int = 1
    in_flight: int = 1
    rate: float = 0.0
    warmup_s: float = 0.0
    duration_s: float = 5.0
    count: int = 0
    compare: str | None = None
    check_every: int = 1
    errors_allowed: bool = False
    tick_us: float = 0.0
    slice_ms: float = 0.0
    deadline_ms: float = 0.0
    later_s: float = 0.0
    later_rate: float = 0.0
    cores: Sequence[int] = ()
    extra: Sequence[str] = ()


@dataclass(frozen=True)
class Spread:
    """Of a latency or a delay, microseconds."""

    count: int = 0
    min: float = 0.0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p99_9: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class Slices:
    """One value for each slice of `ms` of the measured window, by the time when calls should have started.

    Latencies in microseconds, the quantiles within 3 %; 0 where no call was good.
    """

    ms: float = 0.0
    good: Sequence[int] = ()
    failed: Sequence[int] = ()
    p50: Sequence[float] = ()
    p99: Sequence[float] = ()
    max: Sequence[float] = ()


@dataclass(frozen=True)
class Figures:
    """The generator's result. Rate, CPU and bytes are of the measured window; failures of the whole run.

    held_back: calls that were due in the window while `in_flight` were running; they were sent later. Of the calls
    that should have started in the window: due: all; late: no answer before their deadline, unsent: of these, never
    sent for want of room; refused_us: when they were refused. met: compared
    answers of the whole run, by which expected answer they equal: the first, the first of the others and so on.
    window_from_s: when the window opened, as time.monotonic() tells it. latency_curve_us: [share of calls, us],
    with finer steps towards the last one, the slowest.
    """

    calls: int
    seconds: float
    calls_per_second: float
    latency_us: Spread
    start_delay_us: Spread
    cpu_us_per_call: float
    compared: int
    in_flight_reached: int
    failures: int
    held_back: int = 0
    due: int = 0
    late: int = 0
    unsent: int = 0
    refused_us: Spread = field(default_factory=Spread)
    refused_by_grpc_status: dict[str, int] = field(default_factory=dict)
    met: Sequence[int] = ()
    window_from_s: float = 0.0
    slices: Slices = field(default_factory=Slices)
    latency_curve_us: Sequence[tuple[float, float]] = ()
    failures_by_kind: dict[str, int] = field(default_factory=dict)
    failures_by_grpc_status: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def sources() -> list[Path]:
    return sorted(PERF.glob("loadgen*.c"))


@contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is made when it is missing, while the block runs. Raises LoadError where nothing
    can be written."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=parent)
    except OSError as error:
        raise LoadError(f"nothing can be built in {parent}: {error}") from None
    with folder as name:
        yield Path(name)


def compile_c(name: str, files: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compiles `files` to `perf/build/NAME-DIGEST`, unless that exists. Raises LoadError with the compiler's words."""
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in [*files, *sorted(PERF.glob("loadgen*.h"))]:
        digest.update(path.read_bytes())
    target = PERF / "build" / f"{name}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise LoadError("the load generator needs a C compiler: install gcc, or name one by the environment's CC")
    with fresh_folder(target.parent) as folder:
        fresh = folder / name
        command = [compiler, *FLAGS, *flags, *map(str, files), "-o", str(fresh), "-lnghttp2", "-lm"]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            hint = "\n(Debian: apt-get install libnghttp2-dev)" if "nghttp2" in outcome.stderr else ""
            raise LoadError(f"{' '.join(command)}\n{outcome.stderr}{hint}")
        fresh.rename(target)  # two builds at once end with one whole file
    return target


def build(sanitized: bool = False) -> Path:
    """The generator's path. `sanitized`: with the address and undefined-behaviour sanitizers, for tests."""
    if sanitized:
        return compile_c("loadgen-sanitized", sources(), SANITIZERS)
    return compile_c("loadgen", sources(), ("-O2",))


def arguments(load: Load, folder: Path) -> list[str]:
    """The command line for `load`; writes the messages into `folder`."""
    options = [
        f"--host={load.host}",
        f"--port={load.port}",
        f"--path={load.path}",
        f"--connections={load.connections}",
        f"--in_flight={load.in_flight}",
        f"--warmup_s={load.warmup_s}",
        f"--duration_s={load.duration_s}",
        f"--check_every={load.check_every}",
    ]
    options += ["--rest"] if load.rest else []
    options += [f"--rate={load.rate}"] if load.rate else []
    options += [f"--count={load.count}"] if load.count else []
    options += [f"--compare={load.compare}"] if load.compare else []
    options += [f"--tick_us={load.tick_us}"] if load.tick_us else []
    options += [f"--slice_ms={load.slice_ms}"] if load.slice_ms else []
    options += [f"--deadline_ms={load.deadline_ms}"] if load.deadline_ms else []
    options += [f"--later_s={load.later_s}", f"--later_rate={load.later_rate}"] if load.later_rate else []
    options += ["--allow_errors"] if load.errors_allowed else []
    options += load.extra
    for index, exchange in enumerate(load.exchanges):
        request = folder / f"{index}.request"
        request.write_bytes(exchange.request)
        options.append(f"--request={request}")
        answers = () if exchange.expected is None else (exchange.expected, *exchange.others)
        for turn, answer in enumerate(answers):
            expected = folder / f"{index}.{turn}.expected"
            expected.write_bytes(answer)
            options.append(f"--expect={expected}")
    return options


def figures_of(result: dict[str, Any]) -> Figures:
    plain = {name: result[name] for name in Figures.__dataclass_fields__ if name in result}
    spreads = {name: Spread(**result[name]) for name in ("latency_us", "start_delay_us", "refused_us")}
    slices = Slices(**result.get("slices", {}))
    return Figures(**{**plain, **spreads, "slices": slices, "raw": result})


def run(
    load: Load,
    *,
    at_start: Callable[[], None] = lambda: None,
    at_end: Callable[[], None] = lambda: None,
    sanitized: bool = False,
) -> Figures:
    """Runs one load to its end. `at_start` and `at_end` are called as the measured window opens and closes.

    Raises LoadError when nothing could be measured. Failed calls do not raise: they are in the figures.
    """
    program = build(sanitized)
    result: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder, tempfile.TemporaryFile("w+") as errors:
        command = [str(program), *arguments(load, Path(folder))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            if load.cores:
                os.sched_setaffinity(process.pid, load.cores)
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "measuring":
                    at_start()
                elif event["event"] == "measured":
                    at_end()
                else:
                    result = event
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        words = errors.read().strip()
    if result is None or process.returncode not in (0, 1, 2) or (process.returncode == 2 and not result["failures"]):
        raise LoadError(f"the load generator ended with status {process.returncode}: {words or 'no call was answered'}")
    return figures_of(result)
