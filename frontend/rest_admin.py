"""Operating the server over REST, below /ringserve/v1/: look at it, change its models, record warm-up requests.

    GET    models                   GET models/M              GET config           GET state         GET canary
    PUT    models/M                 DELETE models/M           POST config          POST rescan
    PUT    models/M/labels          PUT models/M/batching     POST models/M:record

What changes something is an Ask to the broker; this file says who may ask, and what in which words. No web page can
send these requests: what a browser marks as a page's is refused, whatever site it says it is of; those with a body must
say that it is JSON, which a browser sends to other sites after asking them only; and where only this host may ask, the
server must be called by an address or name of this host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from ringserve.broker.messages import Code, Failure
from ringserve.config.model_config import ModelConfigError, config_dict, parse_model, parse_model_config
from ringserve.config.process import of_request
from ringserve.config.protos import ModelServerConfig
from ringserve.frontend.bugs import BUG_RATE
from ringserve.frontend.http1.exchange import JSON, Exchange, Head
from ringserve.frontend.json_text import error_body
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.rest_call import BUG, RestClient
from ringserve.frontend.rest_routes import ADMIN, Page, decoded
from ringserve.frontend.rest_status import model_summary, models_summary
from ringserve.frontend.status import http_status

log = logging.getLogger(__name__)
log.addFilter(BUG_RATE)

_HTML: Final = b"text/html; charset=ISO-8859-1"
_FILE: Final = b"application/octet-stream"

#: How long the broker may take for what loads no model.
_PATIENCE_S: Final = 30.0
_RECORDS_DEFAULT: Final = 100
_RECORDS_MAX: Final = 1000
_SECONDS_DEFAULT: Final = 10.0
_SECONDS_MAX: Final = 3600.0

#: Headers of proxies: behind one everybody seems to be on this host.
_FORWARDED: Final = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"))


class Reply(NamedTuple):
    """What an endpoint answers."""

    body: bytes
    content_type: bytes = JSON


_Outcome = Reply | Failure
#: (exchange, the model's name or "", the body) -> outcome
_Endpoint = Callable[[Exchange, str, bytes], Awaitable[_Outcome]]

_NAME: Final = r"models/([^/:]+)"


class Admin:
    """The endpoints. policy: who may use them: `local`, `all` or `off`."""

    def __init__(self, client: RestClient, policy: str) -> None:
        self._client = client
        self._policy = policy
        self._tasks: set[asyncio.Task[None]] = set()
        endpoints: list[tuple[str, str, _Endpoint]] = [
            ("GET", r"models", self._get_models),
            ("GET", _NAME, self._get_model),
            ("PUT", _NAME, self._put_model),
            ("DELETE", _NAME, self._delete_model),
            ("PUT", rf"{_NAME}/labels", self._put_labels),
            ("PUT", rf"{_NAME}/batching", self._put_batching),
            ("POST", rf"{_NAME}:record", self._record),
            ("GET", r"config", self._get_config),
            ("POST", r"config", self._post_config),
            ("POST", r"rescan", self._rescan),
            ("GET", r"state", self._get_state),
            ("GET", r"canary", self._get_canary),
        ]
        self._endpoints = [(method, re.compile(path), endpoint) for method, path, endpoint in endpoints]

    def handle(self, exchange: Exchange) -> None:
        """One request below ADMIN."""
        if self._policy == "off":
            exchange.answer(Page.NOT_FOUND.status, Page.NOT_FOUND.body, _HTML)
            return
        head = exchange.head
        refusal = self.refusal(exchange)
        if refusal is not None:
            exchange.answer(403, error_body(refusal))
            return
        path = head.target[len(ADMIN) :]
        found = [(method, match, endpoint) for method, pattern, endpoint in self._endpoints
                 if (match := pattern.fullmatch(path)) is not None]  # fmt: skip
        if not found:
            exchange.answer(404, error_body(f"there is nothing at {ADMIN}{path}"))
            return
        for method, match, endpoint in found:
            if method == head.method:
                if method in ("PUT", "POST") and not _says_json(head.get(b"content-type")):
                    exchange.answer(415, error_body("the request must say Content-Type: application/json"))
                    return
                self._spawn(self._answer(exchange, endpoint, decoded(match[1]) if match.groups() else ""))
                return
        allowed = ", ".join(sorted(method for method, _, _ in found))
        exchange.answer(405, error_body(f"only {allowed} can be done here"), JSON, f"Allow: {allowed}\r\n".encode())

    def refusal(self, exchange: Exchange, *, to_own_page: bool = False) -> str | None:
        """Why this client may not, if so. to_own_page: the console's page may, where it came from this server."""
        head = exchange.head
        if not (to_own_page and _is_own_page(head)) and any(
            name == b"origin" or (name == b"sec-fetch-site" and value != b"none") for name, value in head.headers
        ):
            return "no web page operates this server: requests with Origin are refused"
        if self._policy == "all":
            return None
        if not exchange.peer_is_local or any(name in _FORWARDED for name, _ in head.headers):
            return "only clients on this host may do this (rest_admin)"
        if not _names_this_host(head.get(b"host")):
            # A web page can give its own name this host's address, and so let a browser on this host ask for it.
            return "from this host, call the server by its address, or as localhost (rest_admin)"
        return None

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange, endpoint: _Endpoint, name: str) -> None:
        try:
            outcome = await endpoint(exchange, name, bytes(exchange.take_body()))
        except _BadBodyError as error:
            outcome = Failure(Code.INVALID_ARGUMENT, str(error))
        except ModelConfigError as error:
            outcome = Failure(Code(error.code), error.text)
        except Exception:
            what = of_request(exchange.request_id)
            log.exception("%s %s", exchange.head.method, exchange.head.target, extra=what)
            outcome = BUG
        if isinstance(outcome, Failure):
            exchange.answer(http_status(outcome.code), error_body(outcome.text))
        else:
            exchange.answer(200, outcome.body, outcome.content_type)

    # --------------------------------------------------------------------------------------------------- looking

    async def _get_models(self, _: Exchange, __: str, ___: bytes) -> _Outcome:
        return Reply(models_summary(self._client.catalog))

    async def _get_model(self, _: Exchange, name: str, __: bytes) -> _Outcome:
        summary = model_summary(self._client.catalog, name)
        return summary if isinstance(summary, Failure) else Reply(summary)

    async def _get_config(self, _: Exchange, __: str, ___: bytes) -> _Outcome:
        told = await self._ask("config", b"", _PATIENCE_S)
        if isinstance(told, Failure):
            return told
        try:
            config = ModelServerConfig.FromString(told.body)
        except DecodeError:
            return Failure(Code.INTERNAL, "the broker's configuration cannot be read")
        return Reply(_printed(config_dict(config)))

    async def _get_state(self, _: Exchange, __: str, ___: bytes) -> _Outcome:
        return await self._ask("state", b"", _PATIENCE_S)

    async def _get_canary(self, _: Exchange, __: str, ___: bytes) -> _Outcome:
        """That this is answered says that frontend, broker and workers turn."""
        return await self._ask("canary", b"", _PATIENCE_S)

    # -------------------------------------------------------------------------------------------------- changing

    async def _put_model(self, _: Exchange, name: str, body: bytes) -> _Outcome:
        config = parse_model(_text(body))
        if config.name not in ("", name):
            raise _BadBodyError(f"the body names the model {config.name}, the path {name}")
        config.name = name
        if not config.model_platform and not config.model_type:
            config.model_platform = "tensorflow"  # the only one there is
        return await self._ask("add", config.SerializeToString(), None)

    async def _delete_model(self, _: Exchange, name: str, __: bytes) -> _Outcome:
        return await self._ask("remove", name.encode(), _PATIENCE_S)

    async def _put_labels(self, _: Exchange, name: str, body: bytes) -> _Outcome:
        labels = _object(body)
        for label, version in labels.items():
            if type(version) is not int:
                raise _BadBodyError(f"the version of label {label} is no integer")
        return await self._ask("labels", orjson.dumps({"model": name, "labels": labels}), _PATIENCE_S)

    async def _put_batching(self, _: Exchange, name: str, body: bytes) -> _Outcome:
        return await self._ask("batching", orjson.dumps({"model": name, "batching": _object(body)}), _PATIENCE_S)

    async def _post_config(self, _: Exchange, __: str, body: bytes) -> _Outcome:
        return await self._ask("reload", parse_model_config(_text(body)).SerializeToString(), None)

    async def _rescan(self, _: Exchange, __: str, ___: bytes) -> _Outcome:
        return await self._ask("rescan", b"", _PATIENCE_S)

    async def _ask(self, verb: str, body: bytes, timeout_s: float | None) -> _Outcome:
        code, text, told = await self._client.ask(verb, body, timeout_s)
        if code != Code.OK:
            return Failure(Code(code) if code in _CODES else Code.UNKNOWN, text)
        return Reply(told or b"{}")

    # ------------------------------------------------------------------------------------------------- recording

    async def _record(self, exchange: Exchange, name: str, body: bytes) -> _Outcome:
        """Wait for requests of a model and answer them as a warm-up file."""
        wanted = _object(body)
        count = _number(wanted, "count", _RECORDS_DEFAULT, _RECORDS_MAX)
        seconds = _number(wanted, "seconds", _SECONDS_DEFAULT, _SECONDS_MAX)
        if name not in self._client.catalog.names():
            return Failure(Code.NOT_FOUND, f"no such model: {name}")
        client = self._client
        if client.recorder is None:
            client.recorder = Recorder()
        recorder = client.recorder
        recording = recorder.begin(name, int(count))
        if recording is None:
            return Failure(Code.RESOURCE_EXHAUSTED, "enough requests are being recorded already")
        exchange.on_cancel(recording.done.set)
        try:
            async with asyncio.timeout(seconds):
                await recording.done.wait()
        except TimeoutError:
            pass
        finally:
            if recorder.end(recording):
                client.recorder = None
        if not recording.count:
            return Failure(Code.DEADLINE_EXCEEDED, f"no request of model {name} came within {seconds:g} s")
        return Reply(recording.file(), _FILE)


_CODES: Final = frozenset(int(code) for code in Code)


class _BadBodyError(Exception):
    """The request's body is not what the endpoint takes."""


def _says_json(value: bytes | None) -> bool:
    return value is not None and value.split(b";")[0].strip().lower() == b"application/json"


def _is_own_page(head: Head) -> bool:
    """The browser says that the page came from where this request goes, and nobody else's name can lead here: it is an
    address, or the page knows a key."""
    if head.get(b"sec-fetch-site") != b"same-origin" or head.get(b"origin") is not None:
        return False
    return _names_this_host(head.get(b"host")) or head.get(b"authorization") is not None


def _names_this_host(host: bytes | None) -> bool:
    if host is None:
        return True
    name = host.decode("latin-1").lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise _BadBodyError("the body is not UTF-8") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise _BadBodyError(f"the body is no JSON: {error}") from None
    if type(value) is not dict:
        raise _BadBodyError("the body is no JSON object")
    return value


def _number(values: dict[str, Any], key: str, default: float, high: float) -> float:
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= high:
        raise _BadBodyError(f"{key} must be a number above 0, up to {high:g}")
    return float(value)


def _printed(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
