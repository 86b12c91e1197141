"""The REST API as an application of the HTTP/1.1 server: which request it is, who answers it, how refusals look."""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple, Protocol

from ringserve.broker.messages import Code, Failure
from ringserve.config.process import of_request
from ringserve.frontend import request_ids, rest_timeout
from ringserve.frontend.access import Refusal
from ringserve.frontend.audit import AuditedExchange
from ringserve.frontend.bugs import BUG_RATE
from ringserve.frontend.console import DATA_HEADERS, PAGE_HEADERS, assets
from ringserve.frontend.http1.exchange import Exchange, Head
from ringserve.frontend.json_text import error_body
from ringserve.frontend.rest_access import RUN, RestGuard, headers_of, shown
from ringserve.frontend.rest_admin import Admin
from ringserve.frontend.rest_call import BUG, RestCall, RestClient, RestSettings, Side, cors_lines
from ringserve.frontend.rest_npy import sends_npy, wants_npy
from ringserve.frontend.rest_open_inference import Framing, OpenInference, framing_of
from ringserve.frontend.rest_predict import Ask, Inference
from ringserve.frontend.rest_ready import Readiness
from ringserve.frontend.rest_routes import (
    ADMIN,
    OVERVIEW,
    Action,
    Page,
    Route,
    allowed_v2,
    is_api,
    is_open_inference,
    route,
)
from ringserve.frontend.rest_status import metadata_body, status_body
from ringserve.frontend.status import http_status
from ringserve.frontend.tally import Tally

__all__ = ["RestApp", "RestSettings", "error_page", "make_app"]

log = logging.getLogger(__name__)
log.addFilter(BUG_RATE)

_HTML: Final = b"text/html; charset=ISO-8859-1"
_TEXT: Final = b"text/plain; charset=utf-8"
_JSON: Final = b"application/json"
#: Who asks, where nobody has looked.
_NOBODY: Final = "-"
_V2_TOLD: Final = (Action.LIVE, Action.READY_V2, Action.SERVER, Action.MODEL)


class MetricPages(Protocol):
    """Writes the metrics pages (`exposition.Exposition`)."""

    async def render_tfs(self) -> bytes:
        """TF Serving's page."""

    async def render(self) -> tuple[bytes, str]:
        """The whole page, and its content type."""


class OverviewPage(Protocol):
    """Writes what the console shows (`console.Overview`)."""

    async def write(self) -> bytes:
        """JSON."""


class _Meaning(NamedTuple):
    """What a head means; found out once for all requests of the same bytes.

    timeout_ns: 0 for none, -1 when its header makes no sense. is_counted: whether TF Serving counts such requests.
    framing: of the Open Inference protocol's bodies.
    """

    target: Route | Failure | Page
    ask: Ask
    headers: bytes
    is_counted: bool
    shown: bytes | None
    framing: Framing | Failure = Framing()


def make_app(
    client: RestClient,
    settings: RestSettings | None = None,
    *,
    tally: Tally | None = None,
    metrics: MetricPages | None = None,
    guard: RestGuard | None = None,
    overview: OverviewPage | None = None,
) -> RestApp:
    """The REST application of one frontend. tally: counts requests. metrics: writes the pages that show the counts.

    guard: judges who may ask for what; None: everybody may. overview: what the console shows; None: no console.
    """
    return RestApp(client, settings or RestSettings(), tally or Tally(), metrics, guard, overview)


