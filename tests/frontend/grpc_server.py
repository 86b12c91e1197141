"""The whole gRPC API over a stand-in client, served by a real engine in a thread, for the official client library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ringserve.frontend.grpc_api import GrpcSettings, make_methods
from ringserve.frontend.grpc_draining import Draining
from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.tally import Tally
from tests.frontend.fakes import LoopbackClient
from tests.frontend.http2.service import Running


class Api:
    """What `Running` serves. bugs: what handlers raised."""

    def __init__(self, client: Any, settings: GrpcSettings | None = None, tally: Tally | None = None) -> None:
        self.client = client
        self.draining = Draining()
        self.bugs: list[BaseException] = []
        self._settings = settings
        self._tally = tally

    def methods(self) -> Methods:
        return make_methods(self.client, self._settings, tally=self._tally, draining=self.draining)

    def on_bug(self, error: BaseException) -> None:
        self.bugs.append(error)


class ApiServer(Running):
    """A server of the API. Whatever changes its client or catalog must run on its loop: `call_soon`."""

    def __init__(self, engine: str, api: Api, limits: EngineLimits | None = None) -> None:
        self.api = api
        super().__init__(engine, api, limits or EngineLimits(), 2, "")  # type: ignore[arg-type]

    def on_loop(self, function: Any, *arguments: Any) -> None:
        """Run a function on the server's loop, and wait for it."""

        async def run() -> None:
            function(*arguments)

        self.call(run())


@contextmanager
def serving(
    engine: str, client: LoopbackClient, settings: GrpcSettings | None = None, tally: Tally | None = None
) -> Iterator[ApiServer]:
    """A server of the API for the length of a test, which must end without a bug."""
    server = ApiServer(engine, Api(client, settings, tally))
    try:
        yield server
        assert not server.api.bugs
    finally:
        server.stop()
