"""Operators' calls to the broker (`messages.Ask`), from a frontend's connection to whoever answers and back.

| verb               | body and answer                                                                            |
|--------------------|--------------------------------------------------------------------------------------------|
| those of `admin.py`| see there                                                                                  |
| `rescan`           | nothing; answered when every base path, and the config file, have been looked at           |
| `state`            | nothing; JSON: generation, workers, what they have loaded, weights, lanes that wait        |
| `metrics`          | nothing; JSON, see `metrics.gauges`                                                        |
| `profile/...`      | handed on to one worker, see `workers/profile.py`                                          |
| `canary`           | nothing; answered by an idle worker, or at once while none is idle                         |
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ringserve.broker.core import Core
from ringserve.broker.fleet import preference
from ringserve.broker.groups import Group
from ringserve.broker.members import Member
from ringserve.broker.messages import Ask, Code, Failure, Role, Told
from ringserve.broker.metrics import Memory, gauges
from ringserve.broker.models import Models
from ringserve.broker.registry import Peer, Registry
from ringserve.broker.statistics import Queue

_OK = Failure(Code.OK, "")
_PROFILE = "profile/"
_CANARY = "canary"
_NO_WORKER = Failure(Code.UNAVAILABLE, "No worker is ready to be profiled")
_WORKER_LEFT = Failure(Code.UNAVAILABLE, "The worker that was to answer has ended")


class _Relayed(NamedTuple):
    """A call that a worker answers."""

    asker: int
    ask_id: int
    worker: int


def _comes_last(member: Member) -> int:
    """Orders workers by how soon one is sent the first request for any of its models, while none has run."""
    return min((preference(key.name, member.seat) for key in member.loaded), default=0)


class Operators:
    """Answers every Ask with one Told, unless its asker is gone by then."""

    def __init__(self, registry: Registry, models: Models, core: Core) -> None:
        self._registry = registry
        self._models = models
        self._core = core
        self._relayed: dict[int, _Relayed] = {}
        self._relayed_last = 0
        self._profiled = -1
        self._answers: list[tuple[int, Told]] = []
        self._changes: list[tuple[int, Told]] = []  # answers to calls that may have changed the catalog

    def ask(self, peer: Peer, ask: Ask, now_ns: int) -> None:
        """A frontend asks."""

        def answer(failure: Failure, body: bytes) -> None:
            self._tell(peer.peer_id, ask.ask_id, failure, body)

        def changed(failure: Failure, body: bytes) -> None:
            self._changes.append((peer.peer_id, Told(ask.ask_id, int(failure.code), failure.text, body)))

        if ask.verb.startswith(_PROFILE):
            self._relay(peer, ask)
        elif ask.verb == _CANARY:
            self._send_canary(peer, ask, now_ns)
        elif ask.verb == "rescan":
            self._models.rescan(now_ns, lambda: changed(_OK, b""))
        elif ask.verb == "state":
            answer(_OK, self._state(now_ns))
        elif ask.verb == "metrics":
            answer(_OK, self._metrics(now_ns))
        else:
            try:
                self._models.admin.ask(ask.verb, ask.body, changed)
            except KeyError:
                answer(Failure(Code.UNIMPLEMENTED, f"The broker knows no call {ask.verb!r}"), b"")

    def _send_canary(self, peer: Peer, ask: Ask, now_ns: int) -> None:
        """The first idle worker answers; what the others say then is not waited for any more. None is asked while a
        batch runs, which its lease looks after, and none that loads: a server that is busy is well."""
        crew = self._models.lifecycle.groups.crew
        ready = [member.worker_id for member in crew.members() if crew.phase_of(member) == "ready"]
        workers = [self._registry.peers[worker_id] for worker_id in ready if worker_id in self._registry.peers]
        if not workers or any(queue.batches for queue in self._core.queues(now_ns)):
            self._tell(peer.peer_id, ask.ask_id, _OK, b"")
        else:
            for worker in workers:
                self._hand_on(peer, ask, worker)

    def told(self, peer: Peer, told: Told) -> None:
        """A worker answers what was handed on to it."""
        relayed = self._relayed.pop(told.ask_id, None)
        if relayed is not None and relayed.worker == peer.peer_id:
            self._tell(relayed.asker, relayed.ask_id, Failure(Code(told.code), told.text), told.body)

    def left(self, peer: Peer) -> None:
        """A worker that is gone answers nothing more."""
        for number in [number for number, relayed in self._relayed.items() if relayed.worker == peer.peer_id]:
            relayed = self._relayed.pop(number)
            self._tell(relayed.asker, relayed.ask_id, _WORKER_LEFT, b"")

    def _relay(self, peer: Peer, ask: Ask) -> None:
        crew = self._models.lifecycle.groups.crew
        ready = [member for member in crew.members() if crew.phase_of(member) in ("ready", "loading")]
        # The one that works: at a low load the others are idle, and their trace would be empty. What a call began, the
        # next call ends or looks at in the same worker.
        wanted = self._core.ran_last if ask.verb == "profile/Profile" else self._profiled
        member = min(ready, key=lambda member: (member.worker_id != wanted, _comes_last(member)), default=None)
        worker = self._registry.peers.get(member.worker_id) if member is not None else None
        if worker is not None and ask.verb == "profile/Profile":
            self._profiled = worker.peer_id
        if worker is None:
            self._tell(peer.peer_id, ask.ask_id, _NO_WORKER, b"")
            return
        self._hand_on(peer, ask, worker)

    def _hand_on(self, peer: Peer, ask: Ask, worker: Peer) -> None:
        self._relayed_last += 1
        self._relayed[self._relayed_last] = _Relayed(peer.peer_id, ask.ask_id, worker.peer_id)
        self._registry.send(worker, Ask(self._relayed_last, ask.verb, ask.body))

    def _tell(self, peer_id: int, ask_id: int, failure: Failure, body: bytes) -> None:
        self._answers.append((peer_id, Told(ask_id, int(failure.code), failure.text, body)))

    @property
    def answers_wait(self) -> bool:
        """There is something to say."""
        return bool(self._answers or self._changes)

    def speak(self, *, catalog: bool) -> None:
        """Send the answers. catalog: frontends have it as it is now; who hears that a model is there must find it
        there."""
        answers, self._answers = self._answers, []
        if catalog:
            answers += self._changes
            self._changes = []
        for peer_id, told in answers:
            peer = self._registry.peers.get(peer_id)
            if peer is not None:
                self._registry.send(peer, told)

    def _state(self, now_ns: int) -> bytes:
        groups = self._models.lifecycle.groups
        crew = groups.crew
        workers = [
            {
                "worker_id": member.worker_id,
                "index": member.seat,
                "group": groups.groups[crew.group_of(member)].name,
                "pid": member.pid,
                "generation": member.generation,
                "state": crew.phase_of(member),
                "loading": list(member.loading.key) if member.loading is not None else None,
                "loaded": [list(key) for key in member.loaded],
                "kept_for": [list(key) for key in member.kept or ()],
            }
            for member in crew.members()
        ]
        abouts = [_about(group) for group in groups.groups]
        preparation = self._models.lifecycle.preparation
        weights = [
            {
                "name": entry.order.name,
                "version": entry.order.version,
                "stage": entry.stage.value,
                "bytes_shared": entry.bytes_shared if entry.weights_id else 0,
                "bytes_private": entry.bytes_private,
            }
            for entry in preparation.entries()
        ]
        budget = preparation.budget
        memory = {"limit_bytes": budget.limits.host_bytes, "budgeted_bytes": budget.used_bytes}
        return json.dumps(
            {
                "generation": groups.number,
                "following": next((about["following"] for about in abouts if about["following"]), None),
                "groups": abouts,
                "pool": crew.pool,
                "workers": workers,
                "weights": weights,
                "memory": memory,
                "frontends": [peer.hello.pid for peer in self._registry.of_role(Role.FRONTEND)],
                "requests": self._core.statistics(),
                "lanes": [_about_queue(queue) for queue in self._core.queues(now_ns)],
            }
        ).encode()

    def _metrics(self, now_ns: int) -> bytes:
        groups = self._models.lifecycle.groups
        states: dict[str, int] = {}
        for member in groups.crew.members():
            state = groups.crew.phase_of(member)
            states[state] = states.get(state, 0) + 1
        sizes = {group.name: (group.generations.wanted, group.generations.active) for group in groups.groups}
        preparation = self._models.lifecycle.preparation
        weights = [(*entry.order.key, entry.bytes_shared) for entry in preparation.entries() if entry.weights_id]
        memory = Memory(weights, preparation.budget.limits.host_bytes, preparation.budget.used_bytes)
        lanes = self._core.statistics()["lanes"]
        served = self._models.lifecycle.versions.expected()
        return gauges(self._core.queues(now_ns), states, groups.number, lanes, sizes, memory, served)


def _about_queue(queue: Queue) -> dict[str, Any]:
    """One lane with something waiting or running, for operators. inputs: alias, TensorFlow's number of the dtype, and
    shape as in LaneSpec."""
    lane = queue.lane
    return {
        "model": lane.model,
        "version": lane.version,
        "signature": lane.signature,
        "outputs": list(lane.outputs),
        "inputs": [list(each) for each in lane.inputs],
        "batchable": lane.batchable,
        "requests": queue.requests,
        "rows": queue.rows,
        "oldest_s": queue.oldest_wait_ns / 1e9,
        "batches": queue.batches,
        "rows_best": queue.rows_best,
    }


def _about(group: Group) -> dict[str, Any]:
    """One group, for operators."""
    generations = group.generations
    crew = generations.crew
    following = crew.following
    return {
        "name": group.name,
        "generation": generations.number,
        "following": following and {"generation": following.number, "phase": following.phase.value},
        "workers_min": crew.workers_min,
        "workers_max": crew.workers_max,
        "workers_wanted": generations.wanted,
        "workers_active": generations.active,
    }
