"""The fault matrix as data: every process x every fault x every moment, and what clients see of it.

Each cell of the matrix is a `Case`, which is run and whose class is asserted, or has its reason in `NO_CELLS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

ROLES = ("worker", "pool", "broker", "frontend", "supervisor", "author")

#: Word -> what it means, for people.
FAULTS = {
    "kill": "`kill -9`",
    "hung": "`kill -9` while a worker hangs",
    "stop": "SIGSTOP (it hangs)",
    "start": "exit at its start",
    "oom": "OOM kill",
    "fork": "it cannot fork",
    "full": "disk or shared memory full",
    "abort": "TensorFlow aborts",
}
MOMENTS = {
    "idle": "idle",
    "batch": "mid-batch",
    "result": "between Result and Done",
    "load": "while a version is loaded",
    "drain": "during a drain",
}

#: Class -> what clients see, exactly.
CLASSES = {
    "nothing": "no call fails, every answer is right",
    "connections": "calls on that frontend's connections break (UNAVAILABLE), all others go on; a client with gRPC's "
    "retry policy sees nothing",
    "version": "no call fails; the version that was to come is given up and says why, the one before it serves on",
    "gone": "every connection breaks, but for calls that are answered in that moment; UNAVAILABLE until a server is "
    "started again",
    "refused": "the server does not start, and says why",
}


#: What cases wait for (`Case.waits_for`), and is built: `watchdog`: the supervisor finds children that hang;
#: `forks`: it tries again when it cannot start a child; `room`: it says that the run directory is full.
HAVE = frozenset({"watchdog", "forks", "room"})


#: Storms by name, and what each kills.
STORMS = {"worker": ("worker",), "broker": ("broker",), "pool": ("pool",), "broker and pool": ("broker", "pool")}


class Case(NamedTuple):
    """One cell. sees: of CLASSES. times: how often in a row. ci: also in every test run, not only when docs/faults.md
    is made anew. own_server: it ends the server or needs one that is set up for it. waits_for: what must be in HAVE, or
    the case is not run. about: what happens, for people."""

    role: str
    fault: str
    moment: str
    sees: str
    about: str
    times: int = 1
    ci: bool = True
    own_server: bool = False
    waits_for: str = ""

    @property
    def name(self) -> str:
        return f"{self.role}-{self.fault}{self.times if self.times > 1 else ''}-{self.moment}"


_RETRIED = "its batch is leased to another worker"
_LATER = "the scout is forked again"
_NEW_POOL = "its workers leave with it; requests wait for a new pool's"
_AGAIN = "everyone registers with the next one, and frontends submit again what is unanswered"
_OWN = "the supervisor starts another, which has the same port"
_AUTHOR = "another one is forked, once"

CASES = (
    Case("worker", "kill", "idle", "nothing", "it is replaced"),
    Case("worker", "kill", "batch", "nothing", _RETRIED),
    Case("worker", "kill", "result", "nothing", "the batch runs again; the second answer is dropped"),
    Case("worker", "kill", "load", "nothing", _LATER),
    Case("worker", "kill", "load", "version", "the version ended two workers", times=2),
    Case("worker", "kill", "drain", "nothing", _RETRIED, own_server=True, ci=False),
    Case("worker", "stop", "idle", "nothing",
         "found, at the latest by the lease of the first batch that it gets; killed"),
    Case("worker", "stop", "batch", "nothing",
         "found, at the latest by its lease; killed; its batch is leased to another"),
    Case("worker", "stop", "result", "nothing", "likewise; the second answer is dropped", ci=False),
    Case("worker", "stop", "load", "nothing",
         "the others serve; the load goes on when it is continued, or anew when it is killed", ci=False),
    Case("worker", "start", "idle", "nothing", "forked again after 50, 100, 200 ms ...", times=3, ci=False),
    Case("worker", "start", "load", "nothing", _LATER, ci=False),
    Case("worker", "oom", "idle", "nothing", "it is replaced", ci=False),
    Case("worker", "oom", "batch", "nothing", _RETRIED),
    Case("worker", "oom", "result", "nothing", "the batch runs again; the second answer is dropped", ci=False),
    Case("worker", "oom", "load", "nothing", _LATER, ci=False),
    Case("worker", "full", "idle", "nothing", "no memory for its result ring: forked again, likewise", times=2),
    Case("worker", "abort", "batch", "nothing", _RETRIED),
    Case("worker", "abort", "result", "nothing", "the batch runs again; the second answer is dropped", ci=False),
    Case("worker", "abort", "load", "nothing", _LATER, ci=False),
    Case("worker", "abort", "load", "version", "the version ended two workers", times=2, ci=False),
    Case("pool", "kill", "idle", "nothing", _NEW_POOL, ci=False),
    Case("pool", "kill", "batch", "nothing", _NEW_POOL),
    Case("pool", "kill", "result", "nothing", _NEW_POOL, ci=False),
    Case("pool", "kill", "load", "nothing", "the new pool's workers load both versions", ci=False),
    Case("pool", "kill", "drain", "nothing", "frontends need it, so it is started again", own_server=True, ci=False),
    Case("pool", "hung", "batch", "nothing",
         "the worker is no child of a new pool, which fills its place; the broker ends it, at the latest by its lease"),
    Case("pool", "stop", "idle", "nothing", "found by the supervisor, and killed", waits_for="watchdog", ci=False),
    Case("pool", "stop", "load", "nothing", "found by the supervisor, and killed", waits_for="watchdog", ci=False),
    Case("pool", "start", "idle", "nothing", "started again after 100 ms", ci=False),
    Case("pool", "start", "idle", "refused", "ends the server, with its status", times=5, own_server=True),
    Case("pool", "oom", "idle", "nothing", _NEW_POOL, ci=False),
    Case("pool", "oom", "load", "nothing", _NEW_POOL, ci=False),
    Case("pool", "fork", "idle", "nothing", "a worker is to be replaced: tried again after 50, 100 ms ...", times=3,
         ci=False),
    Case("pool", "fork", "load", "nothing", "the version's weights are not shared; the scout is tried again", times=2),
    Case("pool", "full", "load", "nothing", "no memory for weights: each worker loads its own"),
    Case("broker", "kill", "idle", "nothing", _AGAIN, ci=False),
    Case("broker", "kill", "batch", "nothing", _AGAIN),
    Case("broker", "kill", "result", "nothing", _AGAIN),
    Case("broker", "kill", "load", "nothing", "the next one goes on with the change"),
    Case("broker", "kill", "drain", "nothing", "frontends need it, so it is started again", own_server=True),
    Case("broker", "stop", "idle", "nothing", "found by the supervisor, and killed", waits_for="watchdog", ci=False),
    Case("broker", "stop", "batch", "nothing", "found by the supervisor, and killed", waits_for="watchdog"),
    Case("broker", "stop", "load", "nothing", "found by the supervisor, and killed", waits_for="watchdog", ci=False),
    Case("broker", "start", "idle", "nothing", "started again after 100, 100 ms", times=2, ci=False),
    Case("broker", "start", "idle", "refused", "ends the server, with its status", times=5, own_server=True, ci=False),
    Case("broker", "oom", "idle", "nothing", _AGAIN, ci=False),
    Case("broker", "oom", "batch", "nothing", _AGAIN, ci=False),
    Case("broker", "oom", "load", "nothing", "the next one goes on with the change", ci=False),
    Case("broker", "full", "load", "nothing", "an operator's change holds, and is saved when there is room"),
    Case("frontend", "kill", "idle", "nothing", "no call was in flight; clients connect again"),
    Case("frontend", "kill", "batch", "connections", _OWN),
    Case("frontend", "kill", "result", "connections", _OWN, ci=False),
    Case("frontend", "kill", "load", "connections", _OWN, ci=False),
    Case("frontend", "kill", "drain", "connections", "its calls are lost; the other's are answered",
         own_server=True, ci=False),
    Case("frontend", "stop", "idle", "connections", "found by the supervisor, and killed", waits_for="watchdog",
         ci=False),
    Case("frontend", "stop", "batch", "connections", "found by the supervisor, and killed", waits_for="watchdog",
         ci=False),
    Case("frontend", "start", "idle", "nothing", "started again after 100, 100 ms; the other one serves", times=2,
         ci=False),
    Case("frontend", "oom", "idle", "nothing", "no call was in flight; clients connect again", ci=False),
    Case("frontend", "oom", "batch", "connections", _OWN, ci=False),
    Case("frontend", "full", "idle", "nothing", "no memory for its request ring: likewise", times=2),
    Case("supervisor", "kill", "batch", "gone", "each process sees it and leaves", own_server=True),
    Case("supervisor", "kill", "load", "gone", "the author leaves, too", own_server=True, ci=False),
    Case("supervisor", "kill", "drain", "gone", "each process leaves at once", own_server=True, ci=False),
    Case("supervisor", "stop", "batch", "nothing", "who dies meanwhile is not replaced"),
    Case("supervisor", "oom", "batch", "gone", "each process sees it and leaves", own_server=True, ci=False),
    Case("supervisor", "fork", "idle", "nothing", "the broker is to be replaced: tried again", waits_for="forks"),
    Case("supervisor", "full", "idle", "refused", "at the start: no room for sockets and settings", own_server=True,
         waits_for="room"),
    Case("author", "kill", "load", "nothing", _AUTHOR),
    Case("author", "kill", "load", "version", "the version ended two authors", times=2),
    Case("author", "stop", "load", "nothing",
         "the others serve; the load goes on when it is continued, or anew when it is killed", ci=False),
    Case("author", "start", "load", "nothing", _AUTHOR, ci=False),
    Case("author", "oom", "load", "nothing", _AUTHOR, ci=False),
    Case("author", "oom", "load", "version", "the version ended two authors", times=2, ci=False),
    Case("author", "full", "load", "nothing", "its weights are not shared: each worker loads its own"),
    Case("author", "abort", "load", "nothing", _AUTHOR, ci=False),
)  # fmt: skip

#: (roles, faults, moments, why there is no such cell); an empty text stands for all. The first that fits counts.
NO_CELLS = (
    ("worker broker frontend supervisor author", "hung", "", "the pool is there, and ends who hangs: as by each alone"),
    ("author", "", "idle batch result", "it lives only while a version is loaded"),
    ("author", "", "drain", "a pool that stops ends its authors by itself (tests/workers/test_pool_weights.py)"),
    ("pool broker frontend supervisor", "abort", "", "it runs nothing of TensorFlow"),
    ("worker", "abort", "idle", "TensorFlow runs nothing"),
    ("worker broker frontend author", "fork", "", "it starts no process; the pool's cells are of those it forks"),
    ("", "start", "batch result drain", "who starts has nothing in flight yet"),
    ("broker pool frontend", "start", "load", "nothing is being loaded by it: as idle"),
    ("supervisor", "start", "", "whoever started it sees its status; no client has been served"),
    ("supervisor", "fork", "load", "it starts nothing then: as idle"),
    ("pool supervisor", "fork", "batch result drain", "as idle: the fork comes after the end of who is replaced"),
    ("", "oom full abort stop", "drain", "the same end as by kill, or a wait that the drain's own limit ends"),
    ("worker", "full", "batch result load", "memory that cannot be had when it is written to is an OOM kill"),
    ("frontend", "full", "batch result load", "memory that cannot be had when it is written to is an OOM kill"),
    ("pool", "full", "idle batch result", "it allocates for weights only, when a version is loaded"),
    ("broker", "full", "idle batch result", "it writes the configuration, when that changes; counts that find no room "
     "are lost (tests/config/test_metric_file.py)"),
    ("supervisor", "full", "batch result load", "it writes at its start only"),
    ("supervisor", "kill", "idle", "as mid-batch"),
    ("supervisor", "oom stop", "idle load", "as mid-batch"),
    ("supervisor", "", "result", "it takes no part in calls: as mid-batch"),
    ("frontend", "stop oom", "result load", "as mid-batch"),
    ("broker", "stop oom", "result", "as mid-batch"),
    ("pool", "stop", "batch result", "its workers go on: as idle"),
    ("pool", "oom", "batch result", "the same end as by kill"),
    ("pool", "hung", "idle result load drain", "as mid-batch"),
)


def why_no_cell(role: str, fault: str, moment: str) -> str:
    """Why the matrix has no such cell; empty when nothing says so."""
    for roles, faults, moments, why in NO_CELLS:
        given = ((roles, role), (faults, fault), (moments, moment))
        if all(not text or word in text.split() for text, word in given):
            return why
    return ""


def cells() -> Iterator[tuple[str, str, str]]:
    """Every (role, fault, moment)."""
    for role in ROLES:
        for fault in FAULTS:
            for moment in MOMENTS:
                yield role, fault, moment
