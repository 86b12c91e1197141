"""`ringserve bench`: the tail latency of a running server under an open-loop load, honestly measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from ringserve.commands.api import Api, target_path
from ringserve.commands.console import Failed, Status, duration_text, json_option, print_json, table

if TYPE_CHECKING:
    from ringserve.commands.bench_load import Caller, Measured
    from ringserve.frontend.tensor_proto import Tensor

#: A sender this busy is late by itself.
_CPU_SHARE_MAX: Final = 0.85
#: So late it may begin one of a hundred requests, at most, for its figures to be the server's; or, where latency is
#: high, by this share of it.
_LATE_NS_MAX: Final = 5_000_000
_LATE_SHARE_MAX: Final = 0.25
_EPILOG = """\b
Its own limits: one process of Python sends some thousands of requests a second, and says so when it is the one that
is late (exit status 3). Use more hosts or perf/loadgen for more, and another machine than the server's for honest
figures. A percentile is of the requests that were answered well; those that failed are counted beside it."""


@click.command(epilog=_EPILOG)
@click.argument("url")
@click.option("--model", required=True, help="the model to ask")
@click.option("--rate", "rates", default="100", show_default=True, metavar="N[,N]...", help="requests a second")
@click.option("--duration", default=10.0, show_default=True, type=click.FloatRange(0.1), help="seconds for each rate")
@click.option("--warm_up", default=1.0, show_default=True, type=click.FloatRange(0), help="seconds that do not count")
@click.option("--body", help="what to send: a .json, .npy or .npz file, or JSON (default: made up by the signature)")
@click.option("--rows", default=1, show_default=True, type=click.IntRange(1), help="rows of a request that is made up")
@click.option("--version", type=click.IntRange(0), help="the version to ask")
@click.option("--label", help="the label of the version to ask")
@click.option("--signature", default="", metavar="NAME", help="the signature to call  [default: serving_default]")
@click.option("--steady", is_flag=True, help="requests at even distances (default: random, as of independent clients)")
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1), help="at most so many (gRPC: 8)")
@click.option("--timeout", default=10.0, show_default=True, type=click.FloatRange(0.001), help="seconds for a request")
@click.option("--seed", default=1, show_default=True, type=int, help="of the times and the made-up values")
@click.option("--p99_ms_max", type=click.FloatRange(0), help="exit with 3 when the 99th percentile is above this")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw into this file (needs matplotlib)")
@json_option
def bench(
    url: str, model: str, rates: str, duration: float, warm_up: float, body: str | None, rows: int,
    version: int | None, label: str | None, signature: str, steady: bool, connections: int, timeout: float, seed: int,
    p99_ms_max: float | None, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the latency of the server at URL: http://HOST:PORT for REST, grpc://HOST:PORT for gRPC.

    Any server that speaks TensorFlow Serving's API. Requests go out at their times, whatever the server does, and
    latency counts from the time a request was due: a stall shows in all requests that it held up.

    \b
    ringserve bench http://localhost:8501 --model digits --rate 200
    ringserve bench grpc://localhost:8500 --model digits --rate 100,200,400 --plot curve.png
    ringserve bench http://host:8501 --model m --body request.json --p99_ms_max 50 || echo too slow

    Exits with 1 when nothing was answered well; 3 when some requests failed, when the 99th percentile is above
    --p99_ms_max, or when this program itself was late.
    """
    import asyncio

    from ringserve.commands import bench_load

    if version is not None and label is not None:
        raise click.UsageError("--version and --label exclude each other")
    wanted = _rates(rates)
    if plot is not None:
        _matplotlib()
    make = _caller_maker(url, (model, version, label), signature, body, rows, connections, timeout, seed)
    results: list[Measured] = []

    async def measure() -> None:
        caller = make()
        try:
            wrong = await caller.call()
            if wrong and len(wanted) >= 1:
                wrong = await caller.call()  # the first may have paid for the connection
            if wrong:
                raise Failed(f"{url}: the first request failed: {wrong}", Status.FAILED)
            if warm_up:
                await bench_load.run_load(caller, wanted[0], warm_up, steady=steady, seed=seed + 1)
            for rate in wanted:
                with _Progress(rate, duration, as_json) as tick:
                    results.append(
                        await bench_load.run_load(caller, rate, duration, steady=steady, seed=seed, tick=tick)
                    )
        finally:
            await caller.close()

    asyncio.run(measure())
    remarks = [remark for measured in results for remark in _remarks(measured, p99_ms_max)]
    if as_json:
        print_json({"url": url, "model": model, "results": [as_dict(each) for each in results], "remarks": remarks})
    else:
        click.echo(report(results))
        for remark in remarks:
            click.echo(f"{click.style('warning:', fg='yellow')} {remark}")
    if plot is not None:
        _draw(results, plot)
    if not any(each.good for each in results):
        raise click.exceptions.Exit(Status.FAILED)
    if remarks:
        raise click.exceptions.Exit(Status.LIMIT)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise click.BadParameter(f"{text!r} is no list of numbers above 0", param_hint="--rate")
    return rates


