"""Calls to a running server's REST API: JSON in and out, failures in words."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlsplit

from ringserve.commands.console import Failed, Status


class Refused(Failed):
    """The server answered, and said no. http_status: how."""

    def __init__(self, http_status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = http_status


class Api:
    """The REST API at `url` (`http://host:8501`, or `host:8501`)."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._timeout_s = timeout_s
        if not self.url.startswith(("http://", "https://")):
            raise Failed(f"{url} is no address of a server, such as http://127.0.0.1:8501", Status.USAGE)

    def raw(self, method: str, path: str, body: bytes | None = None, timeout_s: float | None = None) -> bytes:
        """The answer's bytes. Raises Refused for an HTTP status that is no success, Failed when nobody answers."""
        import urllib.error
        import urllib.request

        request = urllib.request.Request(self.url + path, data=body, method=method)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        # A proxy on the way to this very host would be somebody else to the server, who may not operate it.
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        try:
            with opener.open(request, timeout=timeout_s or self._timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _error_text(error.read()) or f"HTTP {error.code} {error.reason}") from error
        except TimeoutError as error:
            raise Failed(f"{self.url} did not answer in time", Status.UNREACHABLE) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason
            raise Failed(f"nobody answers at {self.url}: {reason}", Status.UNREACHABLE) from error

    def call(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """The same with JSON values. body: None for none; bytes as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.raw(method, path, data, timeout_s)
        try:
            return json.loads(answer or b"null")
        except ValueError as error:
            raise Failed(f"{self.url}{path} answered something that is no JSON: is it a model server?") from error

    def admin(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """A call of ringserve's own API. Raises Refused with a hint where that is not to be had."""
        try:
            return self.call(method, f"/ringserve/v1/{path}", body, timeout_s)
        except Refused as error:
            if error.http_status == 404 and "<HTML>" in error.message:
                text = f"{self.url} has no admin API: it is off (rest_admin), or this is another server than ringserve"
                raise Failed(text) from error
            raise

    def models(self) -> list[dict[str, Any]]:
        """What `GET /ringserve/v1/models` says of each model."""
        return list(self.admin("GET", "models")["models"])


def model_path(name: str, rest: str = "") -> str:
    """`models/NAME` with the name coded for a URL."""
    return f"models/{quote(name, safe='')}{rest}"


def target_path(name: str, version: int | None, label: str | None, verb: str = "") -> str:
    """TensorFlow Serving's path of a model, of one version, or of a label."""
    where = f"/versions/{version}" if version is not None else f"/labels/{quote(label, safe='')}" if label else ""
    return f"/v1/models/{quote(name, safe='')}{where}{verb}"


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
