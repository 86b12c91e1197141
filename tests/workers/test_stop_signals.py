"""Signals and TensorFlow: none has a handler in a worker, as oneDNN keeps no stack that the kernel could write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers.pool_end import PoolEnd, order_of

_ROOT = Path(__file__).parents[2]
_STOPS = (signal.SIGTERM, signal.SIGINT)

#: Products of float32 matrices for some seconds, on the calling thread and on TensorFlow's, in a hail of SIGTERM.
_HAIL = """
from ringserve.workers.stop_signals import StopSignals
stop = StopSignals()
import os, select, signal, threading, time
import numpy as np  # which starts threads
from ringserve.workers import device
device.prepare(2)
import tensorflow as tf
from ringserve.workers import session
graph = tf.Graph()
with graph.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [300, 300], "x")
    y = x
    for _ in range(100):
        y = tf.linalg.matmul(y, x) * 0.0033
    tf.identity(y, "y")
live = session.open_session(graph, session.ORDINARY, 2)
feed = {"x:0": np.ones((300, 300), np.float32)}
right = session.run_all_here(live, "y:0", feed)
assert not stop.wanted()
over = threading.Event()
def hail():
    while not over.wait(0.001):
        os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=hail).start()
end = time.monotonic() + 4
while time.monotonic() < end:
    assert np.array_equal(session.run_all_here(live, "y:0", feed), right)
over.set()
assert stop.wanted()
assert select.select([stop.fd], [], [], 0)[0]
"""


def test_matrix_products_survive_signals() -> None:
    done = subprocess.run([sys.executable, "-c", _HAIL], cwd=_ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def pool() -> Iterator[PoolEnd]:
    with PoolEnd() as pool:
        yield pool


def _masks(status: Path) -> dict[str, int]:
    lines = (line.split(":") for line in status.read_text().splitlines())
    return {name: int(value, 16) for name, value in lines if name in ("SigBlk", "SigCgt")}


def test_no_thread_of_a_worker_is_interrupted_for_a_handler(pool: PoolEnd, model_path: Callable[[str], Path]) -> None:
    pid, _ = pool.fork(order_of("mlp", model_path("mlp"), 0))
    threads = [_masks(path) for path in Path(f"/proc/{pid}/task").glob("*/status")]
    assert len(threads) > 1
    for masks in threads:
        standard = masks["SigCgt"] & (1 << 31) - 1  # those of the C library's own are beyond
        assert not standard & ~masks["SigBlk"]
        assert all(masks["SigBlk"] & 1 << (number - 1) for number in _STOPS)


@pytest.mark.parametrize("number", _STOPS)
def test_a_worker_leaves_in_order_when_it_is_asked_to(pool: PoolEnd, number: signal.Signals) -> None:
    pid, _ = pool.fork()
    os.kill(pid, number)
    assert pool.ended(pid).status == 0
