"""From settings to the broker's parts: lane policies, wanted versions, the roster of workers."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from ringserve.broker.core import Core
from ringserve.broker.policy import LanePolicy
from ringserve.broker.repository import choose_versions, list_versions
from ringserve.broker.roster import Roster
from ringserve.broker.versions import Versions
from ringserve.config.cpus import usable_cpus
from ringserve.config.schema import Batching, Model, Settings, Workers

log = logging.getLogger(__name__)


def lane_policy(batching: Batching, workers: Workers) -> LanePolicy:
    """The policy of one model's lanes."""
    return LanePolicy(
        batching=batching.policy,  # type: ignore[arg-type]  # one of the choices that the schema allows
        batch_rows_max=batching.batch_rows_max,
        batch_wait_ns_max=batching.batch_wait_us_max * 1_000,
        queue_requests_max=batching.queue_requests_max,
        queue_rows_max=batching.queue_rows_max,
        split=batching.split,
        spread_ns=batching.spread_us * 1_000,
        workers_max=batching.workers_max,
        lease_ns_max=workers.lease_ms_max * 1_000_000,
    )


class Policies:
    """Each model's policy, as configured and as what the workers find out about the models makes it."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self._core = core
        self._default = lane_policy(settings.batching, settings.workers)
        self._by_model = {model.name: lane_policy(model.batching, settings.workers) for model in settings.models}
        core.set_policies(self._default, self._by_model)

    def keep_on_one_worker(self, model: str) -> None:
        """This model changes its variables while it serves: with two workers it would have two states."""
        policy = self._by_model.get(model, self._default)
        if policy.workers_max != 1:
            log.warning("model %s changes its variables while serving: one worker serves it, with its own state", model)
            self._by_model[model] = replace(policy, workers_max=1)
            self._core.set_policies(self._default, self._by_model)


def find_versions(models: tuple[Model, ...]) -> Versions:
    """The wanted versions as they lie on disk now. A model without any is logged and stops no other."""
    versions = Versions()
    for model in models:
        try:
            found = list_versions(model.base_path)
        except OSError as error:
            log.error("Could not find base path %s for servable %s: %s", model.base_path, model.name, error)
            continue
        chosen = choose_versions(found, model.versions)
        if not chosen:
            log.error(
                "No versions of servable %s found under base path %s. Did you forget to name your leaf directory as a "
                "number (eg. '/1/')?",
                model.name,
                model.base_path,
            )
        for directory in chosen:
            versions.want(model.name, directory.version, directory.path)
    return versions


def pin_broker(workers: Workers) -> None:
    """Keep the broker, and ZeroMQ's thread in it, on one core. Call it before there is a ZeroMQ context.

    Each message goes through both threads, and a wake across cores costs more than the decision about it: on two
    virtual cores this took the median of a single request from 740 to 530 us, and the rate at 32 in flight from
    21,000 to 27,000/s. With two cores it is the first worker's, which sleeps while the broker decides, and the
    frontend has the other (the other way round gained nothing); with more, it is the core of the worker used last.
    """
    usable = usable_cpus().usable
    if workers.pin and len(usable) > 1:
        os.sched_setaffinity(0, {usable[0] if len(usable) == 2 else usable[-1]})


def make_roster(workers: Workers) -> Roster:
    """One place per worker, each on a core of its own where there are enough."""
    usable = usable_cpus().usable
    pinned = usable if workers.pin and workers.workers * workers.threads_per_worker <= len(usable) else ()
    return Roster(workers.workers, pinned if workers.threads_per_worker == 1 else (), workers.threads_per_worker)