class RestApp:
    """Answers every HTTP request; never raises. `handle` is what the server calls."""

    def __init__(
        self,
        client: RestClient,
        settings: RestSettings,
        tally: Tally,
        metrics: MetricPages | None,
        guard: RestGuard | None = None,
        overview: OverviewPage | None = None,
    ) -> None:
        self._guard = guard
        self._overview = overview
        self._assets = assets() if overview is not None else {}
        self._client = client
        self._settings = settings
        self._tally = tally
        self._metrics = metrics
        self._side = Side()
        self._inference = Inference(client, settings, tally, self._side)
        self._admin = Admin(client, settings.admin)
        self._readiness = Readiness(client)
        room = self._inference.slow_room
        self._open_inference = OpenInference(client, settings, tally, self._side, self._readiness, room)

    def begin_drain(self) -> None:
        """The server takes no new connections from here on: it is not ready any more."""
        self._readiness.is_draining = True

    def close(self) -> None:
        """End the side threads when their present work is done."""
        self._side.close()

    def handle(self, exchange: Exchange) -> None:
        """One HTTP request."""
        head = exchange.head
        meaning = head.memo
        if meaning is None:
            meaning = head.memo = self._meaning(head)
        who = _NOBODY
        try:
            if self._guard is not None:
                judged = self._guard.judge(exchange, meaning.target, meaning.shown)
                if isinstance(judged, Refusal):
                    self._refuse(exchange, meaning, judged)
                    return
                who = judged.name if judged is not None else who
            if meaning.is_counted:
                self._api(exchange, meaning)
            else:
                self._other(exchange, meaning.target, who)
        except Exception:
            made_id = "" if exchange.request_id else request_ids.make()
            log.exception("request for %r", head.target, extra=of_request(exchange.request_id or made_id))
            exchange.answer(http_status(BUG.code), error_body(BUG.text), made_id=made_id)

    def _refuse(self, exchange: Exchange, meaning: _Meaning, refusal: Refusal) -> None:
        failure, headers = Failure(refusal.code, refusal.text), headers_of(refusal)
        if meaning.is_counted:
            api = meaning.ask.route.action.value if meaning.ask.route.action in RUN else ""
            RestCall(exchange, self._tally, meaning.headers + headers, api, "").fail(failure)
            return
        if meaning.ask.route.action is Action.ADMIN:
            exchange = AuditedExchange(exchange, "(refused)")
        exchange.answer(http_status(failure.code), error_body(failure.text), _JSON, headers)

    def _meaning(self, head: Head) -> _Meaning:
        target: Route | Failure | Page = route(head.method, head.target)
        is_v2 = is_open_inference(head.target)
        if not self._settings.models and (is_api(head.target) or is_v2):
            target = Page.NOT_FOUND
            return _Meaning(target, Ask(Route(Action.OPTIONS), False, 0), b"", False, None)
        is_counted = is_api(head.target) and target is not Page.NOT_IMPLEMENTED
        if is_v2 and isinstance(target, Route):
            is_counted = target.action in (Action.INFER, Action.OPTIONS)
        path = head.target.partition("?")[0]
        if self._settings.metrics_path and path == self._settings.metrics_path and target is not Page.NOT_IMPLEMENTED:
            target = Route(Action.METRICS, "tfs", label=head.target if path != head.target else None)
            is_counted = False
        if self._overview is not None and head.method in ("GET", "HEAD"):
            if path in self._assets:
                target = Route(Action.CONSOLE, path)
            elif path == OVERVIEW:
                target = Route(Action.OVERVIEW)
        is_gzip = any(b"gzip" in value for name, value in head.headers if name == b"content-encoding")
        route_asked = target if isinstance(target, Route) else Route(Action.OPTIONS)
        own = head.get(rest_timeout.HEADER)
        timeout_ns = max(self._settings.timeout_ms, 0) * 1_000_000 if own is None else rest_timeout.parse_timeout(own)
        patience_ns = rest_timeout.patience_of(timeout_ns)
        ask = Ask(route_asked, is_gzip, timeout_ns, own is not None, sends_npy(head), wants_npy(head), patience_ns)
        is_open = self._settings.cors and is_counted
        cors = cors_lines(guarded=self._guard is not None, is_v2=is_v2) if is_open else b""
        framing = framing_of(head) if route_asked.action is Action.INFER else Framing()
        return _Meaning(target, ask, cors, is_counted, shown(head) if self._guard is not None else None, framing)

    # ------------------------------------------------------------------------------------------ TF Serving's own

    def _api(self, exchange: Exchange, meaning: _Meaning) -> None:
        target = meaning.target
        if type(target) is not Route:
            call = RestCall(exchange, self._tally, meaning.headers, "", "")
            if isinstance(target, Failure):
                call.fail(target)
            elif isinstance(target, Page):
                call.answer(target.status, target.body, _JSON, int(Code.INVALID_ARGUMENT))
            return
        action, name, version, label = target
        if action in RUN:
            self._run(exchange, meaning, target)
        elif action is Action.STATUS:
            # A label in a status request means nothing.
            call = RestCall(exchange, self._tally, meaning.headers, "", name)
            call.settle(status_body(self._client.catalog, name, version))
        elif action is Action.METADATA:
            call = RestCall(exchange, self._tally, meaning.headers, "", name)
            call.settle(metadata_body(self._client.catalog, name, version, label))
        else:
            self._options(exchange, meaning)

    def _run(self, exchange: Exchange, meaning: _Meaning, target: Route) -> None:
        action, ask = target.action, meaning.ask
        call = RestCall(exchange, self._tally, meaning.headers, action.value, target.name)
        if ask.timeout_ns < 0:
            call.fail(rest_timeout.BAD_TIMEOUT)
        elif ask.patience_ns and call.is_late(ask.patience_ns):
            call.turn_away()
        elif action is Action.PREDICT:
            self._inference.predict(call, ask)
        elif action is Action.INFER:
            self._open_inference.infer(call, target, meaning.framing, ask.timeout_ns, is_own=ask.is_own_timeout)
        else:
            self._inference.examples(call, ask)

    def _options(self, exchange: Exchange, meaning: _Meaning) -> None:
        origin = exchange.head.get(b"origin") or b""
        allowed = b"http://" in origin or b"https://" in origin
        code = Code.OK if allowed else Code.INVALID_ARGUMENT
        call = RestCall(exchange, self._tally, meaning.headers, "", "")
        call.answer(200 if allowed else 400, b"", _HTML, int(code))

    # --------------------------------------------------------------------------------------------------- all else

    def _other(self, exchange: Exchange, target: Any, who: str) -> None:
        if isinstance(target, Page) and is_open_inference(exchange.head.target):
            allowed = allowed_v2(exchange.head.target) if target is Page.NOT_ALLOWED else b""
            exchange.answer(target.status, error_body(target.reason or "no such version"), _JSON, allowed)
        elif isinstance(target, Page):
            exchange.answer(target.status, target.body, _HTML)
        elif target.action in _V2_TOLD:
            self._open_inference.tell(exchange, target, names=self._tells_names(who))
        elif target.action is Action.HEALTH:
            exchange.answer(200, b"ok\n", _TEXT)
        elif target.action is Action.READY:
            status, text = self._readiness.answer(target.name, names=self._tells_names(who))
            exchange.answer(status, text.encode(), _TEXT)
        elif target.action is Action.METRICS:
            self._metrics_page(exchange, target)
        elif target.action is Action.CONSOLE:
            asset = self._assets[target.name]
            exchange.answer(200, asset.body, asset.content_type, PAGE_HEADERS)
        elif target.action is Action.OVERVIEW:
            self._show_overview(exchange)
        else:
            # Whoever watches this server asks for the canary all the time; nothing comes of it.
            unnoted = self._settings.admin == "off" or exchange.head.target == f"{ADMIN}canary"
            self._admin.handle(exchange if unnoted else AuditedExchange(exchange, who))

    def _tells_names(self, who: str) -> bool:
        """Whether one who asks of the server's state without naming a model may know which there are."""
        return self._guard is None or who != _NOBODY

    def _show_overview(self, exchange: Exchange) -> None:
        """No operator's call in the log: a page that is open asks every other second, as who scrapes metrics does."""
        refusal = self._admin.refusal(exchange, to_own_page=True)
        if refusal is not None:
            exchange.answer(403, error_body(refusal))
        elif self._overview is not None:
            self._side.spawn(self._write_overview(exchange, self._overview))

    async def _write_overview(self, exchange: Exchange, overview: OverviewPage) -> None:
        try:
            exchange.answer(200, await overview.write(), _JSON, DATA_HEADERS)
        except Exception:
            log.exception("the overview")
            exchange.answer(http_status(BUG.code), error_body(BUG.text))

    def _metrics_page(self, exchange: Exchange, target: Route) -> None:
        if target.label is not None:
            text = f"Unexpected path: {target.label}. Should be {self._settings.metrics_path}"
            exchange.answer(400, text.encode(), b"text/plain")
        elif self._metrics is None or not self._settings.metrics:
            exchange.answer(Page.NOT_FOUND.status, Page.NOT_FOUND.body, _HTML)
        else:
            self._side.spawn(self._write_metrics(exchange, self._metrics, of_tfs=bool(target.name)))

    async def _write_metrics(self, exchange: Exchange, pages: MetricPages, *, of_tfs: bool) -> None:
        try:
            if of_tfs:
                exchange.answer(200, await pages.render_tfs(), b"text/plain")
            else:
                body, content_type = await pages.render()
                exchange.answer(200, body, content_type.encode())
        except Exception:
            log.exception("the metrics page")
            exchange.answer(500, b"internal error; see the log of the server\n", _TEXT)


_PAGES: Final = {page.status: page for page in (Page.BAD_REQUEST, Page.NOT_IMPLEMENTED)}


def error_page(status: int, text: str) -> tuple[bytes, bytes]:
    """What the HTTP server's own refusals look like: libevent's pages where TF Serving shows them, else JSON."""
    page = _PAGES.get(status)
    return (error_body(text), _JSON) if page is None else (page.body, _HTML)
