"""The relay by itself, between a plain client and a plain server: who has said all may still be answered."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ringserve.frontend.grpc_relay import Relay

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def relayed(tmp_path: Path, serve: Serve) -> tuple[Relay, asyncio.Server, str]:
    inner = await asyncio.start_unix_server(serve, str(tmp_path / "inner"))
    outer = socket.socket(socket.AF_UNIX)
    outer.bind(str(tmp_path / "outer"))
    outer.listen()
    outer.setblocking(False)
    relay = Relay(outer, str(tmp_path / "inner"))
    await relay.start()
    return relay, inner, str(tmp_path / "outer")


async def no_collection_ends_a_client_that_has_said_all(tmp_path: Path) -> None:
    said, gate = asyncio.Event(), asyncio.Event()
    kept: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append((asyncio.current_task(), reader, writer))
        assert await reader.read() == b"all"
        said.set()
        await gate.wait()
        writer.write(b"answer")
        writer.close()

    relay, inner, path = await relayed(tmp_path, serve)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"all")
    writer.write_eof()
    await said.wait()
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)  # a turn, in which whoever was collected would be closed
    gate.set()
    assert await asyncio.wait_for(reader.read(), 20) == b"answer"
    writer.close()
    relay.stop_accepting()
    await relay.end()
    inner.close()


async def the_end_waits_for_no_client_that_does_not_read(tmp_path: Path) -> None:
    kept: list[Any] = []
    written = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append((asyncio.current_task(), reader, writer))
        writer.write(bytes(600_000))  # more than a socket takes, less than the relay
        writer.close()
        await writer.wait_closed()
        written.set()

    relay, inner, path = await relayed(tmp_path, serve)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, path)
        await written.wait()
        relay.stop_accepting()
        await asyncio.wait_for(relay.end(), 20)
    inner.close()


@pytest.mark.parametrize(
    "story", [no_collection_ends_a_client_that_has_said_all, the_end_waits_for_no_client_that_does_not_read]
)
def test_the_relay(tmp_path: Path, caplog: pytest.LogCaptureFixture, story: Callable[[Path], Any]) -> None:
    """On the event loop of the product: the other one closes elsewhere what was collected."""
    with caplog.at_level(logging.ERROR):
        uvloop.run(story(tmp_path))
    assert not caplog.records
