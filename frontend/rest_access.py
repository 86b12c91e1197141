"""Access control of the REST API: what a request needs, and how a refusal looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ringserve.broker.messages import Code
from ringserve.frontend.access import Access, Key, Refusal
from ringserve.frontend.http1.exchange import Exchange, Head
from ringserve.frontend.rest_routes import Action, Route

#: Actions that run a model.
RUN: Final = (Action.PREDICT, Action.CLASSIFY, Action.REGRESS, Action.INFER)
_LOOK: Final = (Action.STATUS, Action.METADATA, Action.MODEL)
_OPEN: Final = (Action.OPTIONS, Action.CONSOLE)
_HEALTH: Final = (Action.HEALTH, Action.READY, Action.LIVE, Action.READY_V2)


class RestGuard:
    """Judges requests. count: told of every refusal's reason. open_health: health needs no key."""

    def __init__(self, access: Access, count: Callable[[str], None], *, open_health: bool = True) -> None:
        self._access = access
        self._count = count
        self._open_health = open_health

    def judge(self, exchange: Exchange, target: object, shown: bytes | None) -> Key | Refusal | None:
        """Who asks, or why that is refused; None for what needs no key: health, if it is open, what a browser asks
        before it asks (it shows no key then), the console's page, which asks for the key, and what is no request of
        the API."""
        if not isinstance(target, Route) or target.action in _OPEN:
            return None
        action, model = target.action, target.name
        # What is open is whether a model of some name is ready, and nothing of its versions.
        is_of_version = target.version is not None or target.label is not None
        if action in _HEALTH and self._open_health and not is_of_version:
            return None
        key = self._access.admit(shown, exchange.names)
        if isinstance(key, Key):
            if action in RUN:
                key = key if key.may_predict(model) else key.refused(f"use the model {model}")
            elif action in _LOOK or (action in _HEALTH and is_of_version):
                key = key if key.may_look(model) else key.refused(f"look at the model {model}")
            elif action is Action.ADMIN:
                key = key if key.is_admin else key.refused("operate the server")
            else:
                key = key if key.is_status else key.refused("ask for the server's state")
        if isinstance(key, Refusal):
            self._count(key.reason)
        return key


def shown(head: Head) -> bytes | None:
    """What a request shows: its `Authorization`, or without one its `X-API-Key`. An empty one is shown, too."""
    authorization = head.get(b"authorization")
    return authorization if authorization is not None else head.get(b"x-api-key")


def headers_of(refusal: Refusal) -> bytes:
    """The header lines that tell a client what to do."""
    if refusal.code == Code.UNAUTHENTICATED:
        wrong = ', error="invalid_token"' if refusal.reason == "unknown" else ""
        return f'WWW-Authenticate: Bearer realm="ringserve"{wrong}\r\n'.encode()
    return b"Retry-After: %d\r\n" % refusal.retry_after_s if refusal.retry_after_s else b""