# ------------------------------------------------------------------------------------------------------ what is sent

_Target = tuple[str, int | None, str | None]


def _caller_maker(
    url: str, target: _Target, signature: str, body: str | None, rows: int, connections: int, timeout: float, seed: int
) -> Callable[[], Caller]:
    """What makes the caller, inside of the event loop. Asks the server for the model's signature. Raises Failed."""
    from ringserve.commands import predict_inputs
    from ringserve.commands.bench_load import GrpcCaller, RestCaller

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "grpc") or not parts.hostname:
        raise Failed(f"{url} is neither http://HOST:PORT nor grpc://HOST:PORT", Status.USAGE)
    given = predict_inputs.read_given((body,)) if body is not None else None
    if parts.scheme == "grpc":
        from ringserve.commands.grpc_calls import GrpcClient, predict_request

        where = f"{parts.hostname}:{parts.port or 8500}"
        with GrpcClient(where, timeout) as client:
            found = predict_inputs.signature_of(client.signatures(*target), signature)
        tensors = predict_inputs.tensors_of(given, found, None) if given is not None else made_up(found, rows, seed)
        request = predict_request(*target, found.name, tensors).SerializeToString()
        return lambda: GrpcCaller(where, request, connections=min(connections, 8), timeout_s=timeout)
    api = Api(f"http://{parts.netloc}", timeout)
    if given is not None and given.body is not None:
        data = given.body
    else:
        from ringserve.commands.predict import rest_signatures

        found = predict_inputs.signature_of(rest_signatures(api, target), signature)
        tensors = predict_inputs.tensors_of(given, found, None) if given is not None else made_up(found, rows, seed)
        data = predict_inputs.columnar_body(tensors)
    data = predict_inputs.with_signature(data, signature)
    host, port, path = parts.hostname, parts.port or 8501, target_path(*target, ":predict")
    return lambda: RestCaller(host, port, path, data, connections_max=connections, timeout_s=timeout)


def made_up(signature: Any, rows: int, seed: int) -> dict[str, Tensor]:
    """Tensors for a signature: random floats from 0 to 1, zeros for integers, which may be indices, short texts."""
    import numpy as np

    from ringserve.commands.predict_inputs import tensor_of
    from ringserve.commands.sample_request import fed_shape
    from ringserve.shm.dtype import STRING

    dice = np.random.default_rng(seed)
    found = {}
    for alias, spec in signature.inputs.items():
        shape = fed_shape(spec, rows)
        values = np.full(shape, b"text", object) if spec.dtype == STRING else dice.random(shape)
        if spec.dtype != STRING:
            floats = tensor_of_floats(spec.dtype)
            values = values.astype(np.float32) if floats else np.zeros(shape, np.int8)
        found[alias] = tensor_of(values, spec)
    return found


def tensor_of_floats(dtype: int) -> bool:
    """Whether values of this DataType are made up as floats."""
    from ringserve.shm.dtype import BFLOAT16, DOUBLE, FLOAT, HALF

    return dtype in (FLOAT, DOUBLE, HALF, BFLOAT16)


# ---------------------------------------------------------------------------------------------------------- the report


