"""Clients that mean harm, over real sockets; and a look at what they do to a frontend's memory."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, END_STREAM, PREFACE, ErrorCode, literal
from tests.e2e.server import Server, wait_until

PREDICT = "/tensorflow.serving.PredictionService/Predict"
MIB = 2**20


def block(path: str = PREDICT, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a call."""
    fields = (
        *((b":path", path.encode()), (b":authority", b"a"), (b"content-type", b"application/grpc")),
        *((b"te", b"trailers"), *more),
    )
    return b"\x83\x86" + b"".join(literal(name, value) for name, value in fields)


def headers(stream_id: int, header_block: bytes, flags: int = END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, header_block)


def data(stream_id: int, payload: bytes, flags: int = END_STREAM, frame_bytes: int = 16_384) -> bytes:
    """A payload in as many DATA frames as it takes."""
    pieces = [payload[at : at + frame_bytes] for at in range(0, len(payload), frame_bytes)] or [b""]
    written = [frames.frame(frames.DATA, 0, stream_id, piece) for piece in pieces[:-1]]
    return b"".join((*written, frames.frame(frames.DATA, flags, stream_id, pieces[-1])))


def message(payload: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(payload)) + payload


def arguments(models: Path, limits: dict[str, str]) -> list[str]:
    """A server's command line: the model that honest clients call, the one for attackers, and these settings."""
    config = models.parent / f"attacked-{os.getpid()}.config"
    entry = 'config {{ name: "{0}" base_path: "{1}" model_platform: "tensorflow" }} '
    named = "".join(entry.format(name, models / name) for name in ("half", "echo"))
    config.write_text(f"model_config_list {{ {named}}}")
    flags = [word for name, value in limits.items() for word in (f"--{name}", value)]
    return ["--model_config_file", str(config), "--workers", "1", *flags]


class Attacker:
    """One connection that sends what it likes. Use it as a context manager. settings: HTTP/2's, to begin with."""

    def __init__(self, target: str, settings: dict[int, int] | None = None, receive_bytes: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self.sock = socket.socket()
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.connect((host, int(port)))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        if settings is not None:
            self.send(PREFACE + frames.settings(settings) + frames.SETTINGS_ACK)

    def send(self, payload: bytes, timeout_s: float = 30.0) -> bool:
        """False: the server has closed the connection, or took nothing more in that time."""
        self.sock.settimeout(timeout_s)
        try:
            self.sock.sendall(payload)
        except OSError:
            return False
        return True

    def flood(self, payload: bytes, bytes_max: int = 64 * MIB, timeout_s: float = 10.0) -> bool:
        """Sends the same again and again while nothing comes back. True: the server took all of it."""
        return all(self.send(payload, timeout_s) for _ in range(max(1, bytes_max // len(payload))))

    def read(self, patience_s: float = 30.0) -> bytes:
        """Everything until the server closes the connection. AssertionError: it does not."""
        limit = time.monotonic() + patience_s
        while True:
            self.sock.settimeout(max(0.01, limit - time.monotonic()))
            try:
                piece = self.sock.recv(2**18)
            except TimeoutError:
                raise AssertionError(f"still open after {patience_s} s") from None
            except OSError:
                return self.received
            if not piece:
                return self.received
            self.received += piece

    def read_some(self, seconds: float = 0.2) -> bytes:
        """What comes until nothing has come for so long."""
        self.sock.settimeout(seconds)
        with suppress(OSError):
            while piece := self.sock.recv(2**18):
                self.received += piece
        return self.received

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What was received: kind, flags, stream, payload."""
        at = 0
        while at + 9 <= len(self.received):
            head, flags, stream_id = frames.FRAME_HEADER.unpack_from(self.received, at)
            yield head & 255, flags, stream_id, self.received[at + 9 : at + 9 + (head >> 8)]
            at += 9 + (head >> 8)

    def goaway(self) -> ErrorCode | None:
        """The error that the server ended the connection with; None: it did not say one, or its word was lost."""
        codes = [payload[4:8] for kind, _, _, payload in self.frames() if kind == frames.GOAWAY]
        return ErrorCode(int.from_bytes(codes[-1], "big")) if codes else None

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()


class Memory:
    """Private memory of a server's frontends, in bytes: its own, without what it shares through rings and forks."""

    def __init__(self, server: Server) -> None:
        self._members = server.members("frontend")
        self.before = self.now()
        self.peak = self.before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def now(self) -> int:
        return sum(_private_bytes(process) for process in self._members)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """How much it had grown when it was largest."""
        return self.peak - self.before


def _private_bytes(process: psutil.Process) -> int:
    with open(f"/proc/{process.pid}/status") as lines:
        # Not the private pages of smaps: those of a ring that no worker has looked at yet count there, too.
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def bounded(server: Server, growth_bytes_max: int) -> Iterator[Memory]:
    """While this lasts the frontend's private memory grows by no more, and afterwards most of it is given back.

    It is the same process before and after.
    """
    frontends = {process.pid for process in server.members("frontend")}
    with Memory(server) as memory:
        yield memory
    assert {process.pid for process in server.members("frontend")} == frontends, server.log
    assert memory.grown_bytes <= growth_bytes_max, f"{memory.grown_bytes / MIB:.0f} MiB more"
    kept = 64 * MIB  # the allocators keep some, once (frontend/http2/heap.py); it does not grow with further attacks
    wait_until(lambda: memory.now() <= memory.before + kept, f"memory to be given back; {memory.now() / MIB:.0f} MiB")
