"""A later generation's worker loads with low priority and serves with the usual one: shown thread by thread."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys, time
from ringserve.workers import device
device.prepare(threads=2)
import numpy as np
from ringserve.broker.messages import Fork, LoadOrder, Loading
from ringserve.config.schema import Settings
from ringserve.workers import session
from ringserve.workers.loading import AllLoaded, LoadEnded
from ringserve.workers.opening import Opener
from ringserve.workers.serve import make_loader
from tests.workers.desk import Desk, lane

def niceness():
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/stat") as file:
            found[int(thread)] = int(file.read().rsplit(")", 1)[1].split()[16])
    return found

generation = int(sys.argv[2])
session.start_threads(2)
settings = Settings()
seen = set()

def open_model(order):
    opened = Opener(("serve",), 2, settings.batching, settings.lifecycle, time.monotonic_ns)(order)
    seen.update(niceness().items())
    return opened

loader = make_loader(Fork(0, generation, [], 2, [LoadOrder("conv", 1, sys.argv[1], False, [])]), open_model)
loader.start()
model = None
over = False
while not over:
    for event in loader.events.take():
        if isinstance(event, Loading):
            loader.go_on()
        elif isinstance(event, LoadEnded):
            model = event.model
            x = np.ones((2, 96, 96, 3), np.float32)
            desk = Desk(model)
            desk.run(lane(model, {"image": x}, ["logits"]), [desk.part({"image": x})])
        over = over or isinstance(event, AllLoaded)
loader._thread.join()
limit_ns = time.monotonic_ns() + 30_000_000_000
while 10 in niceness().values() and time.monotonic_ns() < limit_ns:
    time.sleep(0.01)  # the kernel lists a thread for a moment after its end; one that serves would stay
print(json.dumps({"loading": sorted(set(n for _, n in seen)), "after": sorted(set(niceness().values()))}))
"""


@pytest.mark.parametrize(("generation", "loading"), [(0, [0]), (1, [0, 10])])
def test_only_what_loads_is_nice(model_path: Callable[[str], Path], generation: int, loading: list[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_path("conv")), str(generation)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    # While it loads both kinds are there; what is left to serve is as usual.
    assert found == {"loading": loading, "after": [0]}
