"""Which processes would go on if they were given a CPU: one that waits for that is starved, and no hang.

A process that hangs waits for none: blocked or stopped it wants no CPU, and in an endless loop it has one. The kernel
counts how long each has waited (/proc/PID/schedstat), but only when a wait is over. One that is still to be run says
nothing there, so its state tells: runnable at two looks, and not run between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

#: A starved process may be silent for so many times its limit: by then it is of no use to anybody, hung or not.
_TIMES_MAX: Final = 3
#: What counts of waiting, and as having been run: this part of the limit.
_PART: Final = 4
#: Looks that are closer count as one: the kernel adds up the time of who is on a CPU at its ticks.
_LOOK_NS_MIN: Final = 250_000_000
_S_NS: Final = 1_000_000_000


class CpuTimes(NamedTuple):
    """Of a process's main thread, which its loop runs in. ran_ns: on a CPU; waited_ns: for one, as far as those waits
    are over; runs: how often it was given one; is_runnable: it runs or wants to. name: what `ps` shows."""

    ran_ns: int
    waited_ns: int
    runs: int
    is_runnable: bool
    name: str = ""


def read_cpu_times(pid: int) -> CpuTimes | None:
    """None where the system does not tell, or the process is gone."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            ran_ns, waited_ns, runs = map(int, file.read().split()[:3])
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            before, _, after = file.read().rpartition(")")
    except (OSError, ValueError):
        return None
    return CpuTimes(ran_ns, waited_ns, runs, after.split()[:1] == ["R"], before.partition("(")[2])


def waited_between(before: CpuTimes, after: CpuTimes, passed_ns: int) -> int:
    """How much of the time between two looks it has waited for a CPU."""
    was_run = after.runs != before.runs or after.ran_ns != before.ran_ns
    if before.is_runnable and after.is_runnable and not was_run:
        return passed_ns
    return min(after.waited_ns - before.waited_ns, passed_ns)


def is_starved(silence_ns: int, waited_ns: int, ran_ns: int, limit_ns: int) -> bool:
    """Whether one that has been silent for its limit is to be waited for: since it spoke it has waited for a CPU, of
    which it got too little to say anything, and what is left of the silence is within the limit.

    It sleeps for half of its limit before it is to speak again, so that waiting need not be most of the silence.
    """
    has_waited = _PART * waited_ns > limit_ns and _PART * ran_ns < limit_ns
    return has_waited and silence_ns - waited_ns < limit_ns and silence_ns < _TIMES_MAX * limit_ns


@dataclass
class _Known:
    """heard_ns: its last sign of life. first: at the first look after that; times, at_ns: at the last. waited_ns:
    between these."""

    heard_ns: int
    first: CpuTimes
    times: CpuTimes
    at_ns: int
    waited_ns: int = 0
    told: bool = False


class CpuWaits:
    """What processes have waited for CPUs since they were heard of last. read: by process id."""

    def __init__(self, read: Callable[[int], CpuTimes | None] = read_cpu_times) -> None:
        self._read = read
        self._known: dict[int, _Known] = {}

    def look(self, heard: Iterable[tuple[int, int]], now_ns: int) -> None:
        """Look at these processes, and at no others any more: (process id, when it was heard of last). Call it soon
        after each sign of life, and often: what was waited before the first look at a silence does not count."""
        before, self._known = self._known, {}
        for pid, heard_ns in heard:
            known = before.get(pid)
            if known is not None and known.heard_ns == heard_ns and now_ns < known.at_ns + _LOOK_NS_MIN:
                self._known[pid] = known
                continue
            times = self._read(pid)
            if times is None:
                continue
            if known is None or known.heard_ns != heard_ns:
                known = _Known(heard_ns, times, times, now_ns)
            known.waited_ns += waited_between(known.times, times, now_ns - known.at_ns)
            known.times, known.at_ns = times, now_ns
            self._known[pid] = known

    def excuse(self, pid: int, silence_ns: int, limit_ns: int) -> bool:
        """Whether this one, silent for too long, is only starved. Logs it, once for each silence."""
        known = self._known.get(pid)
        if known is None:
            return False
        if not is_starved(silence_ns, known.waited_ns, known.times.ran_ns - known.first.ran_ns, limit_ns):
            return False
        if not known.told:
            known.told = True
            log.warning(
                "%s (process %d) has been silent for %.1f s and has waited for a CPU for %.1f s of them: it is starved "
                "and gets up to %.0f s, as this host has more to do than it can",
                known.times.name, pid, silence_ns / _S_NS, known.waited_ns / _S_NS, _TIMES_MAX * limit_ns / _S_NS,
            )  # fmt: skip
        return True
