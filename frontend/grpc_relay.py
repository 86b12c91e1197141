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
#: For the last bytes of an engine that has ended, to clients that do not read them.
_LAST_BYTES_S: Final = 1.0
#: The file belongs to whoever bound the socket. (Older event loops never remove it.)
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Relay:
    """What `listener` accepts goes to the UNIX socket `path`. The listener belongs to the relay from here on."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener = listener
        self._path = path
        self._server: asyncio.Server | None = None
        # Nothing else refers to the task of a connection whose client has said all that it will say: streams know each
        # other weakly. It was then collected with its transports, in the midst of whatever the event loop did with
        # them, and the process ended by a segmentation fault.
        self._connections: dict[asyncio.Task[Any], list[asyncio.StreamWriter]] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._pass_on, sock=self._listener, limit=_CHUNK_BYTES, **_KEEP_FILE
        )

    def stop_accepting(self) -> None:
        """Connections that are there go on until either side ends them."""
        if self._server is not None:
            self._server.close()

    async def end(self) -> None:
        """After the engine has ended its connections: the others end with them, when their last bytes are delivered."""
        if self._connections:
            _, stuck = await asyncio.wait(self._connections, timeout=_LAST_BYTES_S)
            for task in stuck:
                for writer in self._connections[task]:
                    writer.transport.abort()
            await asyncio.gather(*stuck)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [writer]
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._path, limit=_CHUNK_BYTES)
            writers.append(inner_writer)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        except OSError:
            pass  # the engine has stopped
        finally:
            for each in writers:
                each.close()
            del self._connections[task]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes, then the end of them, to the other side. When either side is lost, so is the other."""
    try:
        while (data := await reader.read(_CHUNK_BYTES)) and not writer.is_closing():
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):  # the other side is closed already
            writer.write_eof()
    except OSError:
        writer.transport.abort()
