"""Question: how much later are honest gRPC calls answered while one client attacks the native engine?

    python -m perf.attacks [--seconds 3]

The echo server of `perf.http2` in a process of its own; one client that calls without pause, one call at a time, and
one attacker beside it, which connects again each time it is cut off. On a machine with few cores the attacker's own
work is part of what is measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from perf.http2 import METHOD
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import ErrorCode
from tests.e2e.attackers import Attacker, block, data, headers, message

IDS = range(1, 20_001, 2)


def _calls(end: Callable[[int], bytes]) -> bytes:
    return b"".join(headers(i, block(METHOD)) + data(i, message(b"x" * 100)) + end(i) for i in IDS)


def _bombs() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    bomb = message(b"".join([*(packer.compress(bytes(2**20)) for _ in range(90)), packer.flush()]), 1)
    start = block(METHOD, (b"grpc-encoding", b"gzip"))
    return b"".join(headers(i, start) + data(i, bomb) for i in IDS[:20])


ATTACKS: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "rapid reset": lambda: _calls(lambda i: frames.rst_stream(i, ErrorCode.CANCEL)),
    "PING": lambda: frames.ping(bytes(8), False) * 100_000,
    "SETTINGS": lambda: frames.settings({4: 1}) * 100_000,
    "WINDOW_UPDATE": lambda: frames.window_update(0, 1) * 100_000,
    "CONTINUATION": lambda: headers(1, b"\x83", 0) + frames.frame(frames.CONTINUATION, 0, 1, bytes(10_000)) * 100,
    "many headers": lambda: b"".join(headers(i, block(METHOD) + b"\x00\x01x\x00" * 500) for i in IDS[:2_000]),
    "gzip bombs of 90 MiB": _bombs,
}


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def attack(target: str, payload: bytes, stop: threading.Event) -> None:
    while payload and not stop.is_set():
        with Attacker(target, {}) as attacker:
            if attacker.send(payload, 1.0):
                attacker.read_some(0.05)


def honest(target: str, seconds: float) -> list[float]:
    """Latencies in ms of calls one after the other. Every one of them must be answered."""
    latencies = []
    with Attacker(target, {}) as client:
        client.send(frames.window_update(0, 2**31 - 1 - frames.WINDOW_BYTES_DEFAULT))
        client.read_some(0.1)
        stop = time.perf_counter() + seconds
        stream_id = 1
        while time.perf_counter() < stop:
            client.received = b""
            began = time.perf_counter()
            client.send(headers(stream_id, block(METHOD)) + data(stream_id, message(b"x" * 100)))
            while b"grpc-status" not in client.received:
                piece = client.sock.recv(2**16)
                assert piece, "an honest client was cut off"
                client.received += piece
            latencies.append((time.perf_counter() - began) * 1e3)
            stream_id += 2
    return latencies


def measure(name: str, seconds: float) -> None:
    command = [sys.executable, "-m", "perf.http2", "--serve", "native"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        honest(target, 0.5)
        before, stop = resident_bytes(server.pid), threading.Event()
        attacker = threading.Thread(target=attack, args=(target, ATTACKS[name](), stop))
        attacker.start()
        latencies = sorted(honest(target, seconds))
        stop.set()
        attacker.join()
        grown = (resident_bytes(server.pid) - before) / 2**20
        p99 = latencies[int(len(latencies) * 0.99)]
        print(
            f"{name:22} {len(latencies) / seconds:>7,.0f} calls/s  p50 {statistics.median(latencies):6.2f} ms  "
            f"p99 {p99:7.2f} ms  max {latencies[-1]:7.2f} ms  server {grown:+6.1f} MiB",
            flush=True,
        )
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    for name in ATTACKS:
        measure(name, seconds)


if __name__ == "__main__":
    main()
