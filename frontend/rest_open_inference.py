"""The Open Inference protocol's REST endpoints: requests that run models, and what is told of server and models.

Requests of one client differ in their tensors' bytes only, as those are behind the JSON. A *plan* is what a request's
JSON was found to mean: the same JSON needs no reading again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from ringserve import __version__
from ringserve.broker.messages import Code, Failure, VersionState
from ringserve.frontend.catalog import ServableView, SignatureView
from ringserve.frontend.http1.exchange import JSON, Exchange, Head
from ringserve.frontend.inflate import EITHER, DamagedError, TooLargeError, inflate
from ringserve.frontend.json_predict import find_signature
from ringserve.frontend.json_text import error_body
from ringserve.frontend.json_write import NamedOutput
from ringserve.frontend.lanes import Lane, LaneTable
from ringserve.frontend.lanes import find_signature as find_predict_signature
from ringserve.frontend.open_inference import Asked, invalid, raw_input, read
from ringserve.frontend.open_inference_write import Answer, Form, model_body, server_body, write
from ringserve.frontend.outputs import Output
from ringserve.frontend.rest_call import RestCall, RestClient, RestSettings, Side
from ringserve.frontend.rest_ready import Readiness
from ringserve.frontend.rest_reply import COPY_BYTES_MIN, RestReply, copied, named_outputs
from ringserve.frontend.rest_routes import Action, Route
from ringserve.frontend.status import http_status
from ringserve.frontend.tally import Tally
from ringserve.frontend.tensor_proto import Tensor, bools_valid
from ringserve.shm.dtype import BOOL, STRING

_LENGTH: Final = b"inference-header-content-length"
_CODINGS: Final = b"Accept-Encoding: gzip, deflate\r\n"
_BINARY: Final = b"application/octet-stream"

#: JSON of more bytes is read on a side thread.
_SIDE_BYTES_MIN: Final = 262_144
#: Bodies above this that turn out to need a slow way are read again on the slow side thread.
_HURRY_BYTES_MIN: Final = 32_768
_PLANS_MAX: Final = 1_024
_PLANNED_BYTES_MAX: Final = 4_096

_Text = bytes | bytearray


class Framing(NamedTuple):
    """What a request's head says of its body. json_bytes: how much of it is JSON; -1 for all, 0 where there is none and
    the body is an input's bytes. is_coded: compressed."""

    json_bytes: int = -1
    is_coded: bool = False

    def json_bytes_of(self, body: _Text) -> int:
        """How much of this body is JSON."""
        return self.json_bytes if self.json_bytes >= 0 else len(body)


def framing_of(head: Head) -> Framing | Failure:
    """Or why such a body is not read."""
    named = [value for name, value in head.headers if name == b"content-encoding"]
    coding = b", ".join(named).strip().lower() or b"identity"
    if coding not in (b"identity", b"gzip", b"x-gzip", b"deflate"):
        return Failure(Code.UNIMPLEMENTED, "Content-Encoding may be gzip or deflate")
    length = head.get(_LENGTH)
    if length is None:
        return Framing(-1, coding != b"identity")
    if not length.isdigit() or len(length) > 18:
        return invalid("Inference-Header-Content-Length must be a number of bytes")
    return Framing(int(length), coding != b"identity")


class _Plan(NamedTuple):
    """A request, ready to run but for its payloads. places: where in the body these lie, in the lane's order."""

    body_bytes: int
    lane: Lane
    rows: int
    places: tuple[slice, ...]
    bools: tuple[slice, ...]
    form: Form
    timeout_ns: int


class _Bound(NamedTuple):
    """A request, ready to run."""

    lane: Lane
    rows: int
    payloads: Sequence[bytes | memoryview | list[bytes]]
    form: Form
    timeout_ns: int


