"""`ringserve top`: a running server at a glance, refreshed in place."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from types import FrameType

import click

from ringserve.commands.api import Api, Refused
from ringserve.commands.console import Failed, json_option, print_json, url_option

_HOME, _REST, _END = "\033[H", "\033[J", "\033[K"
_HIDE, _SHOW = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"  # another screen, no cursor; and back


def stop_on_interrupt(stopped: threading.Event) -> None:
    """Ctrl-C ends the loop at its next look: an exception might come where Python drops it, as in a destructor.

    A second one does not wait.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    signal.signal(signal.SIGINT, interrupted)


@click.command()
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.1), help="seconds between looks")
@click.option("--once", is_flag=True, help="one view, over one interval, and out")
@url_option
@json_option
def top(interval: float, once: bool, url: str, as_json: bool) -> None:
    """Show what a server does now: models, workers, rates, latency, queues, memory. Ctrl-C ends it.

    Rates and percentiles are of the last interval. ROWS is what a batch holds on average, BUSY the time that workers
    spent in a model (200 % is two workers). WAIT is from a request's arrival until its batch went out.

    \b
    ringserve top
    ringserve top --once --json | jq .p99
    ringserve top --json --interval 10 >> log        # one line each
    """
    from ringserve.commands import top_view

    api = Api(url, timeout_s=max(5.0, interval))

    def look() -> tuple[float, top_view.Samples]:
        try:
            text = api.raw("GET", "/metrics").decode(errors="replace")
        except Refused as error:
            raise Failed(f"{api.url}/metrics is not there: is this ringserve?") from error
        try:
            samples = top_view.parse(text)
        except ValueError as error:
            raise Failed(f"{api.url}/metrics cannot be read: {error}") from error
        if not any(name.startswith("ringserve_") for name, _ in samples):
            raise Failed(f"{api.url}/metrics shows no server of ringserve's")
        return time.monotonic(), samples

    def next_view(before: tuple[float, top_view.Samples]) -> tuple[top_view.View, tuple[float, top_view.Samples]]:
        stopped.wait(interval)
        after = look()
        shown = top_view.view(before[1], after[1], max(1e-3, after[0] - before[0]))
        return shown, after

    stopped = threading.Event()
    if not once:
        stop_on_interrupt(stopped)
    before = look()
    live = not once and not as_json and sys.stdout.isatty()
    if live:
        click.echo(_HIDE, nl=False)
    try:
        while not stopped.is_set():
            shown, before = next_view(before)
            if as_json:
                print_json(top_view.as_json(shown)) if once else click.echo(json.dumps(top_view.as_json(shown)))
            elif live:
                _, height = _size()
                lines = top_view.render(shown, api.url)[: height - 1]
                click.echo(_HOME + "".join(f"{line}{_END}\n" for line in lines) + _REST, nl=False)
            else:
                click.echo("\n".join(top_view.render(shown, api.url)) + ("" if once else "\n"))
            if once:
                return
    except KeyboardInterrupt:
        return
    finally:
        if live:
            click.echo(_SHOW, nl=False)


def _size() -> tuple[int, int]:
    import shutil

    found = shutil.get_terminal_size()
    return found.columns, found.lines
