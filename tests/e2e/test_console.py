"""The console in a real browser, drawn from a real server; skipped where there is no Chromium.

Held here: it shows models with states, errors and labels, processes, queues, charts, failures of all frontends and
memory; loads nothing from elsewhere and breaks no rule of its own policy; asks for a key where there are keys, shows a
wrong one's refusal, and keeps the right one in the tab only; follows what happens, and says when the server is gone;
fits a narrow screen; has named tables and pictures; is on the operators' addresses only.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import accumulate
from math import inf
from pathlib import Path

import pytest

from ringserve.commands.top_view import quantile
from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.server import Server, wait_until

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")

FLAGS = ["--admin_port=-1", "--frontends=2", "--workers=1", "--settle_ms=0"]


def console_of(server: Server) -> str:
    """The address that operators are served at."""
    found = wait_until(lambda: re.search(r"operators at (127\.0\.0\.1:\d+)", server.log), "the operators' port")
    return f"http://{found[1]}"


def get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """half, with a label, and a model that cannot load; some requests went well and some did not."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "broken" / "7").mkdir(parents=True)
    (folder / "broken" / "7" / "saved_model.pb").write_bytes(b"no model")
    config = folder / "models.config"
    config.write_text(
        f'''model_config_list {{
          config {{ name: "half" base_path: "{models / "half"}" model_platform: "tensorflow"
                    version_labels {{ key: "stable" value: 1 }} }}
          config {{ name: "broken" base_path: "{folder / "broken"}" model_platform: "tensorflow" }} }}'''
    )
    labels = "--allow_version_labels_for_unavailable_models"
    with Server(folder, *FLAGS, "--model_config_file", str(config), labels) as server:
        # Before that, a question about a model is refused, and that would be a failure too.
        wait_until(lambda: server.log.count("Exporting HTTP/REST API") == 2, "both frontends to know what they serve")
        server.wait_available("half")
        wait_until(lambda: any(version["state"] == "END" for version in server.status("broken")), "the broken model")
        for _ in range(12):  # over new connections, so that both frontends have some
            assert server.post("/v1/models/half:predict", b'{"instances": [1.0]}')[0] == 200
            assert server.post("/v1/models/half:predict", b'{"instances": ["topsecret"]}')[0] == 400
        assert server.post("/v1/models/gone:predict", b'{"instances": [1.0]}')[0] == 404
        yield server


def test_it_is_on_the_operators_addresses_only(server: Server) -> None:
    console = console_of(server)
    assert get(f"{console}/")[0] == get(f"{console}/ringserve/v1/overview")[0] == 200
    assert get(f"{server.rest_url}/")[0] == 404
    assert get(f"{server.rest_url}/console.js")[0] == 404
    assert get(f"{server.rest_url}/ringserve/v1/overview")[0] == 404
    assert get(f"{console}/ringserve/v1/overview", Host="rebound.example")[0] == 403
    socket = str(server.run_dir / "admin.sock")
    command = ["curl", "-sS", "--unix-socket", socket, "http://localhost/ringserve/v1/overview"]
    if shutil.which("curl"):
        assert json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["models"]


def test_failures_of_both_frontends_are_told_without_what_was_sent(server: Server) -> None:
    def failures() -> list[tuple[str, str, int]]:
        body = get(f"{console_of(server)}/ringserve/v1/overview")[1]
        assert b"topsecret" not in body
        return sorted((entry["code"], entry["model"], entry["count"]) for entry in json.loads(body)["failures"])

    # A frontend writes its own down twice a second. All are named where it is waited for in vain.
    try:
        wait_until(lambda: sum(count for *_, count in failures()) >= 13, "13 failures")
    finally:
        assert failures() == [("INVALID_ARGUMENT", "half", 12), ("NOT_FOUND", "(unknown)", 1)]
    written = [path.read_text() for path in server.run_dir.glob("failures_*.json")]
    assert written
    assert "topsecret" not in "".join(written)


def test_looking_is_not_written_into_the_operators_log(server: Server) -> None:
    get(f"{console_of(server)}/ringserve/v1/overview")
    get(f"{console_of(server)}/ringserve/v1/models/half")
    wait_until(lambda: "GET /ringserve/v1/models/half" in server.log, "the line of an operator's call")
    assert not re.search(r"overview.* outcome=200", server.log)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@needs_browser
