"""Goal: what a client sends on a streaming call and nobody takes is bounded, and gone with the call; and a client that
leaves at once leaves no trace. Method: a raw client on real sockets, the collector of cycles off.
"""

from __future__ import annotations

import gc
import socket
import struct
from typing import Any

import pytest

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.protocol import peer_text
from ringserve.frontend.http2.streams import StreamingCall
from tests.frontend.http2.peer import Peer, message, request_fields
from tests.frontend.http2.service import NATIVE, PREFIX, connect, running
from tests.frontend.http2.test_sockets import beginning, received, until

ENDED = b"grpc-status\x01"


def calls_alive() -> int:
    return sum(isinstance(each, StreamingCall) for each in gc.get_objects())


@pytest.mark.parametrize("end", ["reset", "reset at once", "deadline", "disconnect"])
def test_a_call_that_is_over_holds_no_memory_until_a_collection(end: str) -> None:
    gc.collect()
    gc.disable()
    try:
        with running(NATIVE) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
            peer = Peer()
            more = (("grpc-timeout", "50m"),) if end == "deadline" else (("grpc-timeout", "1H"),)
            sock.sendall(beginning())
            for stream_id in range(1, 21, 2):
                sock.sendall(
                    peer.headers(stream_id, request_fields(PREFIX + "Endless", *more))
                    + peer.data(stream_id, message(bytes(16_000)))
                    + (frames.rst_stream(stream_id, ErrorCode.CANCEL) if end == "reset at once" else b"")
                )
            if end in ("reset", "disconnect"):
                until(lambda: calls_alive() == 10, "the calls have come")
            if end == "reset":
                sock.sendall(b"".join(frames.rst_stream(each, ErrorCode.CANCEL) for each in range(1, 21, 2)))
            elif end == "deadline":
                received(sock, lambda data: data.count(ENDED) == 10)
            elif end == "disconnect":
                sock.close()
            else:
                sock.sendall(frames.ping(bytes(8), False))
                received(sock, lambda data: frames.ping(bytes(8), True) in data)
            until(lambda: not calls_alive(), f"{calls_alive()} calls are over and still there")
    finally:
        gc.enable()


def test_messages_of_no_bytes_take_memory_too() -> None:
    with running(NATIVE, EngineLimits(held_bytes_max=2**20)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(beginning() + Peer().headers(1, request_fields(PREFIX + "Endless")))
            for _ in range(20):
                sock.sendall(frames.frame(frames.DATA, 0, 1, message(b"") * 1_000))
            told = received(sock, lambda data: ENDED in data)
        assert ENDED + b"8" in told
        assert b"this server holds too many unfinished messages" in told
        until(lambda: server.engine.account.input_bytes == 0, "nothing is counted when it is gone")


class _Reset:
    """A transport whose client was gone before it was accepted."""

    def get_extra_info(self, name: str) -> Any:
        return socket.socket() if name == "socket" else None


def test_who_is_gone_before_he_is_accepted_has_no_address() -> None:
    transport: Any = _Reset()
    assert peer_text(transport) == ""


def test_who_connects_and_resets_at_once_harms_nobody() -> None:
    with running(NATIVE) as server:
        failed: list[object] = []
        server.loop.set_exception_handler(lambda _, context: failed.append(context))
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with connect(server.target) as channel:
            assert channel.unary_unary(PREFIX + "Echo")(b"there", timeout=20) == b"there"
        until(lambda: server.engine.connections_count == 0, "all have left")
        assert not failed
