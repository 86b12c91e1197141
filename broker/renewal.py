"""Pure: when a group's workers are replaced although they serve what they shall: they are old, or take much memory.

All of them are, by a new generation: what ages or leaks does so in all. Groups do not go at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from ringserve.broker.members import Member

log = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
#: Workers live for the age limit, less up to this share of it.
_AGE_SPREAD = 0.2
#: After a renewal for memory the next comes no sooner than this; doubled each time that it comes as soon as it may.
_PAUSE_NS_MIN, _PAUSE_NS_MAX = 60 * _SECOND_NS, 3_600 * _SECOND_NS


class Renewal:
    """Decides for one group. bytes_max, age_ns_max: of one worker; 0 = no limit.

    A generation that is too old is named once a minute, as it stays when its successor cannot load what it serves.
    """

    def __init__(self, group: str, *, bytes_max: int, age_ns_max: int) -> None:
        self._group = group
        self._bytes_max = bytes_max
        self._age_ns_max = age_ns_max
        self._pause_ns = _PAUSE_NS_MIN
        self._renewed_ns = 0
        self._not_before_ns = 0
        self._told = False
        self._aged = -1  # the generation that was too old last
        self._age_again_ns = 0

    def look(self, members: Iterable[Member], bytes_of: Mapping[int, int], now_ns: int) -> str:
        """Why the workers are to be replaced now: "age" or "memory"; empty when they are not.

        members: of the generation that serves. bytes_of: private memory by process id, as far as it is known.
        """
        members = list(members)
        old = [each for each in members if 0 < self.age_limit_ns(each.generation) <= now_ns - each.born_ns]
        if old and (old[0].generation != self._aged or now_ns >= self._age_again_ns):
            self._aged, self._age_again_ns = old[0].generation, now_ns + _PAUSE_NS_MIN
            return "age"
        if not self._bytes_max:
            return ""
        largest = max(members, key=lambda member: bytes_of.get(member.pid, 0), default=None)
        if largest is None or bytes_of.get(largest.pid, 0) <= self._bytes_max:
            return ""
        if now_ns < self._not_before_ns:
            self._tell(largest, bytes_of[largest.pid], now_ns)
            return ""
        # One that came as soon as it could did not help for long.
        soon = self._renewed_ns and now_ns - self._renewed_ns < 2 * self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _PAUSE_NS_MAX) if soon else _PAUSE_NS_MIN
        self._renewed_ns = now_ns
        self._not_before_ns = now_ns + self._pause_ns
        self._told = False
        return "memory"

    def age_limit_ns(self, generation: int) -> int:
        """Of the workers of this generation."""
        digest = blake2b(f"{self._group}:{generation}".encode(), digest_size=8).digest()
        return int(self._age_ns_max * (1 - _AGE_SPREAD * int.from_bytes(digest) / 2**64))

    def _tell(self, member: Member, count_bytes: int, now_ns: int) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "group %s: process %d has %d bytes of its own, above worker_bytes_max (%d), only %d s after its group "
                "was renewed for that: the next renewal comes in %d s at the earliest. Is the limit too low?",
                self._group,
                member.pid,
                count_bytes,
                self._bytes_max,
                (now_ns - self._renewed_ns) // _SECOND_NS,
                (self._not_before_ns - now_ns) // _SECOND_NS,
            )
