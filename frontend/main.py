"""A frontend process: start -> loop -> drain -> stop."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable

import uvloop

from ringserve.config import descriptors, process
from ringserve.config.schema import Settings
from ringserve.frontend.service import Inherited as Inherited
from ringserve.frontend.service import Service

log = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    name: str,
    index: int,
    death_fd: int,
    run_dir: str,
    broker_path: str,
    inherited: Inherited | None = None,
) -> int:
    """Serve until stopped. Returns the exit status.

    index: which of the frontends this is. broker_path: where it registers. inherited: descriptors that all of them
    have.
    """
    process.begin(name, settings.server.log_level, settings.server.log_format)
    try:
        rest = inherited is not None and bool(inherited.rest_fds)
        caps = descriptors.caps_of(settings, descriptors.raise_limit(), rest=rest)
    except descriptors.TooFewError as error:
        log.error("%s", error)
        return process.Exit.CONFIG
    if caps.warning:
        log.warning("%s", caps.warning)
    stop = process.StopWatch(death_fd)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        make = functools.partial(
            Service, settings, name=name, run_dir=run_dir, broker_path=broker_path, leave=stop.request, caps=caps,
            inherited=inherited,
        )
        return runner.run(_serve(make, stop))


async def _serve(make_service: Callable[[], Service], stop: process.StopWatch) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    bugs: list[BaseException] = []

    def on_bug(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        # What no code expected leaves state that no code can vouch for: end, and be replaced.
        error = context.get("exception")
        log.critical("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
        bugs.append(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))
        stopped.set()

    loop.set_exception_handler(on_bug)
    loop.add_reader(stop.fd, stopped.set)
    service = make_service()
    await service.start()
    process.freeze_heap()
    process.tell_ready()
    _keep_beating(loop, process.Heartbeat())
    await stopped.wait()
    loop.remove_reader(stop.fd)
    wanted = stop.wanted()
    log.info("stopping: %s", wanted.reason if wanted else "a bug")
    process.tell_stopping()
    await service.stop(drain=wanted is not None and not wanted.at_once)
    return process.Exit.FAILED if bugs else process.Exit.OK


def _keep_beating(loop: asyncio.AbstractEventLoop, heartbeat: process.Heartbeat) -> None:
    """While this loop turns, whoever started the process hears of it."""
    due_ns = heartbeat.beat(time.monotonic_ns())
    if due_ns:
        loop.call_later(heartbeat.period_ns / 1e9, _keep_beating, loop, heartbeat)
