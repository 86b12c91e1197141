"""A call from end to end that says whether a server works: frontend, broker and an idle worker must answer it.

It needs no model. A server that is busy, or still loads, answers it, too (`broker/operators.py`): it fails only when a
process is stuck that nobody else has noticed.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from typing import Final

log = logging.getLogger(__name__)

PATH: Final = "/ringserve/v1/canary"


def call(socket_path: str, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, str]:
    """One HTTP request to the operators' UNIX socket. Returns the status and the text. Raises OSError, which includes
    a time that is over, and http.client.HTTPException."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(socket_path)
        connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def ask(socket_path: str, timeout_s: float) -> str:
    """The call. Returns what is wrong; empty when all is well."""
    try:
        status, text = call(socket_path, "GET", PATH, None, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return "" if status == 200 else f"HTTP {status}: {text}"


class Canary:
    """Makes such a call again and again from a thread of its own, once `is_well` was asked for the first time.

    path: see `ask`. period_ns: between two calls, and how long one may take; 0: none are made, and all is well.
    """

    def __init__(self, path: str, period_ns: int) -> None:
        self._path = path
        self._period_ns = period_ns
        self._well_ns = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def is_well(self, now_ns: int) -> bool:
        """Whether the last call that was answered is recent enough: two may fail. now_ns: by time.monotonic_ns."""
        if not self._period_ns:
            return True
        if self._thread is None:
            self._well_ns = now_ns
            self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
            self._thread.start()
        return now_ns - self._well_ns <= 3 * self._period_ns

    def _run(self) -> None:
        period_s = self._period_ns / 1e9
        while not self._over.is_set():
            wrong = ask(self._path, period_s)
            if not wrong:
                self._well_ns = time.monotonic_ns()
            elif not self._over.is_set():
                log.warning("the canary was not answered: %s", wrong)
            self._over.wait(period_s)

    def close(self) -> None:
        """Make no more calls. Does not wait for the one that is under way."""
        self._over.set()
