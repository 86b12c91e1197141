"""Connections of a listening socket passed on, byte by byte, to a UNIX socket: for an engine that binds its own.

The sockets that frontends share are bound by the supervisor, and grpcio takes none that is bound already.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Any, Final

_CHUNK_BYTES: Final = 256 * 1024
#: The file belongs to whoever bound the socket. (Older event loops never remove it.)
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Relay:
    """What `listener` accepts goes to the UNIX socket `path`. The listener belongs to the relay from here on."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener = listener
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._pass_on, sock=self._listener, limit=_CHUNK_BYTES, **_KEEP_FILE
        )

    def stop_accepting(self) -> None:
        """Connections that are there go on until either side ends them."""
        if self._server is not None:
            self._server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._path, limit=_CHUNK_BYTES)
        except OSError:
            writer.close()  # the engine has stopped
            return
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        for each in (writer, inner_writer):
            each.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes, then the end of them, to the other side. When either side is lost, so is the other."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):  # the other side is closed already
            writer.write_eof()
    except OSError:
        writer.transport.abort()
