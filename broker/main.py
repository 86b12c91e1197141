"""The broker process: start -> loop -> stop."""

from __future__ import annotations

import logging
import os
import socket
import time

from ringserve.broker.core import Core
from ringserve.broker.service import Service
from ringserve.broker.setup import Policies, find_versions, make_roster, pin_broker
from ringserve.broker.wire import unpack_lane
from ringserve.config import process
from ringserve.config.rundir import remove_run_dir
from ringserve.config.schema import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, *, name: str, listen_fd: int, death_fd: int, run_dir: str) -> int:
    """Serve until stopped. Returns the exit status.

    listen_fd: the listening registration socket, inherited, so that nobody who registers finds a broker missing.
    """
    process.begin(name, settings.server.log_level, settings.server.log_format)
    stop = process.StopWatch(death_fd)
    roster = make_roster(settings.workers)
    pin_broker(settings.workers)  # after the workers' cores were counted: this narrows what the process may use
    with socket.socket(fileno=listen_fd) as listener:
        core = Core(unpack_lane)
        service = Service(
            core,
            Policies(core, settings),
            find_versions(settings.models),
            roster,
            listener,
            os.path.join(run_dir, f"{name}-{os.getpid()}.inbox"),
            clock=time.monotonic_ns,
            # Milliseconds since boot: a broker that follows another never gives an id that the other gave.
            first_peer_id=time.monotonic_ns() // 1_000_000,
        )
        service.watch(stop.fd, service.stop)
        process.freeze_heap()
        process.tell_ready()
        service.run()
        wanted = stop.wanted()
        log.info("stopping: %s", wanted.reason if wanted else "")
        process.tell_stopping()
        service.close()
    if wanted is not None and wanted.at_once:
        # Nobody is left to clear up after all of us.
        remove_run_dir(run_dir)
    return process.Exit.OK
