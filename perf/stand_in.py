"""A stand-in gRPC server that answers at once and can misbehave on purpose: what the load generator is tested with.

It reads HTTP/2 frames without looking into header blocks, and answers every call with its own request (`--echo`) or
with one fixed message. It costs 2 to 3 µs a call, so that it shows what the generator costs. `--fault NAME --every N`
spoils every N-th answer in one way (`FAULTS`); `--quirk NAME` makes all answers legal but awkward to read (`QUIRKS`).

    python -m perf.stand_in --echo                 prints its port, serves until it is ended
"""

from __future__ import annotations

import argparse
import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import uvloop

FAULTS = (
    "grpc_status",
    "no_status",
    "http_status",
    "reset",
    "goaway",
    "close",
    "value",
    "length",
    "empty",
    "silent",
    "garbage",
)
QUIRKS = ("none", "padded", "continuation", "trickle", "window", "table", "split", "few_streams", "inserts")

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_head = struct.Struct(">IBI")

# Literals that no table keeps, so that every answer has the same bytes.
STATUS_200 = b"\x88"
CONTENT_TYPE = b"\x0f\x10\x10application/grpc"
GRPC_OK = b"\x00\x0bgrpc-status\x010"
GRPC_FULL = b"\x00\x0bgrpc-status\x018\x00\x0cgrpc-message\x09lane full"
STATUS_500 = b"\x8e"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _head.pack(len(payload) << 8 | kind, flags, stream) + payload


@dataclass(frozen=True)
class Behaviour:
    echo: bool = False
    answer: bytes = b"\x0a\x00"
    fault: str = ""
    every: int = 1
    quirk: str = "none"