class OpenInference:
    """Answers what is below /v2. room: for bodies that are read on a side, at one time."""

    def __init__(
        self, client: RestClient, settings: RestSettings, tally: Tally, side: Side, readiness: Readiness,
        room: asyncio.Semaphore,
    ) -> None:  # fmt: skip
        self._client = client
        self._settings = settings
        self._tally = tally
        self._side = side
        self._readiness = readiness
        self._lanes = LaneTable()
        self._plans: dict[tuple[Route, bytes], _Plan] = {}
        self._epoch = -1
        self._room = room

    def infer(self, call: RestCall, route: Route, framing: Framing | Failure, timeout_ns: int, *, is_own: bool) -> None:
        """Run a model, now or later. timeout_ns, is_own: as in `rest_predict.Ask`."""
        body = call.take_body()
        if isinstance(framing, Failure):
            if framing.code == Code.UNIMPLEMENTED:
                call.add_header(_CODINGS)
            call.fail(framing)
            return
        json_bytes = framing.json_bytes_of(body)
        found: _Bound | Failure | None
        if framing.is_coded or min(json_bytes, len(body)) > _SIDE_BYTES_MIN:
            found = None
        elif not framing.json_bytes:
            found = self._read_raw(route, body)
        else:
            hurry = len(body) > _HURRY_BYTES_MIN
            found = self._planned(route, body, json_bytes) or self._read(route, body, json_bytes, hurry=hurry)
        left_ns = call.left_ns(timeout_ns, is_own=is_own)
        if found is None:
            work = self._infer_aside(call, route, framing, body, timeout_ns, is_own=is_own)
            self._side.run_for(call, work, left_ns)
        else:
            self._run(call, found, left_ns)

    def _run(self, call: RestCall, found: _Bound | Failure, left_ns: int) -> None:
        if isinstance(found, Failure):
            call.fail(found)
            return
        if found.timeout_ns and left_ns >= 0:
            left_ns = min(left_ns or found.timeout_ns, found.timeout_ns)
        reply = InferReply(call, self._client, found.lane, self._tally, self._side, found.form)
        reply.run(found.rows, found.payloads, left_ns)

    # ------------------------------------------------------------------------------------------------------- reading

    def _planned(self, route: Route, body: _Text, json_bytes: int) -> _Bound | None:
        """What the same JSON has meant before."""
        if self._epoch != self._client.catalog.epoch:
            self._plans.clear()
            self._epoch = self._client.catalog.epoch
        plan = self._plans.get((route, bytes(body[:json_bytes]))) if json_bytes <= _PLANNED_BYTES_MAX else None
        if plan is None or plan.body_bytes != len(body):
            return None
        view = memoryview(body)
        for place in plan.bools:
            if not bools_valid(view[place]):
                return None  # the long way says so
        return _Bound(plan.lane, plan.rows, [view[place] for place in plan.places], plan.form, plan.timeout_ns)

    def _read(self, route: Route, body: _Text, json_bytes: int, *, hurry: bool) -> _Bound | Failure | None:
        asked = read(body, json_bytes, hurry=hurry)
        if asked is None or isinstance(asked, Failure):
            return asked
        bound = self._bind(route, asked)
        if not isinstance(bound, Failure) and asked.places is not None and json_bytes <= _PLANNED_BYTES_MAX:
            self._keep(route, bytes(body[:json_bytes]), len(body), asked.places, bound)
        return bound

    def _keep(self, route: Route, text: bytes, body_bytes: int, places: dict[str, slice], bound: _Bound) -> None:
        specs = bound.lane.spec.inputs
        if len(specs) != len(places):
            return  # defaults were filled in
        ordered = tuple([places[spec.alias] for spec in specs])
        bools = tuple([place for spec, place in zip(specs, ordered, strict=True) if spec.dtype == BOOL])
        if len(self._plans) >= _PLANS_MAX:
            self._plans.clear()
        plan = _Plan(body_bytes, bound.lane, bound.rows, ordered, bools, bound.form, bound.timeout_ns)
        self._plans[route, text] = plan

    def _find(self, route: Route, signature_name: str) -> tuple[ServableView, SignatureView] | Failure:
        servable = self._client.catalog.resolve(route.name, route.version, route.label)
        if isinstance(servable, Failure):
            return servable
        signature = find_signature(servable, signature_name)
        if self._settings.check_method_name and not isinstance(signature, Failure):
            signature = find_predict_signature(servable, signature.name, check_method_name=True)
        return signature if isinstance(signature, Failure) else (servable, signature)

    def _bind(self, route: Route, asked: Asked) -> _Bound | Failure:
        found = self._find(route, asked.signature_name)
        if isinstance(found, Failure):
            return found
        servable, signature = found
        request = self._lanes.bind(servable, signature, asked.tensors, [each.name for each in asked.outputs])
        if isinstance(request, Failure):
            return request
        computed = request.lane.spec.outputs
        form = Form(servable.name, servable.version, asked.id, asked.outputs, asked.is_binary, computed)
        return _Bound(*request, form, asked.timeout_ns)

    def _read_raw(self, route: Route, body: _Text) -> _Bound | Failure:
        """A body without JSON."""
        found = self._find(route, "")
        if isinstance(found, Failure):
            return found
        inputs = found[1].inputs
        if len(inputs) != 1:
            return invalid(f"a body without JSON is one input, and model {route.name} has {len(inputs)}: "
                           f"{', '.join(inputs)}")  # fmt: skip
        ((alias, spec),) = inputs.items()
        tensor = raw_input(body, alias, spec.dtype, spec.shape, has_row_axis=spec.has_row_axis)
        if isinstance(tensor, Failure):
            return tensor
        tensors: dict[str, Tensor] = {alias: tensor}
        return self._bind(route, Asked(None, "", 0, tensors, None, (), True))

    # --------------------------------------------------------------------------------------------------- elsewhere

    async def _infer_aside(
        self, call: RestCall, route: Route, framing: Framing, body: _Text, timeout_ns: int, *, is_own: bool
    ) -> None:
        async with self._room:
            found = await self._read_aside(route, framing, body)
        del body
        if not call.is_over:
            self._run(call, found, call.left_ns(timeout_ns, is_own=is_own))

    async def _read_aside(self, route: Route, framing: Framing, body: _Text) -> _Bound | Failure:
        if framing.is_coded:
            expanded = await self._side.quick(_expanded, body, self._settings.gunzip_bytes_max)
            if isinstance(expanded, Failure):
                return expanded
            body = expanded
        if not framing.json_bytes:
            return self._read_raw(route, body)
        json_bytes = framing.json_bytes_of(body)
        asked = await self._side.quick(lambda: read(body, json_bytes, hurry=True))
        if asked is None:
            asked = await self._side.slow(read, body, json_bytes)
        assert asked is not None
        return asked if isinstance(asked, Failure) else self._bind(route, asked)

    # ---------------------------------------------------------------------------------------------- what is not run

    def tell(self, exchange: Exchange, target: Route, *, names: bool = True) -> None:
        """Answer a GET. names: as in `Readiness.answer`."""
        if target.action is Action.LIVE:
            exchange.answer(200, b'{"live":true}')
        elif target.action is Action.SERVER:
            exchange.answer(200, server_body(__version__))
        elif target.action is Action.READY_V2:
            self._tell_ready(exchange, target, names)
        else:
            body = self._model(target)
            if isinstance(body, Failure):
                exchange.answer(http_status(body.code), error_body(body.text))
            else:
                exchange.answer(200, body)

    def _tell_ready(self, exchange: Exchange, target: Route, names: bool) -> None:
        status, text = self._readiness.answer(target.name, names=names)
        if status == 200 and (target.version is not None or target.label is not None):
            found = self._client.catalog.resolve(target.name, target.version, target.label)
            if isinstance(found, Failure):
                status, text = http_status(found.code), found.text
        exchange.answer(status, b'{"ready":true}' if status == 200 else error_body(text.strip()), JSON)

    def _model(self, target: Route) -> bytes | Failure:
        found = self._find(target, "")
        if isinstance(found, Failure):
            return found
        statuses = self._client.catalog.statuses(target.name)
        versions = [] if isinstance(statuses, Failure) else [
            each.version for each in statuses if each.state == VersionState.AVAILABLE
        ]  # fmt: skip
        return model_body(*found, versions)


