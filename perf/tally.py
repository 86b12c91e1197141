"""What does counting one request cost a frontend? CPU time per request of the tally, flushes included.

    python -m perf.tally             # 1, 16 and 100 models
    python -m perf.tally --runs 9    # steadier medians

A request is one call of `Tally.request` and one of `Tally.run`, as for a Predict; each must stay below 0.5 us. Flushing
is timed apart, per model: it happens at most 20 times a second, whatever the load. Then a scrape with all of these
models, as the loop's time: its pieces, the longest of which is what a request may have to wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable

from perf.program import at_least_one
from ringserve.broker.messages import Code, LaneSpec
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.exposition import Exposition
from ringserve.frontend.lanes import Lane
from ringserve.frontend.metric_sums import MetricSums
from ringserve.frontend.tally import GRPC, Tally

_CALLS = 100_000


def lanes_of(models: int) -> list[Lane]:
    return [Lane(LaneSpec(f"model-{number}", 1, "serving_default", (), ("y",), True)) for number in range(models)]


def counting(tally: Tally, lanes: list[Lane]) -> Callable[[], float]:
    """Returns a run: CPU us per call of `request` and `run` together, the loop around them taken off."""
    names = [lane.spec.model for lane in lanes]
    pairs = [(lanes[call % len(lanes)], names[call % len(lanes)]) for call in range(_CALLS)]
    request, run = tally.request, tally.run

    def once() -> float:
        started_ns = time.monotonic_ns() - 1_000_000
        empty = time.process_time()
        for _lane, _name in pairs:
            pass
        start = time.process_time()
        for lane, name in pairs:
            request(GRPC, "Predict", name, 0, started_ns, lane)
            run("Predict", name, started_ns)
        end = time.process_time()
        tally.flush()
        return ((end - start) - (start - empty)) / _CALLS * 1e6

    return once


def flushing(tally: Tally, lanes: list[Lane]) -> Callable[[], float]:
    """Returns a run: CPU us per model of one flush, ten buckets of each touched."""

    def once() -> float:
        now_ns = time.monotonic_ns()
        for lane in lanes:
            for step in range(10):
                tally.request(GRPC, "Predict", lane.spec.model, Code.OK, now_ns - 2**step * 100_000, lane)
                tally.run("Predict", lane.spec.model, now_ns - 2**step * 90_000)
        start = time.process_time()
        tally.flush()
        return (time.process_time() - start) / len(lanes) * 1e6

    return once


async def scrape(exposition: Exposition) -> tuple[float, float, float, int]:
    """Wall ms of a scrape, its longest piece in ms, the wall ms of TF Serving's page, and bytes of the first."""
    longest = 0.0
    over = False

    async def watch() -> None:
        nonlocal longest
        while not over:
            start = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - start)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    start = time.perf_counter()
    page, _ = await exposition.render()
    whole = time.perf_counter() - start
    over = True
    await watching
    start = time.perf_counter()
    await exposition.render_tfs()
    return whole * 1e3, longest * 1e3, (time.perf_counter() - start) * 1e3, len(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=at_least_one, default=5)
    runs = parser.parse_args().runs
    gc.disable()
    for models in (1, 16, 100):
        with tempfile.TemporaryDirectory() as folder:
            file, sums = MetricFile(folder, "frontend-0"), MetricSums(folder)
            tally = Tally(file)
            lanes = lanes_of(models)
            for name, run in (("request + run", counting(tally, lanes)), ("flush, per model", flushing(tally, lanes))):
                run()  # warm
                figures = [run() for _ in range(runs)]
                print(f"{models:4} models  {name:18} {statistics.median(figures):8.3f} us  ({min(figures):.3f} best)")
            exposition = Exposition(sums, tally)
            asyncio.run(scrape(exposition))  # the first one parses the keys
            figures_of = [asyncio.run(scrape(exposition)) for _ in range(runs)]
            whole, longest, tfs, size = (statistics.median(figures) for figures in zip(*figures_of, strict=True))
            print(
                f"{models:4} models  scrape {whole:8.2f} ms, longest piece {longest:.2f} ms, TF Serving's page "
                f"{tfs:.2f} ms, {size / 1024:.0f} KiB"
            )
            file.close()


if __name__ == "__main__":
    main()
