"""A headless Chromium for tests, spoken to over its debugging pipe (Chrome DevTools Protocol, JSON with NULs between).

No driver and no port: descriptors 3 and 4 of the browser are the pipe.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.server import wait_until

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), "")

_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
          "--remote-debugging-pipe"]  # fmt: skip


class Browser:
    """One page. requests: every URL that it asked for; messages: what it complained of on its console."""

    def __init__(self, width: int = 1180, height: int = 1400) -> None:
        # What its helpers still write while they end is not worth a failure.
        self._folder = tempfile.TemporaryDirectory(prefix="rs-browser-", ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}"]
        # The descriptors must be 3 and 4 there, whatever they are here.
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._folder.name},
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread = b""
        self._sent = 0
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command of the protocol, and its result."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> Any:
        while b"\0" not in self._unread:
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\0")
        return json.loads(line)

    def _note(self, method: str, params: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.messages.append(f"{params['entry']['level']}: {params['entry']['text']} {params['entry'].get('url')}")

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What the first such element shows; empty when there is none, or it is hidden."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def rows(self, place: str) -> list[list[str]]:
        """The cells of the table in the element of that id."""
        rows = f"[...document.querySelectorAll('#{place} tbody tr')]"
        script = f"{rows}.map(row => [...row.cells].map(cell => cell.innerText))"
        found: list[list[str]] = self.run(script)
        return found

    def wait(self, script: str) -> Any:
        """Until the expression is true. It may be about elements that are not there yet."""
        tried = f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()"
        return wait_until(lambda: self.run(tried), f"the page: {script}\n{self.messages}")

    def picture(self, path: Path) -> None:
        """A PNG of what is to be seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser and its helpers, which are of its process group."""
        self._process.terminate()
        self._process.wait(60)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
