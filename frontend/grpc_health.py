"""grpc.health.v1.Health: Check, List and Watch, over the catalog.

    ""                                               every configured model is ready
    PredictionService, ModelService, full names      the same
    a model's name, or model:NAME                    the model has an AVAILABLE version

TensorFlow Serving says SERVING from its start on, whatever its models do, and knows no full names. Here a load
balancer gets no server whose models are still loading, or one that is about to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.grpc_draining import Draining, stopping
from ringserve.frontend.grpc_models import answered_at_once, parsed
from ringserve.frontend.grpc_protos import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from ringserve.frontend.handler import Methods, Stream, StreamFailure

SERVICE: Final = "grpc.health.v1.Health"
#: The one method that tells what its caller did not name: open health is not for it.
LIST: Final = f"/{SERVICE}/List"

_SERVING: Final = HealthCheckResponse.SERVING
_NOT_SERVING: Final = HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = HealthCheckResponse.SERVICE_UNKNOWN
_MODEL: Final = "model:"
#: As the protocol has it, a list of more services than this is refused.
_LIST_MAX: Final = 10_000


class Health:
    """What this frontend knows of its server's health. services: full names of the gRPC services it has."""

    def __init__(self, catalog: Catalog, draining: Draining, services: Iterable[str]) -> None:
        self._catalog = catalog
        self._draining = draining
        #: TF Serving's own probes use the last part of a name.
        self._services = sorted({name for service in services for name in (service, service.rpartition(".")[2])})

    def methods(self) -> Methods:
        """The service's methods, by path."""
        return Methods(
            unary={
                f"/{SERVICE}/Check": answered_at_once(HealthCheckRequest, self._check),
                LIST: answered_at_once(HealthListRequest, self._list),
            },
            stream={f"/{SERVICE}/Watch": self._watch},
        )

    def status(self, service: str) -> int | None:
        """The ServingStatus of a service or model; None for one that is not known."""
        catalog = self._catalog
        names = catalog.names()
        if service == "" or service in self._services:
            ready = not catalog.starting and all(_is_available(catalog, name) for name in names)
        else:
            name = service if service in names else service.removeprefix(_MODEL)
            if name not in names:
                return None
            ready = _is_available(catalog, name)
        return int(_SERVING if ready and not self._draining.announced else _NOT_SERVING)

    def _check(self, request: Any) -> Any:
        status = self.status(request.service)
        if status is None:
            return Failure(Code.NOT_FOUND, f"unknown service or model {request.service}")
        return HealthCheckResponse(status=status)

    def _list(self, _: Any) -> Any:
        names = ["", *self._services, *(f"{_MODEL}{name}" for name in self._catalog.names())]
        if len(names) > _LIST_MAX:
            return Failure(Code.RESOURCE_EXHAUSTED, f"{len(names)} services and models are too many for a list")
        response = HealthListResponse()
        for name in names:
            response.statuses[name].status = self.status(name)
        return response

    async def _watch(self, stream: Stream) -> None:
        """The status now, and again whenever it changes; to the end of the server, which it tells."""
        message = await self._draining.next_message(stream)
        if message is None:
            raise StreamFailure(Code.INTERNAL, "no request")
        request = parsed(HealthCheckRequest, message)
        if isinstance(request, Failure):
            raise StreamFailure(request.code, request.text)
        changed = asyncio.Event()
        forget = (self._catalog.watch(changed.set), self._draining.watch(changed.set))
        more = asyncio.ensure_future(stream.receive())  # there may be none, and what nobody reads is kept in memory
        more.add_done_callback(lambda _: changed.set())
        try:
            sent: int | None = None
            while True:
                changed.clear()
                status = self.status(request.service)
                status = int(_SERVICE_UNKNOWN) if status is None else status
                if status != sent:
                    await stream.send(HealthCheckResponse(status=status).SerializeToString())
                    sent = status
                if self._draining.began:
                    raise stopping()
                if more.done() and not more.exception() and more.result() is not None:
                    raise StreamFailure(Code.INTERNAL, "more than one message for a method that takes one")
                await changed.wait()
        finally:
            more.cancel()
            for each in forget:
                each()


def _is_available(catalog: Catalog, name: str) -> bool:
    return not isinstance(catalog.resolve(name), Failure)
