"""The broker process: start -> loop -> stop."""

from __future__ import annotations

import logging
import socket
import sys
import time

from ringserve.broker.core import Core
from ringserve.broker.mailbox import remove_dead_inboxes
from ringserve.broker.metrics import BrokerMetrics
from ringserve.broker.models import Models
from ringserve.broker.placement import earliest
from ringserve.broker.service import Service
from ringserve.broker.setup import Policies, make_lifecycle, make_tending, pin_broker
from ringserve.broker.state_file import State, StateFile
from ringserve.broker.watcher import Watcher
from ringserve.broker.wire import unpack_lane
from ringserve.config import process
from ringserve.config.metric_file import MetricFile
from ringserve.config.rundir import remove_run_dir, write_fatal
from ringserve.config.schema import Settings

log = logging.getLogger(__name__)

#: How soon the watcher's thread lets the loop have the interpreter.
_SWITCH_S = 0.0005


def run(settings: Settings, *, name: str, listen_fd: int, death_fd: int, run_dir: str) -> int:
    """Serve until stopped. Returns the exit status.

    listen_fd: the listening registration socket, inherited, so that nobody who registers finds a broker missing.
    """
    process.begin(name, settings.server.log_level, settings.server.log_format)
    stop = process.StopWatch(death_fd)
    sys.setswitchinterval(_SWITCH_S)
    remove_dead_inboxes(run_dir)
    lifecycle = make_lifecycle(settings)
    pin_broker(settings.workers)  # after the workers' cores were counted: this narrows what the process may use
    with socket.socket(fileno=listen_fd) as listener:
        core = Core(unpack_lane)
        heartbeat, state_file = process.Heartbeat(), StateFile(run_dir)
        policies = Policies(core, settings)
        metrics = core.observer = BrokerMetrics(MetricFile(run_dir, name))
        metrics.process_started(name)
        service = Service(
            core,
            policies,
            metrics,
            listener,
            clock=time.monotonic_ns,
            # Milliseconds since boot: a broker that follows another never gives an id that the other gave.
            first_peer_id=time.monotonic_ns() // 1_000_000,
            beat=lambda now_ns: earliest(heartbeat.beat(now_ns), state_file.keep(now_ns)),
        )
        state = state_file.load(settings)
        watcher = Watcher(time.monotonic_ns)
        models = Models(
            settings,
            core,
            lifecycle,
            policies,
            watcher,
            tell_workers=service.tell_workers,
            save=lambda state: state_file.save(settings, state),
            wall_clock=time.time_ns,
            first=state is None,
        )
        models.start(state or State(settings.models, ""), time.monotonic_ns())
        service.serve_models(models, watcher.fd, make_tending(settings, lifecycle.groups, core))
        service.watch(stop.fd, service.stop)
        process.freeze_heap()
        process.tell_ready()
        service.run(pool_stays=death_fd < 0)  # without a supervisor this broker may just be restarted
        if models.fatal:
            log.error("%s", models.fatal)
            write_fatal(run_dir, models.fatal)
            return process.Exit.FATAL
        wanted = stop.wanted()
        log.info("stopping: %s", wanted.reason if wanted else "")
        process.tell_stopping()
        service.close()
    if wanted is not None and wanted.at_once:
        # Nobody is left to clear up after all of us.
        remove_run_dir(run_dir)
    return process.Exit.OK
