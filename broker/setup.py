"""From settings to the broker's parts: lane policies, models' batching, the life cycle."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ringserve.broker.budget import Budget, Limits, Share
from ringserve.broker.core import Core
from ringserve.broker.crew import Crew
from ringserve.broker.directories import ModelPlan
from ringserve.broker.elastic import Elastic
from ringserve.broker.generations import Generations
from ringserve.broker.groups import Group, Groups
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import ModelOptions
from ringserve.broker.orders import Seat
from ringserve.broker.policy import LanePolicy
from ringserve.broker.preparation import Authors, Preparation
from ringserve.broker.processes import private_bytes
from ringserve.broker.renewal import Renewal
from ringserve.broker.retries import Retries
from ringserve.broker.tending import Tended, Tending
from ringserve.broker.versions import Versions
from ringserve.config.cpus import usable_cpus
from ringserve.config.groups import group_of
from ringserve.config.limits import WORKER_PRIVATE_BYTES, fixed_bytes, groups_of, lease_ms, rows_allowed, slots_of
from ringserve.config.memory import usable_memory
from ringserve.config.schema import Batching, Model, Settings, Workers
from ringserve.config.topology import read_topology

log = logging.getLogger(__name__)

#: Where nobody says how long a batch may run: for so long a client that waits for it keeps it from being taken to hang.
_LEASE_WAITS_MS = 300_000


def lane_policy(batching: Batching, workers: Workers, request_ring_bytes: int) -> LanePolicy:
    """The policy of one model's lanes."""
    queue_bytes_max = batching.queue_bytes_max or request_ring_bytes // 2
    return LanePolicy(
        batching=batching.policy,  # type: ignore[arg-type]  # one of the choices that the schema allows
        batch_rows_max=batching.batch_rows_max,
        batch_rows_allowed=tuple(rows_allowed(batching)),
        batch_wait_ns_max=batching.batch_wait_us_max * 1_000,
        batches_at_once_max=batching.batches_at_once_max,
        request_rows_max=batching.request_rows_max,
        queue_requests_max=batching.queue_requests_max,
        queue_rows_max=batching.queue_rows_max,
        queue_bytes_max=queue_bytes_max,
        queue_ns_max=batching.queue_ms_max * 1_000_000,
        keep_free_ns=batching.keep_free_ms * 1_000_000,
        lend_after_requests=batching.lend_after_requests,
        queue_batches_max=batching.queue_batches_max,
        split=batching.split,
        spread_ns=batching.spread_us * 1_000,
        workers_max=batching.workers_max,
        lease_ns_max=lease_ms(workers) * 1_000_000,
        lease_waits_ns_max=0 if workers.lease_ms_max else _LEASE_WAITS_MS * 1_000_000,
    )


class Policies:
    """Each model's batching, as configured and as the models' versions and the workers' findings make it."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self._core = core
        self._workers = settings.workers
        self._ring_bytes = settings.shm.request_ring_bytes
        self._defaults = settings.batching
        self._models: dict[str, Batching] = {}
        self._versions: dict[str, Batching] = {}
        self._singles: frozenset[str] = frozenset()
        self.configure(settings.models)

    def configure(self, models: Iterable[Model]) -> list[ModelOptions]:
        """These are the models and their batching from now on. Returns what workers are to be told."""
        return self._put({model.name: model.batching for model in models}, self._versions, self._singles)

    def put_versions(self, batching: Mapping[str, Batching]) -> list[ModelOptions]:
        """What the serving versions of some models say about batching, in place of their own. Returns likewise."""
        return self._put(self._models, dict(batching), self._singles)

    def keep_on_one_worker(self, names: frozenset[str]) -> None:
        """These models change their variables while they serve: with two workers they would have two states."""
        for name in sorted(names - self._singles):
            log.warning("model %s changes its variables while serving: one worker serves it, with its own state", name)
        self._put(self._models, self._versions, names)

    def batching(self, name: str) -> Batching:
        """How this model's batches are made now."""
        return self._versions.get(name) or self._models.get(name, self._defaults)

    def options(self, name: str) -> ModelOptions:
        """What a worker must know of that."""
        batching = self.batching(name)
        return ModelOptions(
            name,
            batching.batch_rows_max,
            rows_allowed(batching),
            batching.pad_inputs,
            batching.pad_with == "first",
            batching.row_independence == "assumed",
        )

    def pads(self) -> list[str]:
        """The models whose rows of different inner shapes share a batch."""
        return sorted(name for name in self._models if self.batching(name).pad_inputs)

    def is_single(self, name: str) -> bool:
        """One worker serves it."""
        return name in self._singles

    def _put(
        self, models: dict[str, Batching], versions: dict[str, Batching], singles: frozenset[str]
    ) -> list[ModelOptions]:
        before = {name: self.options(name) for name in self._models}
        state = (models, versions, singles)
        if before and state == (self._models, self._versions, self._singles):
            return []
        self._models, self._versions, self._singles = state
        by_model = {name: lane_policy(self.batching(name), self._workers, self._ring_bytes) for name in self._models}
        for name in singles & by_model.keys():
            by_model[name] = replace(by_model[name], workers_max=1)
        self._core.set_policies(lane_policy(self._defaults, self._workers, self._ring_bytes), by_model)
        options = [self.options(name) for name in self._models]
        return [new for new in options if new.name in before and before[new.name] != new]