class StandIn(asyncio.Protocol):
    """One connection. Answers of one read go out in one write."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.pending = b""
        self.preface_missing = True
        self.bodies: dict[int, list[bytes]] = {}
        self.calls_count = 0
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        settings = b""
        if self.behaviour.quirk == "table":
            settings += struct.pack(">HI", 1, 0)
        if self.behaviour.quirk == "few_streams":
            settings += struct.pack(">HI", 3, 2)
        if self.behaviour.quirk == "window":
            settings += struct.pack(">HI", 4, 1000)
            transport.write(frame(SETTINGS, 0, 0, settings))
        else:
            settings += struct.pack(">HI", 4, 2**31 - 1)
            update = struct.pack(">I", 2**31 - 1 - 65535)
            transport.write(frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, update))

    def data_received(self, data: bytes) -> None:
        if self.pending:
            data = self.pending + data
        position = 0
        if self.preface_missing:
            if len(data) < len(PREFACE):
                self.pending = data
                return
            assert data.startswith(PREFACE)
            self.preface_missing = False
            position = len(PREFACE)
        end = len(data)
        while end - position >= 9:
            length_kind, flags, stream = _head.unpack_from(data, position)
            after = position + 9 + (length_kind >> 8)
            if after > end:
                break
            self.on_frame(length_kind & 255, flags, stream, data[position + 9 : after])
            position = after
        self.pending = data[position:]
        self.write()

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            if self.behaviour.quirk == "window":
                update = struct.pack(">I", len(payload))
                self.out.append(frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, stream, update))
            if flags & END_STREAM and stream not in self.bodies:
                self.on_call(stream, payload)
                return
            self.bodies.setdefault(stream, []).append(payload)
            if flags & END_STREAM:
                self.on_call(stream, b"".join(self.bodies.pop(stream)))
        elif kind == SETTINGS and not flags & 1:
            self.out.append(frame(SETTINGS, 1, 0) + frame(PING, 0, 0, b"stand-in"))

    def on_call(self, stream: int, message: bytes) -> None:
        self.calls_count += 1
        behaviour = self.behaviour
        if not behaviour.echo:
            message = b"\0" + len(behaviour.answer).to_bytes(4, "big") + behaviour.answer
        if behaviour.fault and self.calls_count % behaviour.every == 0:
            self.out.append(SPOILED[behaviour.fault](self, stream, message))
        else:
            self.out.append(ANSWERS.get(behaviour.quirk, plain)(stream, message))

    def write(self) -> None:
        if not self.out:
            return
        data = b"".join(self.out)
        self.out.clear()
        if self.behaviour.quirk == "trickle":
            for index in range(len(data)):
                self.transport.write(data[index : index + 1])
        else:
            self.transport.write(data)


# ------------------------------------------------------------------------------------------------------- good answers


def plain(stream: int, message: bytes) -> bytes:
    if len(message) > 16384:
        return split(stream, message, 16384)
    return (
        frame(HEADERS, END_HEADERS, stream, STATUS_200 + CONTENT_TYPE)
        + frame(DATA, 0, stream, message)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, GRPC_OK)
    )


def split(stream: int, message: bytes, size: int = 7) -> bytes:
    pieces = [frame(DATA, 0, stream, message[at : at + size]) for at in range(0, len(message), size)]
    head = frame(HEADERS, END_HEADERS, stream, STATUS_200 + CONTENT_TYPE)
    return head + b"".join(pieces) + frame(HEADERS, END_HEADERS | END_STREAM, stream, GRPC_OK)


def padded(stream: int, message: bytes) -> bytes:
    head = b"\x05" + b"\0\0\0\0\x10" + STATUS_200 + CONTENT_TYPE + bytes(5)
    return (
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, stream, head)
        + frame(DATA, PADDED, stream, b"\x0b" + message + bytes(11))
        + frame(DATA, PADDED, stream, b"\x00")
        + frame(0xBE, 0, stream, b"of a type that nobody knows")
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, GRPC_OK)
    )


def continuation(stream: int, message: bytes) -> bytes:
    trailers = frame(HEADERS, END_STREAM, stream, GRPC_OK[:3]) + frame(CONTINUATION, 0, stream)
    return (
        frame(HEADERS, 0, stream, STATUS_200)
        + frame(CONTINUATION, END_HEADERS, stream, CONTENT_TYPE)
        + frame(DATA, 0, stream, message)
        + trailers
        + frame(CONTINUATION, END_HEADERS, stream, GRPC_OK[3:])
    )


def inserts(stream: int, message: bytes) -> bytes:
    """Trailers that point into the dynamic table after the head has pushed a new entry in front of the old ones: the
    same bytes (0xbe: the newest entry) mean another header each time."""
    if stream % 4 == 1:
        newest = b"\x40\x0bgrpc-status\x010"
        return (
            frame(HEADERS, END_HEADERS, stream, STATUS_200 + b"\x40\x01x\x01y")
            + frame(DATA, 0, stream, message)
            + frame(HEADERS, END_HEADERS | END_STREAM, stream, newest)
        )
    return (
        frame(HEADERS, END_HEADERS, stream, STATUS_200)
        + frame(DATA, 0, stream, message)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\xbe")
    )


ANSWERS: dict[str, Callable[[int, bytes], bytes]] = {
    "padded": padded,
    "continuation": continuation,
    "split": split,
    "inserts": inserts,
}


# ---------------------------------------------------------------------------------------------------- spoiled answers


def trailers_only(stream: int, block: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def close(stand_in: StandIn, stream: int, message: bytes) -> bytes:
    stand_in.write()
    stand_in.transport.abort()
    return b""


SPOILED: dict[str, Callable[[StandIn, int, bytes], bytes]] = {
    "grpc_status": lambda _, stream, __: trailers_only(stream, STATUS_200 + CONTENT_TYPE + GRPC_FULL),
    "no_status": lambda _, stream, message: (
        frame(HEADERS, END_HEADERS, stream, STATUS_200) + frame(DATA, END_STREAM, stream, message)
    ),
    "http_status": lambda _, stream, __: trailers_only(stream, STATUS_500),
    "reset": lambda _, stream, __: frame(RST_STREAM, 0, stream, struct.pack(">I", 7)),
    "goaway": lambda _, stream, __: frame(GOAWAY, 0, 0, struct.pack(">II", stream - 2 if stream > 1 else 0, 0)),
    "close": close,
    "value": lambda _, stream, message: plain(stream, message[:-1] + bytes([message[-1] ^ 0x55])),
    "length": lambda _, stream, message: plain(stream, message + b"more"),
    "empty": lambda _, stream, __: trailers_only(stream, STATUS_200 + GRPC_OK),
    "silent": lambda _, __, ___: b"",
    "garbage": lambda _, stream, __: frame(CONTINUATION, END_HEADERS, stream, GRPC_OK),
}


async def serve(behaviour: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StandIn(behaviour), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--echo", action="store_true", help="answer with the request")
    parser.add_argument("--answer", type=Path, help="a file with the message to answer with")
    parser.add_argument("--fault", choices=FAULTS, default="")
    parser.add_argument("--every", type=int, default=1, help="spoil every N-th answer of a connection")
    parser.add_argument("--quirk", choices=QUIRKS, default="none")
    arguments = parser.parse_args()
    behaviour = Behaviour(echo=arguments.echo, fault=arguments.fault, every=arguments.every, quirk=arguments.quirk)
    if arguments.answer:
        behaviour = replace(behaviour, answer=arguments.answer.read_bytes())
    uvloop.run(serve(behaviour))


if __name__ == "__main__":
    main()
