"""Workers are forked from a process that imported TensorFlow and ran nothing of it: shown in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, sys, threading
from ringserve.workers import device
device.prepare(threads=1)
import ringserve.workers.opening, ringserve.workers.profile, ringserve.workers.serve
ringserve.workers.opening.tflite.available()
threads = len(os.listdir("/proc/self/task"))
children = []
for number in range(2):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            device.pin([sorted(os.sched_getaffinity(0))[number % len(os.sched_getaffinity(0))]])
            import numpy as np
            from ringserve.workers.servable import Servable
            from tests.workers.desk import Desk, lane
            servable = Servable.load(sys.argv[1], "mlp", 1)
            x = np.ones((2, 784), np.float32)
            desk = Desk(servable)
            parts = [desk.part({"x": x}) for _ in range(3)]
            answers, done = desk.run(lane(servable, {"x": x}, ["probabilities"]), parts)
            os.write(into, answers[1][0].tobytes())
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    children.append((pid, out))
answers = []
for pid, out in children:
    answers.append(os.read(out, 1000))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(answers[0]) == 80 and answers[0] == answers[1], answers
print("threads before forking:", threads)
"""


def test_children_of_an_importing_process_load_and_run(model_path: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_path("mlp"))], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # Only the calling thread lives on in a child; were there others, they could hold locks for ever.
    assert done.stdout.strip() == "threads before forking: 1"