def test_the_page_shows_the_server(server: Server, browser: Browser, tmp_path: Path) -> None:
    console = console_of(server)
    browser.open(f"{console}/")
    browser.wait("document.querySelectorAll('#models tbody tr').length === 2")
    models = {row[0]: row[1:] for row in browser.rows("models")}
    assert models["half"][:3] == ["1", "AVAILABLE (default)", "stable"]
    assert models["broken"][:2] == ["7", "END"]
    assert "saved_model.pb" in models["broken"][3]
    processes = {row[0]: row for row in browser.rows("processes")}
    assert set(processes) == {"broker", "frontend-0", "frontend-1", "pool", "supervisor", "worker-0"}
    (worker,) = server.members("worker")
    assert processes["worker-0"][1:4] == ["default", str(worker.pid), "ready"]
    assert processes["worker-0"][-1] == "0"
    assert {row[2] for row in browser.rows("failures")} == {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert [row[0] for row in browser.rows("lanes")] == ["half 1 · serving_default"]
    assert browser.rows("host")[0][0] == "The server's processes"
    assert [row[0] for row in browser.rows("weights")] == ["half"]

    server.post("/v1/models/half:predict", b'{"instances": [1.0, 2.0]}')
    browser.wait("/p50 [0-9.]+ ms/.test(document.querySelector('#latency svg').getAttribute('aria-label'))")
    browser.wait("document.querySelector('#throughput path.series-ok').getAttribute('d').includes('L')")
    assert browser.text("#link").startswith("connected")
    assert browser.text("#alarm") == ""

    browser.picture(tmp_path / "console.png")
    assert (tmp_path / "console.png").stat().st_size > 10_000
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run(colour) != light
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 360

    assert {url.split("/")[2] for url in browser.requests} == {console.split("/")[2]}
    assert browser.messages == []


@needs_browser
def test_the_page_counts_percentiles_as_top_does(server: Server, browser: Browser) -> None:
    browser.open(f"{console_of(server)}/")
    browser.wait("document.readyState === 'complete' && location.pathname === '/'")
    for counts in ([0, 0, 0, 0], [1, 0, 0, 0], [0, 10, 0, 0], [3, 5, 80, 2], [0, 0, 0, 7], [1, 0, 1, 0]):
        for share in (0.5, 0.95, 0.99):
            cumulative = dict(zip((0.1, 0.5, 2.0, inf), accumulate(counts), strict=True))
            script = f"import('/console_charts.js').then(m => m.quantile([0.1, 0.5, 2], {counts}, {share}))"
            expected = quantile(cumulative, share)
            found = browser.run(script)
            assert found is None if expected != expected else found == pytest.approx(expected), (counts, share)


@needs_browser
def test_every_table_says_what_it_is(server: Server, browser: Browser) -> None:
    browser.open(f"{console_of(server)}/")
    browser.wait("document.querySelectorAll('#models tbody tr').length === 2")
    every = "[...document.querySelectorAll('table')].every"
    assert browser.run(f"{every}(table => table.caption.innerText && table.querySelector('thead th[scope=col]'))")
    assert browser.run(f"{every}(table => [...table.tBodies[0].rows].every(row => row.cells[0].scope === 'row'))")
    assert browser.run("[...document.querySelectorAll('svg.chart')].every(each => each.getAttribute('aria-label'))")
    named = "each.ariaLabel || document.getElementById(each.getAttribute('aria-labelledby'))"
    assert browser.run(f"[...document.querySelectorAll('section')].every(each => {named})")


@needs_browser
def test_with_keys_it_asks_for_one_keeps_it_in_the_tab_and_says_when_the_server_is_gone(
    models: Path, tmp_path: Path, browser: Browser
) -> None:
    keys = tmp_path / "keys.toml"
    command = [sys.executable, "-m", "ringserve", "keys", "new", "looks", "--scope", "status", "--file", str(keys)]
    token = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    arguments = [f"--model_base_path={models / 'half'}", "--model_name=half", f"--keys_file={keys}"]
    with Server(tmp_path, *FLAGS, *arguments) as server:
        console = console_of(server)
        assert get(f"{console}/ringserve/v1/overview")[0] == 401
        server_is_up = f"half is AVAILABLE; the log:\n{server.log}"
        overview = f"{console}/ringserve/v1/overview"
        wait_until(lambda: b"AVAILABLE" in get(overview, Authorization=f"Bearer {token}")[1], server_is_up)
        browser.open(f"{console}/")
        browser.wait("!document.getElementById('door').hidden")
        assert browser.run("document.getElementById('main').hidden")

        def give(key: str) -> None:
            browser.run(f"document.getElementById('key').value = {json.dumps(key)}")
            browser.run("document.querySelector('#door button').click()")

        give("wrong")
        browser.wait("document.getElementById('refusal').innerText !== ''")
        assert browser.text("#refusal") == "the key is not known"
        give(token)
        browser.wait("!document.getElementById('main').hidden")
        assert browser.run("document.getElementById('door').hidden")
        assert browser.rows("models")[0][0] == "half"
        assert browser.run("localStorage.length") == 0
        assert browser.run("document.cookie") == ""
        assert not [url for url in browser.requests if token in url]
        browser.run("document.getElementById('forget').click()")
        browser.wait("!document.getElementById('door').hidden")
        assert browser.run("sessionStorage.length") == 0

        give(token)
        browser.wait("!document.getElementById('main').hidden")
        server.stop()
        browser.wait("!document.getElementById('alarm').hidden")
        assert browser.text("#alarm").startswith("The server does not answer")
        assert browser.rows("models")[0][0] == "half", "what was seen last stays"
