"""Which request a URL means: TF Serving's rules and ours, as one pure function.

Below /v1 path and query are matched together, so a query makes a POST malformed and becomes part of a GET's model name.
Names are percent-decoded after matching.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from ringserve.broker.messages import Code, Failure

_INT64_MAX: Final = 2**63 - 1

_FLAGS: Final = re.IGNORECASE | re.ASCII
_API: Final = re.compile(r"/v1/.*", _FLAGS)
_VERSION: Final = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_POST: Final = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", _FLAGS)
_GET: Final = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", _FLAGS)
_V2: Final = re.compile(r"/v2(?:/.*)?")
_V2_MODEL: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready))?")
_READY: Final = re.compile(r"/readyz/([^/]+)")

#: What our own API begins with.
ADMIN: Final = "/ringserve/v1/"
#: What the console's page is drawn from.
OVERVIEW: Final = "/ringserve/v1/overview"

#: Methods that TF Serving's HTTP library knows; all others are answered 501 whatever the path.
METHODS: Final = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))


class Action(Enum):
    """What is asked for."""

    PREDICT = "predict"
    CLASSIFY = "classify"
    REGRESS = "regress"
    STATUS = "status"
    METADATA = "metadata"
    OPTIONS = "options"
    HEALTH = "health"
    READY = "ready"
    METRICS = "metrics"
    CONSOLE = "console"
    OVERVIEW = "overview"
    ADMIN = "admin"
    INFER = "infer"
    LIVE = "live"
    READY_V2 = "ready_v2"
    SERVER = "server"
    MODEL = "model"


_OF_WATCHERS: Final = (Action.HEALTH, Action.READY, Action.LIVE, Action.READY_V2, Action.METRICS, Action.ADMIN)
#: How paths end that may be theirs below /v2.
WATCHERS_V2: Final = ("/ready", "/live")


class Route(NamedTuple):
    """A request of the API. version and label are never both set. name: of READY and READY_V2, empty for all models; of
    CONSOLE, the path of the file."""

    action: Action
    name: str = ""
    version: int | None = None
    label: str | None = None


class Page(Enum):
    """Refusals that are no JSON: HTTP status, and what the page says (nothing: an empty body)."""

    BAD_REQUEST = (400, "Bad Request")
    BAD_VERSION = (400, "")
    NOT_FOUND = (404, "Not Found")
    NOT_ALLOWED = (405, "Method Not Allowed")
    NOT_IMPLEMENTED = (501, "Not Implemented")

    @property
    def status(self) -> int:
        """The HTTP status."""
        status: int = self.value[0]
        return status

    @property
    def reason(self) -> str:
        """The status in words; empty for a page without any."""
        reason: str = self.value[1]
        return reason

    @property
    def body(self) -> bytes:
        """The page of libevent, TF Serving's HTTP library."""
        status, reason = self.value
        if not reason:
            return b""
        return (
            f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n</BODY></HTML>\n"
        ).encode()


_OURS: Final = {
    "/healthz": Route(Action.HEALTH),
    "/readyz": Route(Action.READY),
    "/metrics": Route(Action.METRICS),
}
_V2_OURS: Final = {
    "/v2": Route(Action.SERVER),
    "/v2/": Route(Action.SERVER),
    "/v2/health/live": Route(Action.LIVE),
    "/v2/health/ready": Route(Action.READY_V2),
}


def is_api(target: str) -> bool:
    """Whether TF Serving's API answers this target: its answers are counted, and may have CORS headers."""
    return _API.fullmatch(target) is not None


def is_open_inference(target: str) -> bool:
    """Whether a target is the Open Inference protocol's."""
    return _V2.fullmatch(target.partition("?")[0]) is not None


def is_of_watchers(method: str, target: str) -> bool:
    """Whether it is asked by those who watch or operate the server, all the time: health, metrics, operators' calls."""
    found = route(method, target)
    return isinstance(found, Route) and found.action in _OF_WATCHERS


def route(method: str, target: str) -> Route | Failure | Page:
    """The request that a method and an undecoded target mean, or how they are refused."""
    if method not in METHODS:
        return Page.NOT_IMPLEMENTED
    if not is_api(target):
        return _own_route(method, target)
    if method == "POST":
        match = _POST.fullmatch(target)
        # Letter case is ignored in all but the verb.
        if match is not None and match[4].islower():
            return _route(Action(match[4]), match)
    elif method == "GET":
        match = _GET.fullmatch(target)
        if match is not None:
            if match[1] is None:
                return Failure(Code.INVALID_ARGUMENT, "Missing model name in request.")
            return _route(Action.STATUS if match[4] is None else Action.METADATA, match)
    elif method == "OPTIONS":
        return Route(Action.OPTIONS)
    return Failure(Code.INVALID_ARGUMENT, f"Malformed request: {method} {target}")


def _own_route(method: str, target: str) -> Route | Page:
    path = target.partition("?")[0]
    if path.startswith(ADMIN):
        return Route(Action.ADMIN)
    if _V2.fullmatch(path) is not None:
        return _open_inference_route(method, path)
    if method not in ("GET", "HEAD"):
        return Page.NOT_FOUND
    if path in _OURS:
        return _OURS[path]
    match = _READY.fullmatch(path)
    return Page.NOT_FOUND if match is None else Route(Action.READY, decoded(match[1]))


def _open_inference_route(method: str, path: str) -> Route | Page:
    if method == "OPTIONS":
        return Route(Action.OPTIONS)
    found: Route | Page | None = _V2_OURS.get(path)
    match = None if found is not None else _V2_MODEL.fullmatch(path)
    if match is not None:
        name, version, verb = match[1], match[2], match[3]
        action = {"infer": Action.INFER, "ready": Action.READY_V2, None: Action.MODEL}[verb]
        if version is None or (version.isascii() and version.isdigit()):
            found = _numbered(action, name, version, None)
        else:
            # The protocol's versions are any text: a label is one, too.
            found = Route(action, decoded(name), None, decoded(version))
    if found is None:
        return Page.NOT_FOUND
    is_asked_well = method == "POST" if match is not None and match[3] == "infer" else method in ("GET", "HEAD")
    return found if is_asked_well else Page.NOT_ALLOWED


def _route(action: Action, match: re.Match[str]) -> Route | Page:
    return _numbered(action, match[1], match[2], match[3])


def _numbered(action: Action, name: str, version: str | None, label: str | None) -> Route | Page:
    number = None
    if version is not None:
        digits = version.lstrip("0")
        number = int(digits or "0") if len(digits) <= 19 else _INT64_MAX + 1
        if number > _INT64_MAX:
            return Page.BAD_VERSION
    return Route(action, decoded(name), number, None if label is None else decoded(label))


def allowed_v2(target: str) -> bytes:
    """The header line that says which methods a target below /v2 has, for who asked by another."""
    is_infer = isinstance(route("POST", target), Route)
    return b"Allow: POST, OPTIONS\r\n" if is_infer else b"Allow: GET, HEAD, OPTIONS\r\n"


def decoded(text: str) -> str:
    """A part of a target without percent-encoding."""
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "replace")
