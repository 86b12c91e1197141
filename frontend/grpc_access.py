"""Access control of the gRPC methods, around the handlers that both engines call.

A handler finds the model that is meant, and hands its request to the client, before it returns. So whose call it is
stands in one place (`GrpcGuard.key`) meanwhile, and what a handler finds and runs is judged where all of them find and
run: in the catalog and in the client that they are given. Without access control none of this is there, but for the
few methods of operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Final

from ringserve.broker.messages import Failure
from ringserve.frontend.access import Access, Key, Refusal
from ringserve.frontend.audit import AuditedCall, note
from ringserve.frontend.catalog import Catalog, ServableView, VersionStatus
from ringserve.frontend.grpc_reply import InferClient
from ringserve.frontend.handler import Buffer, Call, Methods, StreamFailure, StreamHandler, UnaryHandler
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Reply
from ringserve.frontend.status import code_name, grpc_text
from ringserve.frontend.tally import GRPC, Tally


class Need(Enum):
    """What a method asks of its caller. RUN, LOOK: of the model that is meant. OPEN: nothing."""

    OPEN = "open"
    RUN = "run"
    LOOK = "look"
    STATUS = "status"
    ADMIN = "admin"


#: How a refused call of these methods is counted; others are not.
_COUNTED: Final = ("Predict", "Classify", "Regress")
_LOCAL: Final = ("ipv4:127.", "ipv6:[::1]", "ipv6:[::ffff:127.", "unix:")


class GrpcGuard:
    """key: who asks, while a handler runs. count: told of every refusal's reason."""

    def __init__(self, access: Access, tally: Tally, count: Callable[[str], None]) -> None:
        self.key: Key | None = None
        self._need = Need.RUN
        self._access = access
        self._tally = tally
        self._count = count

    def client(self, client: InferClient) -> InferClient:
        """The client as handlers may have it."""
        return _GuardedClient(client, self)

    def refusal(self, model: str) -> Failure | None:
        """Why the present caller may not have this model, if so."""
        key = self.key
        assert key is not None
        may = key.may_look(model) if self._need is Need.LOOK else key.may_predict(model)
        if may:
            return None
        self._count("scope")
        refusal = key.refused(f"{'look at' if self._need is Need.LOOK else 'use'} the model {model}")
        return Failure(refusal.code, refusal.text)

    def admit(self, call: Call, need: Need) -> Key | Refusal:
        """Who calls, if it may call such a method at all."""
        key = self._access.admit(shown(call.metadata), call.names)
        if isinstance(key, Key):
            if need is Need.STATUS and not key.is_status:
                key = key.refused("ask for the server's state")
            elif need is Need.ADMIN and not key.is_admin:
                key = key.refused("operate the server")
        if isinstance(key, Refusal):
            self._count(key.reason)
        return key

    def unary(self, path: str, handler: UnaryHandler, need: Need) -> UnaryHandler:
        """The handler for those who may."""
        api = path.rpartition("/")[2]

        def guarded(call: Call, message: Buffer) -> None:
            key = self.admit(call, need)
            if isinstance(key, Key):
                self.key, self._need = key, need
                handler(call, message)
                return
            call.fail(key.code, grpc_text(key.text))
            if api in _COUNTED:
                self._tally.failure(GRPC, api, "", int(key.code), key.text, self._tally.clock_ns())
            elif need is Need.ADMIN:
                note("(refused)", path, call.peer, code_name(key.code))

        return guarded

    def stream(self, handler: StreamHandler, need: Need) -> StreamHandler:
        """Likewise. (A Stream shows what a Call does.)"""

        async def guarded(stream: Call) -> None:
            key = self.admit(stream, need)
            if isinstance(key, Refusal):
                raise StreamFailure(key.code, grpc_text(key.text))
            await handler(stream)  # type: ignore[arg-type]

        return guarded  # type: ignore[return-value]


def with_access(
    methods: Methods, needs: Mapping[str, Need], guard: GrpcGuard | None, operators: str = "all"
) -> Methods:
    """The methods for those who may. needs: by path or service; what is not in it is for operators.

    operators: where these may be: `all`, `local` or `off` (then their methods are not there).
    """

    def need_of(path: str) -> Need:
        return needs.get(path, needs.get(path.split("/")[1], Need.ADMIN))

    unary, stream = {}, {}
    for path, handler in methods.unary.items():
        need = need_of(path)
        if need is Need.ADMIN and operators == "off":
            continue
        if need is Need.ADMIN:
            handler = _audited(path, handler, guard, local=operators == "local")
        unary[path] = handler if guard is None or need is Need.OPEN else guard.unary(path, handler, need)
    for path, opened in methods.stream.items():
        need = need_of(path)
        stream[path] = opened if guard is None or need is Need.OPEN else guard.stream(opened, need)
    return replace(methods, unary=unary, stream=stream)


def _audited(path: str, handler: UnaryHandler, guard: GrpcGuard | None, *, local: bool) -> UnaryHandler:
    def audited(call: Call, message: Buffer) -> None:
        key = guard.key if guard is not None else None
        noted = AuditedCall(call, key.name if key is not None else "-", path)
        if local and not call.peer.startswith(_LOCAL):
            noted.fail(7, "only clients on this host may do this (grpc_admin)")
        else:
            handler(noted, message)

    return audited


def shown(metadata: Iterable[tuple[str, bytes]]) -> bytes | None:
    """What a call shows: its first `authorization`, or without one its first `x-api-key`."""
    other = None
    for name, value in metadata:
        if name == "authorization":
            return value
        if name == "x-api-key" and other is None:
            other = value
    return other


class _GuardedCatalog(Catalog):
    """The catalog as the present caller may see it: the very state of the whole one."""

    __slots__ = ("_refusal",)

    def __init__(self, catalog: Catalog, refusal: Callable[[str], Failure | None]) -> None:
        self.__dict__ = catalog.__dict__
        self._refusal = refusal

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> ServableView | Failure:
        # Before it is looked up: who may not have a model does not learn whether it exists.
        refused = self._refusal(name) if name else None
        return super().resolve(name, version, label) if refused is None else refused

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus] | Failure:
        refused = self._refusal(name)
        return super().statuses(name, version) if refused is None else refused


class _GuardedClient:
    """Runs only what the present caller may run."""

    def __init__(self, client: InferClient, guard: GrpcGuard) -> None:
        self.catalog: Catalog = _GuardedCatalog(client.catalog, guard.refusal)
        self.cancel = client.cancel
        self._client = client
        self._guard = guard

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        """See Client. A request that matched an earlier one byte by byte was not looked up, so it is judged here."""
        key = self._guard.key
        assert key is not None
        if not key.may_predict(lane.spec.model):
            refused = self._guard.refusal(lane.spec.model)
            assert refused is not None
            reply.fail(refused.code, refused.text)
            return -1
        return self._client.infer(lane, rows, payloads, timeout_ns, reply)

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]:
        return await self._client.ask(verb, body, timeout_s)
