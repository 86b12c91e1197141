"""python -m perf.ring [--seconds 0.2] [--runs 7]

What the shared-memory ring costs, in one process: claim and release, copies into the ring beside the same copies into
a plain bytearray, strings written and read, views. One line per figure: the median of the runs, and the least.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from perf.program import at_least_one
from ringserve.shm.dtype import FLOAT
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment
from ringserve.shm.tensor import read_strings, string_record_bytes, view, write_strings

CAPACITY_BYTES = 256 << 20
ROW_BYTES = 784 * 4  # one row of the MLP of DESIGN.md
IMAGE_BYTES = 224 * 224 * 3 * 4

#: Does the work that many times.
Work = Callable[[int], None]


def claim_release_at_once() -> Work:
    ring = RingWriter(CAPACITY_BYTES)
    claim, release = ring.claim, ring.release

    def work(times: int) -> None:
        for _ in range(times):
            release(claim(ROW_BYTES))

    return work


def claim_release_in_order(live: int) -> Work:
    ring = RingWriter(CAPACITY_BYTES)
    claim, release = ring.claim, ring.release
    window = deque(claim(ROW_BYTES) for _ in range(live))
    push, pop = window.append, window.popleft

    def work(times: int) -> None:
        for _ in range(times):
            release(pop())
            push(claim(ROW_BYTES))

    return work


def claim_release_out_of_order(live: int, sizes: tuple[int, ...]) -> Work:
    ring = RingWriter(CAPACITY_BYTES)
    claim, release = ring.claim, ring.release
    chance = random.Random(1)
    window = [claim(chance.choice(sizes)) for _ in range(live)]
    order = [(chance.randrange(live), chance.choice(sizes)) for _ in range(10_007)]

    def work(times: int) -> None:
        while times > 0:
            for index, nbytes in order[:times]:
                release(window[index])
                window[index] = claim(nbytes)
            times -= len(order)

    return work


def full_answer() -> Work:
    ring = RingWriter(64 * 4096)
    claim = ring.claim
    while claim(4096) >= 0:
        pass

    def work(times: int) -> None:
        for _ in range(times):
            claim(4096)

    return work


def copy_to_ring(segment: Segment, nbytes: int, live: int) -> Work:
    ring = RingWriter(segment.data_bytes)
    payload = bytes(nbytes)
    data = segment.data
    window = deque(ring.claim(nbytes) for _ in range(live))

    def work(times: int) -> None:
        for _ in range(times):
            ring.release(window.popleft())
            offset = ring.claim(nbytes)
            window.append(offset)
            data[offset : offset + nbytes] = payload

    return work


def copy_to_bytearray(nbytes: int, live: int) -> Work:
    payload = bytes(nbytes)
    data = memoryview(bytearray(nbytes * (live + 1)))
    stops = len(data) - nbytes

    def work(times: int) -> None:
        offset = 0
        for _ in range(times):
            data[offset : offset + nbytes] = payload
            offset = offset + nbytes if offset < stops else 0

    return work


def strings_write(segment: Segment, count: int) -> Work:
    values = [b"x" * 24] * count

    def work(times: int) -> None:
        for _ in range(times):
            string_record_bytes(values)
            write_strings(segment.data, 0, values)

    return work


def strings_read(segment: Segment, count: int) -> Work:
    write_strings(segment.data, 0, [b"x" * 24] * count)

    def work(times: int) -> None:
        for _ in range(times):
            read_strings(segment.data, 0, 0, count)

    return work


def strings_joined(count: int) -> Work:
    """The baseline: the same bytes put one after the other, without a record around them."""
    values = [b"x" * 24] * count
    data = memoryview(bytearray(24 * count))

    def work(times: int) -> None:
        for _ in range(times):
            data[:] = b"".join(values)

    return work


def views(segment: Segment) -> Work:
    def work(times: int) -> None:
        for _ in range(times):
            view(segment.data, 64, FLOAT, (1, 784))

    return work


def give_back(segment: Segment, nbytes: int) -> Work:
    """Pages given back and written again: what a burst costs more when its memory was returned before."""
    filler = np.frombuffer(segment.data, np.uint8)[:nbytes]

    def work(times: int) -> None:
        for _ in range(times):
            filler[::4096] = 1
            segment.free_pages(0, nbytes)

    return work


def measured(segment: Segment) -> Iterator[tuple[str, Work]]:
    yield "claim + release, nothing else live", claim_release_at_once()
    yield "claim + release in order, 128 live", claim_release_in_order(128)
    yield "claim + release in order, 10,000 live", claim_release_in_order(10_000)
    yield "claim + release out of order, 128 live", claim_release_out_of_order(128, (ROW_BYTES,))
    yield "claim + release out of order, 1,000 live, 0.1-60 KB", claim_release_out_of_order(1000, (100, 3136, 60_000))
    yield "claim answered FULL", full_answer()
    yield "copy 3.1 KB into the ring, claim and release included", copy_to_ring(segment, ROW_BYTES, 128)
    yield "copy 3.1 KB into a bytearray", copy_to_bytearray(ROW_BYTES, 128)
    yield "copy 602 KB into the ring, 4 live", copy_to_ring(segment, IMAGE_BYTES, 4)
    yield "copy 602 KB into a bytearray, 4 places", copy_to_bytearray(IMAGE_BYTES, 4)
    yield "copy 602 KB into the ring, 64 live", copy_to_ring(segment, IMAGE_BYTES, 64)
    yield "copy 602 KB into a bytearray, 64 places", copy_to_bytearray(IMAGE_BYTES, 64)
    for count in (1, 100, 10_000):
        yield f"write a record of {count:,} strings of 24 bytes", strings_write(segment, count)
        yield f"read a record of {count:,} strings of 24 bytes", strings_read(segment, count)
        yield f"join {count:,} strings of 24 bytes into a bytearray", strings_joined(count)
    yield "view of a record as an array", views(segment)
    yield "give 4 MiB back to the system and touch it again", give_back(segment, 4 << 20)


def time_ns(work: Work, seconds: float, runs: int) -> list[float]:
    """Nanoseconds of one piece of work, run by run. The first tries find how many make a run, and warm up."""
    times = 1
    while True:
        start_ns = time.perf_counter_ns()
        work(times)
        spent_ns = time.perf_counter_ns() - start_ns
        if spent_ns > seconds * 2e8:
            break
        times *= 4
    times = max(1, round(times * seconds * 1e9 / spent_ns))
    found = []
    for _ in range(runs):
        start_ns = time.perf_counter_ns()
        work(times)
        found.append((time.perf_counter_ns() - start_ns) / times)
    return found


def text(duration_ns: float) -> str:
    return f"{duration_ns:8.0f} ns" if duration_ns < 10_000 else f"{duration_ns / 1000:8.1f} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the shared-memory ring costs.")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a run")
    parser.add_argument("--runs", type=at_least_one, default=7, help="runs per figure")
    arguments = parser.parse_args()
    segment = Segment.create("perf-ring", CAPACITY_BYTES)
    print(f"{'':62}{'median':>11}{'least':>14}")
    for name, work in measured(segment):
        found = time_ns(work, arguments.seconds, arguments.runs)
        print(f"{name:62}{text(statistics.median(found))}   {text(min(found))}", flush=True)


if __name__ == "__main__":
    main()
