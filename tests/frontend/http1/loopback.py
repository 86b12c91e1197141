"""The server on loopback with the REST application behind it, and clients of Python's own."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.server import Http1Server, serve_http1
from ringserve.frontend.rest_api import error_page, make_app
from tests.frontend.rest.served import RestLoopback, default_model

BODY = b'{"instances":[1.0,2.0,5.0]}'
ANSWER = b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
HEAD = b"POST /v1/models/default:predict HTTP/1.1\r\nHost: a\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

Test = Callable[[Http1Server, int, RestLoopback], Awaitable[None]]

def listener() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening


def serving(test: Test, *, answers: bool = True, limits: Http1Limits | None = None) -> None:
    """Run `test` on the loop of a server."""

    async def run() -> None:
        client = RestLoopback(model=default_model if answers else None)
        app = make_app(client)
        listening = listener()
        port = listening.getsockname()[1]
        server = await serve_http1(app.handle, [listening], limits, error_page)
        try:
            async with asyncio.timeout(60):
                await test(server, port, client)
        finally:
            await server.close()
            app.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def exchange(port: int, *requests: tuple[str, str, Any, dict[str, str]]) -> list[tuple[int, dict[str, str], bytes]]:
    """Several requests over one connection of http.client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    answers = []
    for method, target, body, headers in requests:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        answers.append((response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()))
    connection.close()
    return answers


async def until(condition: Callable[[], Any]) -> None:
    """Poll a condition of other tasks; the test's own limit bounds it."""
    while not condition():
        await asyncio.sleep(0.001)  # polls, see above
