"""Predict, classify and regress over REST: a body to a request for the workers, at once where that is quick.

In TF Serving's order: the text, then the model, then its signature, then the tensors.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from ringserve.broker.messages import Failure
from ringserve.frontend import rest_npy
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, ServableView, SignatureView
from ringserve.frontend.examples import Kind, bind_examples
from ringserve.frontend.inflate import GZIP, DamagedError, TooLargeError, inflate
from ringserve.frontend.json_examples import read_examples
from ringserve.frontend.json_predict import Body, Inputs, find_signature, read_body, read_inputs
from ringserve.frontend.json_quick import Quick, quick_body, quick_inputs
from ringserve.frontend.lanes import Lane, LaneTable, Request
from ringserve.frontend.lanes import find_signature as find_predict_signature
from ringserve.frontend.rest_call import RestCall, RestClient, RestSettings, Side
from ringserve.frontend.rest_npy import NpyReply
from ringserve.frontend.rest_reply import EXAMPLE_REPLIES, PredictReply, RestReply
from ringserve.frontend.rest_routes import Action, Route
from ringserve.frontend.tally import Tally

#: Bodies below this have nothing in them that is worth a way of its own.
_QUICK_BYTES_MIN: Final = 256
#: Bodies above this are read on a side thread.
_SIDE_BYTES_MIN: Final = 262_144
#: Bodies above this that turn out to need a slow way are read again on the slow side thread.
_HURRY_BYTES_MIN: Final = 32_768
#: Compressed bodies above this are expanded on a side thread.
_GUNZIP_BYTES_MIN: Final = 4_096
_LANES_MAX: Final = 4_096
#: Bodies that are expanded or parsed on a side at a time: one thread's, and one that is ready for it.
_READ_AT_ONCE_MAX: Final = 2

_Text = bytes | bytearray


class Ask(NamedTuple):
    """What a request's head says of it. timeout_ns: 0 for none. is_own_timeout: the client named it, and counts from
    when it sent its head; else it counts from when the request is there whole. sends_npy, wants_npy: whether the body
    is an npy file, and whether the answer is to be one. patience_ns: see `rest_timeout.patience_of`."""

    route: Route
    is_gzip: bool
    timeout_ns: int
    is_own_timeout: bool = False
    sends_npy: bool = False
    wants_npy: bool = False
    patience_ns: int = 0


class _Bound(NamedTuple):
    """A predict request, ready to run."""

    request: Request
    by_row: bool


class Inference:
    """The three verbs of the REST API that run models."""

    def __init__(self, client: RestClient, settings: RestSettings, tally: Tally, side: Side) -> None:
        self._client = client
        self._settings = settings
        self._tally = tally
        self._side = side
        self._lanes = LaneTable()
        #: (signature, dtypes and shapes of its inputs) -> (lane, rows), as `LaneTable.bind` found it in this epoch.
        self._known: dict[tuple[SignatureView, tuple[tuple[int, tuple[int, ...]], ...]], tuple[Lane, int]] = {}
        self._epoch = -1
        # A body takes many times its size while it is read. The others wait as they came, which is counted.
        self._quick_room = asyncio.Semaphore(_READ_AT_ONCE_MAX)
        #: Also for whoever else reads bodies on a side.
        self.slow_room = asyncio.Semaphore(_READ_AT_ONCE_MAX)

    def predict(self, call: RestCall, ask: Ask) -> None:
        """Answer a predict, now or later."""
        body = call.take_body()
        if ask.sends_npy:
            self._predict_npy(call, ask, body)
            return
        if ask.is_gzip or len(body) > _SIDE_BYTES_MIN:
            self._aside(call, ask, body)
            return
        found = self._quick(ask.route, body) or self._ordinary(ask.route, body, hurry=len(body) > _HURRY_BYTES_MIN)
        if found is None:
            self._aside(call, ask, body)
        else:
            self._run(call, ask, found)

    def _run(self, call: RestCall, ask: Ask, found: _Bound | Failure) -> None:
        if isinstance(found, Failure):
            call.fail(found)
            return
        lane, rows, payloads = found.request
        reply: RestReply
        if ask.wants_npy:
            failure = rest_npy.check_outputs(lane)
            if failure is not None:
                call.fail(failure)
                return
            reply = NpyReply(call, self._client, lane, self._tally, self._side)
        else:
            reply = PredictReply(call, self._client, lane, self._tally, self._side, by_row=found.by_row)
        reply.run(rows, payloads, _left_ns(call, ask))

    # ------------------------------------------------------------------------------------------------ on the loop

    def _quick(self, route: Route, body: _Text) -> _Bound | None:
        quick = quick_body(body) if len(body) >= _QUICK_BYTES_MIN else None
        signature = self._look_up(route, quick)
        if quick is None or signature is None:
            return None
        inputs = quick_inputs(quick, signature[1])
        return None if inputs is None else self._bind_known(*signature, inputs)

    def _look_up(self, route: Route, quick: Quick | None) -> tuple[ServableView, SignatureView] | None:
        """The model and signature meant, if they are there; nothing is refused here."""
        if quick is None:
            return None
        servable = self._client.catalog.resolve(route.name, route.version, route.label)
        if isinstance(servable, Failure):
            return None
        signature = servable.signatures.get(quick.signature_name or DEFAULT_SIGNATURE)
        return None if signature is None or not signature.inputs else (servable, signature)

    def _bind_known(self, servable: ServableView, signature: SignatureView, inputs: Inputs) -> _Bound | None:
        """Bind a request as one before it was bound; None when it is to be refused."""
        if self._epoch != self._client.catalog.epoch:
            self._known.clear()
            self._epoch = self._client.catalog.epoch
        tensors = inputs.tensors
        key = (signature, tuple([tensor[:2] for tensor in tensors.values()]))
        known = self._known.get(key)
        if known is not None:
            return _Bound(Request(*known, [tensor.data for tensor in tensors.values()]), inputs.by_row)
        bound = self._bind(servable, signature, inputs)
        if isinstance(bound, Failure):
            return None
        if len(self._known) >= _LANES_MAX:
            self._known.clear()
        self._known[key] = bound.request.lane, bound.request.rows
        return bound

    def _bind(self, servable: ServableView, signature: SignatureView, inputs: Inputs) -> _Bound | Failure:
        if self._settings.check_method_name:
            checked = find_predict_signature(servable, signature.name, check_method_name=True)
            if isinstance(checked, Failure):
                return checked
        request = self._lanes.bind(servable, signature, inputs.tensors)
        return request if isinstance(request, Failure) else _Bound(request, inputs.by_row)

    def _ordinary(self, route: Route, data: _Text, *, hurry: bool) -> _Bound | Failure | None:
        body = read_body(data, hurry=hurry)
        if body is None or isinstance(body, Failure):
            return body
        found = self._find(route, body.signature_name)
        if isinstance(found, Failure):
            return found
        inputs = read_inputs(body, found[1], hurry=hurry)
        return inputs if inputs is None or isinstance(inputs, Failure) else self._bind(*found, inputs)

    def _find(self, route: Route, signature_name: str) -> tuple[ServableView, SignatureView] | Failure:
        servable = self._client.catalog.resolve(route.name, route.version, route.label)
        if isinstance(servable, Failure):
            return servable
        signature = find_signature(servable, signature_name)
        return signature if isinstance(signature, Failure) else (servable, signature)

    # --------------------------------------------------------------------------------------------------- elsewhere

    def _aside(self, call: RestCall, ask: Ask, body: _Text) -> None:
        self._side.run_for(call, self._predict_aside(call, ask, body), _left_ns(call, ask))

    async def _predict_aside(self, call: RestCall, ask: Ask, body: _Text) -> None:
        found: _Bound | Failure | None
        async with self._quick_room:
            found = await self._quick_aside(ask, body)
        if found is None:
            # Only the body as it came waits for the slow side; it is expanded and read again there.
            async with self.slow_room:
                found = await self._slowly_aside(ask, body)
        del body
        if not call.is_over:
            self._run(call, ask, found)

    async def _quick_aside(self, ask: Ask, data: _Text) -> _Bound | Failure | None:
        """What C code can read is read on the quick thread; None: only the slow one can."""
        route = ask.route
        if ask.is_gzip:
            data = await self._expanded(data)
        if len(data) <= _SIDE_BYTES_MIN:
            bound = self._quick(route, data)
        else:
            quick = await self._side.quick(quick_body, data)
            signature = self._look_up(route, quick)
            bound = None
            if quick is not None and signature is not None:
                quickly = await self._side.quick(quick_inputs, quick, signature[1])
                bound = None if quickly is None else self._bind_known(*signature, quickly)
            del quick
        if bound is not None:
            return bound
        body = await self._side.quick(lambda: read_body(data, hurry=True))
        if body is None or isinstance(body, Failure):
            return body
        found = self._find(route, body.signature_name)
        if isinstance(found, Failure):
            return found
        inputs = await self._side.quick(lambda: read_inputs(body, found[1], hurry=True))
        return inputs if inputs is None or isinstance(inputs, Failure) else self._bind(*found, inputs)

    async def _slowly_aside(self, ask: Ask, data: _Text) -> _Bound | Failure:
        if ask.is_gzip:
            data = await self._expanded(data)
        body = await self._side.slow(read_body, bytes(data))
        assert body is not None
        if isinstance(body, Failure):
            return body
        found = self._find(ask.route, body.signature_name)
        if isinstance(found, Failure):
            return found
        inputs = await self._side.slow(read_inputs, body, found[1])
        assert inputs is not None
        return inputs if isinstance(inputs, Failure) else self._bind(*found, inputs)

    async def _expanded(self, body: _Text) -> bytes:
        bytes_max = self._settings.gunzip_bytes_max
        if len(body) <= _GUNZIP_BYTES_MIN:
            return gunzip(body, bytes_max)
        return await self._side.quick(gunzip, body, bytes_max)

    # --------------------------------------------------------------------------------------------------- npy files

    def _predict_npy(self, call: RestCall, ask: Ask, body: _Text) -> None:
        found: _Bound | Failure | None = None
        if not ask.is_gzip:
            known = self._find(ask.route, "")
            if isinstance(known, Failure):
                found = known
            else:
                hurry = len(body) > _HURRY_BYTES_MIN
                found = self._bind_npy(known, rest_npy.read_input(body, known[1], hurry=hurry))
        if found is None:
            self._side.run_for(call, self._npy_aside(call, ask, body), _left_ns(call, ask))
        else:
            self._run(call, ask, found)

    async def _npy_aside(self, call: RestCall, ask: Ask, body: _Text) -> None:
        found: _Bound | Failure | None
        async with self.slow_room:
            if ask.is_gzip:
                body = await self._expanded(body)
            known = self._find(ask.route, "")
            if isinstance(known, Failure):
                found = known
            else:
                found = self._bind_npy(known, await self._side.slow(rest_npy.read_input, body, known[1]))
        assert found is not None
        del body
        if not call.is_over:
            self._run(call, ask, found)

    def _bind_npy(
        self, known: tuple[ServableView, SignatureView], inputs: Inputs | Failure | None
    ) -> _Bound | Failure | None:
        if inputs is None or isinstance(inputs, Failure):
            return inputs
        return self._bind_known(*known, inputs) or self._bind(*known, inputs)

    # --------------------------------------------------------------------------------------- classify and regress

    def examples(self, call: RestCall, ask: Ask) -> None:
        """Answer a classify or a regress, now or later."""
        body = call.take_body()
        if not ask.is_gzip and len(body) <= _HURRY_BYTES_MIN:
            found = read_body(body)
            assert found is not None
            self._run_examples(call, ask, found if isinstance(found, Failure) else self._examples(found))
        else:
            self._side.run_for(call, self._examples_aside(call, ask, body), _left_ns(call, ask))

    async def _examples_aside(self, call: RestCall, ask: Ask, data: _Text) -> None:
        async with self.slow_room:
            if ask.is_gzip:
                data = await self._expanded(data)
            body = await self._side.quick(lambda: read_body(data, hurry=True))
            if body is None:
                body = await self._side.slow(read_body, bytes(data))
            assert body is not None
            found = body if isinstance(body, Failure) else await self._side.slow(self._examples, body)
            del body
        if not call.is_over:
            self._run_examples(call, ask, found)

    def _examples(self, body: Body) -> _Examples | Failure:
        found = read_examples(body.members, self._settings.tensor_bytes_max)
        return found if isinstance(found, Failure) else _Examples(found, body.signature_name)

    def _run_examples(self, call: RestCall, ask: Ask, found: _Examples | Failure) -> None:
        if isinstance(found, Failure):
            call.fail(found)
            return
        route = ask.route
        servable = self._client.catalog.resolve(route.name, route.version, route.label)
        if isinstance(servable, Failure):
            call.fail(servable)
            return
        kind = Kind.CLASSIFY if route.action is Action.CLASSIFY else Kind.REGRESS
        check = self._settings.check_method_name
        request = bind_examples(
            self._lanes, servable, found.signature_name, found.examples, kind, check_method_name=check
        )
        if isinstance(request, Failure):
            call.fail(request)
            return
        reply = EXAMPLE_REPLIES[kind](call, self._client, request.lane, self._tally, self._side)
        reply.run(request.rows, request.payloads, _left_ns(call, ask))


def _left_ns(call: RestCall, ask: Ask) -> int:
    return call.left_ns(ask.timeout_ns, is_own=ask.is_own_timeout)


class _Examples(NamedTuple):
    """The body of a classify or regress: serialized Examples, one per row."""

    examples: list[bytes]
    signature_name: str


def gunzip(data: _Text, bytes_max: int) -> bytes:
    """The decompressed body; empty when it is corrupt or too large, which TF Serving answers as an empty document."""
    try:
        return inflate(data, GZIP, bytes_max)
    except (DamagedError, TooLargeError):
        return b""