def make_lifecycle(settings: Settings) -> Lifecycle:
    """Nothing configured, nobody there yet. Each worker is pinned to a core of its own where there are enough."""
    lifecycle = settings.lifecycle
    return Lifecycle(
        make_groups(settings),
        Versions(),
        Retries(lifecycle.max_num_load_retries, lifecycle.load_retry_ms_max * 1_000_000),
        make_preparation(settings),
        settle_ns=lifecycle.settle_ms * 1_000_000,
        incomplete_ns=lifecycle.incomplete_ms_max * 1_000_000,
        unload_when_empty=lifecycle.unload_when_empty,
        prefer_tflite=lifecycle.prefer_tflite_model,
    )


def make_preparation(settings: Settings) -> Preparation:
    """Nothing prepared yet. Authors are spread over the cores that workers may use."""
    workers, memory = settings.workers, settings.memory
    cpus = usable_cpus()
    authors = Authors(
        memory.weight_sharing_bytes_min,
        cpus.usable if workers.pin else (),
        workers.threads_per_worker,
        max(1, cpus.count),
    )
    groups = {group.name: group for group in groups_of(settings)}

    def share_of(model: str) -> Share:
        group = groups[group_of(model, settings.groups)]
        return Share(group.name, group.workers_max)

    budget = Budget(memory_limits(settings), share_of)
    return Preparation(authors if memory.weight_sharing == "on" else None, budget)


def memory_limits(settings: Settings) -> Limits:
    """As they are now: a control group's limit may be changed while the server runs."""
    count_bytes, source = settings.memory.memory_bytes_max, "memory_bytes_max"
    if not count_bytes:
        usable = usable_memory()
        count_bytes, source = usable.count_bytes, f"{usable.source}, as memory_bytes_max is 0"
    groups = groups_of(settings)
    return Limits(
        count_bytes,
        source,
        fixed_bytes(settings),
        {group.name: group.memory_bytes_max for group in groups},
        {group.name: group.workers_max * WORKER_PRIVATE_BYTES for group in groups},
    )


def make_groups(settings: Settings) -> Groups:
    """The worker groups, without workers."""
    slots = slots_of(settings, read_topology())
    groups = []
    first_seat = 0
    for configured in groups_of(settings):
        crew = Crew(configured.workers, configured.workers_max, first_seat)
        first_seat += crew.workers_max
        seats = [Seat(slot.cpus, slot.gpu) for slot in slots[configured.name]]
        generations = Generations(
            crew, seats, configured.threads_per_worker, stop_first=configured.replace == "stop_first"
        )
        groups.append(Group(configured.name, generations))
    return Groups(groups, lambda model: group_of(model, settings.groups))


def make_tending(settings: Settings, groups: Groups, core: Core) -> Tending:
    """What looks after the groups' workers as time passes."""
    workers = settings.workers
    limited = bool(workers.worker_bytes_max or workers.worker_age_s_max)
    tended = []
    for group in groups.groups:
        crew = group.generations.crew
        elastic = Elastic(
            crew.workers_min,
            crew.workers_max,
            grow_ns=workers.grow_ms * 1_000_000,
            shrink_ns=workers.shrink_ms * 1_000_000,
        )
        renewal = Renewal(
            group.name, bytes_max=workers.worker_bytes_max, age_ns_max=workers.worker_age_s_max * 1_000_000_000
        )
        is_elastic = crew.workers_max > crew.workers_min
        tended.append(Tended(group, elastic if is_elastic else None, renewal if limited else None))
    reads = private_bytes if workers.worker_bytes_max else None
    return Tending(groups, tended, usage=core.usage, private_bytes=reads)


def plan_of(model: Model, *, hold: bool = False, move: bool = False) -> ModelPlan:
    """A configured model as the life cycle sees it."""
    return ModelPlan(model.name, model.base_path, model.versions, hold, move)


def pin_broker(workers: Workers) -> None:
    """Keep the broker on one core. Call it before there is a ZeroMQ context, whose thread is to stay there, too.

    A wake across cores costs more than the decision that it is for: on two virtual cores this took the median of a
    single request from 740 to 530 us, and the rate at 32 in flight from 21,000 to 27,000/s. With two cores it is the
    first worker's, which sleeps while the broker decides, and the frontend has the other (the other way round gained
    nothing); with more, it is the core of the worker used last.
    """
    usable = usable_cpus().usable
    if workers.pin and len(usable) > 1:
        os.sched_setaffinity(0, {usable[0] if len(usable) == 2 else usable[-1]})