class _Progress:
    """A bar on standard error while a rate is measured, on a terminal."""

    def __init__(self, rate: float, duration_s: float, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._rate, self._expected = rate, max(1, int(rate * duration_s))

    def __enter__(self) -> Callable[[Measured], None]:
        return self._tick if self._shown else lambda _: None

    def __exit__(self, *error: object) -> None:
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)

    def _tick(self, measured: Measured) -> None:
        done = min(1.0, measured.sent / self._expected)
        bar = "#" * int(30 * done)
        p99, failed = duration_text(measured.recent_p99_ns() / 1e9), measured.failures.total()
        click.echo(f"\r\033[K{self._rate:g}/s [{bar:<30}] p99 {p99}, {failed} failed", nl=False, err=True)


def report(results: list[Measured]) -> str:
    """The table: a line for each rate."""
    from ringserve.commands.bench_load import PERCENTILES

    heads = ["RATE", "ANSWERED", "FAILED", *(f"p{each:g}" if each < 100 else "max" for each in PERCENTILES)]
    rows = []
    for measured in results:
        latencies = [duration_text(value / 1e9) for value in measured.quantiles_ns().values()]
        rows.append([f"{measured.rate:g}/s", measured.good, measured.failures.total(), *latencies])
    return table(heads, rows, right=range(len(heads)))


def as_dict(measured: Measured) -> dict[str, Any]:
    """One rate's figures, in milliseconds."""
    from ringserve.commands.bench_load import percentile

    quantiles = measured.quantiles_ns()
    return {
        "rate": measured.rate,
        "sent": measured.sent,
        "answered": measured.good,
        "failures": dict(measured.failures),
        "elapsed_s": round(measured.elapsed_s, 3),
        "latency_ms": {
            "max" if each == 100 else f"p{each:g}": None if value != value else round(value / 1e6, 4)
            for each, value in quantiles.items()
        },
        "late_p99_ms": round(percentile(sorted(measured.late_ns), 99.0) / 1e6, 4) if measured.late_ns else None,
        "cpu_share": round(measured.cpu_share, 3),
    }


def _remarks(measured: Measured, p99_ms_max: float | None) -> list[str]:
    """What makes the figures bad, or not to be trusted."""
    from ringserve.commands.bench_load import percentile

    found = []
    at = f"at {measured.rate:g}/s"
    if measured.failures:
        kinds = ", ".join(f"{count} × {what}" for what, count in measured.failures.most_common(5))
        found.append(f"{at} {measured.failures.total()} of {measured.sent} requests failed: {kinds}")
    p99_ms = measured.quantiles_ns()[99.0] / 1e6
    if p99_ms_max is not None and not p99_ms <= p99_ms_max:
        found.append(f"{at} the 99th percentile is {p99_ms:.3g} ms, above {p99_ms_max:g} ms")
    late_ns = percentile(sorted(measured.late_ns), 99.0)
    if late_ns > max(_LATE_NS_MAX, _LATE_SHARE_MAX * p99_ms * 1e6) or measured.cpu_share > _CPU_SHARE_MAX:
        own = measured.cpu_share > _CPU_SHARE_MAX / 2
        busy = "ask for less, or use perf/loadgen" if own else "this machine has other things to do"
        found.append(
            f"{at} this program was late itself (99 of 100 requests within {duration_text(late_ns / 1e9)}, "
            f"{measured.cpu_share:.0%} of a CPU): part of the latency is its own; {busy}"
        )
    return found


# ---------------------------------------------------------------------------------------------------------------- plot


def _matplotlib() -> Any:
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Failed("to draw, install matplotlib: pip install matplotlib; or use --json", Status.USAGE) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(results: list[Measured], path: Path) -> None:
    """Latency over percentile, the rarest to the right, a line for each rate."""
    pyplot = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for measured in results:
        ordered = sorted(measured.latencies_ns)
        count = len(ordered)
        step = max(1, count // 5000)
        points = [*range(0, count - count // 100, step), *range(count - count // 100, count)]
        axes.plot(
            [1 / (1 - i / count) for i in points], [ordered[i] / 1e6 for i in points], label=f"{measured.rate:g}/s"
        )
    axes.set_xscale("log")
    ticks = [(1, "0"), (2, "50"), (10, "90"), (100, "99"), (1000, "99.9"), (10_000, "99.99")]
    axes.set_xticks([at for at, _ in ticks], [f"{text} %" for _, text in ticks])
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency from when the request was due, ms")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.3)
    axes.legend(title="offered")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