class InferReply(RestReply):
    """Answers a request that ran a model."""

    __slots__ = ("_form",)
    api = "Predict"

    def __init__(
        self, call: RestCall, client: RestClient, lane: Lane, tally: Tally, side: Side, form: Form
    ) -> None:
        super().__init__(call, client, lane, tally, side)
        self._form = form

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """See RestReply."""
        form = self._form
        found, size = named_outputs(self._lane, outputs, row_first, rows)
        named = [found[place] for place in form.places]
        if size <= COPY_BYTES_MIN or (all(form.binary) and all(each.dtype != STRING for each in named)):
            return self._told(write(form, named))
        self._later(copied(named))
        return None

    def _told(self, answer: Answer | Failure) -> bytes | Failure:
        if isinstance(answer, Failure):
            return answer
        if answer.json_bytes >= 0:
            self._call.content_type = _BINARY
            self._call.add_header(b"Inference-Header-Content-Length: %d\r\n" % answer.json_bytes)
        return answer.body

    def _later(self, named: Sequence[NamedOutput]) -> None:
        async def later() -> None:
            self._call.settle(self._told(await self._side.quick(write, self._form, named, True)))

        self._call.on_cancel(self._call.cancel)
        self._side.run(self._call, later())


def _expanded(data: _Text, bytes_max: int) -> bytes | Failure:
    try:
        return inflate(data, EITHER, bytes_max, members=True)
    except DamagedError as error:
        return invalid(f"the body cannot be decompressed: {error}")
    except TooLargeError:
        return invalid(f"the body has more than {bytes_max} bytes when it is decompressed")
