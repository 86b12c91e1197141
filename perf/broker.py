"""What does one request cost in the broker? CPU time per request, inside the pure core and in the codec.

    python -m perf.broker             # the canonical workload: batches of 1, 8, 32, 128; 1 and 16 lanes
    python -m perf.broker --runs 9    # steadier medians

One cycle is what the broker sees of one batch's life: a Submit of n requests, the turn that leases them, the Done, the
turn after it. No sockets, no clock inside. Each figure is the median of the runs, in µs per request; the budget of the
whole broker is 6 µs at 128 (DESIGN.md), of which the core may take 1.5. *Counted* is with the broker's metrics, as in a
server; they may take 0.3 µs a request.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable

from perf.program import at_least_one
from ringserve.broker import wire
from ringserve.broker.core import Core
from ringserve.broker.messages import Done, InputSpec, LaneSpec, Submit
from ringserve.broker.metrics import BrokerMetrics
from ringserve.broker.observer import Observer
from ringserve.broker.policy import LanePolicy
from ringserve.config.metric_file import MetricFile

_FRONTEND_ID = 1
_WORKER_ID = 2
_REQUESTS_PER_RUN = 40_000


def lane_spec(number: int) -> LaneSpec:
    return LaneSpec("mlp", 1, f"serving_{number}", (InputSpec("x", 1, (784,)),), ("y",), True)


def make_core(batch: int) -> Core:
    core = Core(wire.unpack_lane, default_policy=LanePolicy(batch_rows_max=max(batch, 1)))
    core.frontend_joined(_FRONTEND_ID)
    core.worker_joined(_WORKER_ID, 0, {("mlp", 1)})
    return core


def core_cycles(
    batch: int, lanes_count: int, deadline_ns: int, observer: Observer | None = None
) -> Callable[[int], float]:
    """Returns a run: it makes `cycles` cycles and returns the CPU seconds spent inside the core."""
    core = make_core(batch)
    core.observer = observer
    keys = [wire.pack_lane(lane_spec(number)) for number in range(lanes_count)]
    now_ns = 1_000_000_000

    def run(cycles: int) -> float:
        nonlocal now_ns
        spent = 0.0
        for cycle in range(cycles):
            key = keys[cycle % lanes_count]
            due_ns = now_ns + deadline_ns if deadline_ns else 0
            groups = [[key, [[cycle * batch + i, 1, due_ns, 4096 * i] for i in range(batch)]]]
            start = time.process_time()
            core.submit(_FRONTEND_ID, groups, now_ns)
            turn = core.turn(now_ns)
            now_ns += 100_000
            for worker_id, execute in turn.executes:
                core.done(Done(worker_id, execute.batch_id, 90_000, batch, 0, 0, 0), now_ns)
            core.turn(now_ns)
            spent += time.process_time() - start
            assert sum(len(execute.parts) for _, execute in turn.executes) == batch
        return spent

    return run


def codec_cycles(batch: int) -> Callable[[int], float]:
    """The same cycle's messages: unpack Submit, pack Execute, unpack Done."""
    key = wire.pack_lane(lane_spec(0))
    submit = wire.pack(Submit(_FRONTEND_ID, [[key, [[1_000_000 + i, 1, 10**15 + i, 4096 * i] for i in range(batch)]]]))
    done = wire.pack(Done(_WORKER_ID, 77, 90_000, batch, 0, 0, 0))
    core = make_core(batch)
    core.submit(_FRONTEND_ID, [[key, [[i, 1, 0, 4096 * i] for i in range(batch)]]], 1_000_000_000)
    (execute,) = (execute for _, execute in core.turn(1_000_000_000).executes)

    def run(cycles: int) -> float:
        start = time.process_time()
        for _ in range(cycles):
            wire.unpack(submit)
            wire.pack(execute)
            wire.unpack(done)
        return time.process_time() - start

    return run


def report(name: str, batch: int, run: Callable[[int], float], runs: int) -> None:
    cycles = max(1, _REQUESTS_PER_RUN // batch // (10 if batch == 1 else 1))
    run(cycles // 4 + 1)  # warm
    figures = [run(cycles) / (cycles * batch) * 1e6 for _ in range(runs)]
    print(f"{name:34} batch {batch:4}  {statistics.median(figures):7.3f} us/request  ({min(figures):.3f} best)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=at_least_one, default=5)
    runs = parser.parse_args().runs
    gc.disable()  # as every ringserve process does once it is ready
    folder = tempfile.TemporaryDirectory()
    counts = BrokerMetrics(MetricFile(folder.name, "broker"))
    for batch in (1, 8, 32, 128):
        report("core, 1 lane", batch, core_cycles(batch, 1, 0), runs)
        report("core, 1 lane, counted", batch, core_cycles(batch, 1, 0, counts), runs)
        report("core, 1 lane, deadlines", batch, core_cycles(batch, 1, 1_000_000_000), runs)
        report("core, 16 lanes in turn", batch, core_cycles(batch, 16, 0), runs)
        report("codec", batch, codec_cycles(batch), runs)


if __name__ == "__main__":
    main()
