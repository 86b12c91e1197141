"""Workers that outlive the pool that forked them. They leave as soon as they notice; one that hangs never does, and the
next pool cannot end it, as it is no child of its own.

They are sent nothing more, and who is to be ended is ended here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from ringserve.broker.core import Core
from ringserve.broker.messages import Role
from ringserve.broker.registry import Registry

log = logging.getLogger(__name__)


class FormerWorkers:
    """Those among the registered workers."""

    def __init__(self, registry: Registry, core: Core) -> None:
        self._registry = registry
        self._core = core
        self._ids: set[int] = set()

    def __contains__(self, worker_id: int) -> bool:
        return worker_id in self._ids

    def pool_has(self, pids: Collection[int], now_ns: int) -> None:
        """The pool of the moment has these processes, and no others; none when there is no pool."""
        for worker in self._registry.of_role(Role.WORKER):
            if worker.hello.pid not in pids:
                self._ids.add(worker.peer_id)
                self._core.worker_draining(worker.peer_id, now_ns, None)

    def left(self, worker_id: int) -> None:
        """Its process is gone."""
        self._ids.discard(worker_id)

    def end(self, pid: int) -> bool:
        """Kill this process, if it is one of them. False when it is not."""
        for worker_id in self._ids:
            worker = self._registry.peers[worker_id]
            if worker.hello.pid == pid:
                log.error("worker %d (process %d) did not leave with its pool: killing it", worker_id, pid)
                worker.channel.kill_peer()
                return True
        return False
