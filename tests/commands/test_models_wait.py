"""`ringserve models status --wait` beside a server that has only begun to start."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from ringserve.commands.models import models

#: What a server says of a model from its start on: it does not know it, it loads it, it serves it.
_SERVED = {
    "name": "line", "ready": True, "serving": 1, "labels": {},
    "versions": [{"version": 1, "state": "AVAILABLE", "error": None}],
}  # fmt: skip
_ANSWERS = [
    (503, {"error": "The server is starting: model line may not be loaded yet. Try again."}),
    (404, {"error": "no model line"}),
    (200, _SERVED | {"ready": False, "versions": [{"version": 1, "state": "LOADING", "error": None}]}),
]


class _Starting(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        status, answer = _ANSWERS[_Starting.asked] if _Starting.asked < len(_ANSWERS) else (200, _SERVED)
        _Starting.asked += 1
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    _Starting.asked = 0
    with HTTPServer(("127.0.0.1", 0), _Starting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_waiting_goes_on_while_the_server_starts(url: str) -> None:
    result = CliRunner().invoke(models, ["status", "line", "--wait", "--json", "--url", url])
    assert result.exit_code == 0, result.output
    assert _Starting.asked == len(_ANSWERS) + 1


def test_who_does_not_wait_is_told_so(url: str) -> None:
    result = CliRunner().invoke(models, ["status", "line", "--url", url])
    assert result.exit_code != 0
    assert "starting" in result.output
