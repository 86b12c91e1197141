"""Pure: turns of the event loop that last too long for the calls in it, and how long its reads may then take.

A loop reads whoever has sent something before it goes round again. Of 400 connections that asked for a little too much
this took 30 ms, in which nothing that had been read was handed on and nobody was answered, and who was read last had
waited for all of it without a trace. So calls that had 50 ms were late by the time of three such turns: of 40,000 a
second 5,000 were answered in time. Where turns take longer than their calls can bear, connections are read in groups
(`turns.py`), each as small as its calls' deadlines ask for: 30,000.
"""

from __future__ import annotations

from typing import Final

#: For how long turns are taken to be long after one that was.
_LONG_FOR_NS: Final = 100_000_000
#: Parts of the time that a call may be unread: a turn that takes longer is long; and what reads may take in one then.
#: Of 12.5 ms. With 2 ms in place of 4 messages and batches get smaller (17,000 in place of 21,000 of 40,000 on 400
#: connections), with 8 too many calls are late.
_BEARABLE: Final = 2
_GROUP: Final = 3
#: Who has less patience gets turns as if he had so much: small groups cost everybody something.
PATIENCE_NS_MIN: Final = 4_000_000
#: What comes while its connection waits for its group comes at any time of that: for so much of it the first call is
#: taken to have waited. With none of it half of all calls were late, with all of it most were refused; in the middle
#: 21,000 of 40,000 were answered with three fifths or a half of it, 27,000 with this.
WAITED_PART: Final = 0.4


class LongTurns:
    """What is known of one event loop's turns. group_ns: how long reads may take in one, while turns are long."""

    __slots__ = ("_began_ns", "_ended_ns", "_long_ns", "_patience_ns", "_times", "_times_next", "_took_ns", "group_ns")

    def __init__(self) -> None:
        self._began_ns = 0  # the first read of this turn; 0: there was none
        self._ended_ns = 0
        self._took_ns = 0  # the last one that was timed, or would have if nobody had waited for a later one
        self._times = self._times_next = 1.0
        self._long_ns = -_LONG_FOR_NS  # when there was one
        self._patience_ns = 0  # of the last call that had a deadline
        self.group_ns = PATIENCE_NS_MIN // _GROUP

    def reads(self, now_ns: int) -> bool:
        """Somebody is read. True: as the first one of this turn, whose end is to be told by `ended`."""
        if self._began_ns:
            return False
        self._began_ns = now_ns
        self._times, self._times_next = self._times_next, 1.0
        return True

    def grouped(self, count: int, waiting_count: int) -> None:
        """So many are read in the next turn, at least one, while so many more wait."""
        self._times_next = 1.0 + waiting_count / count

    def ended(self, now_ns: int) -> None:
        """All that could be read in this turn was."""
        self._took_ns = int((now_ns - self._began_ns) * self._times)
        self._began_ns, self._ended_ns = 0, now_ns

    def answered(self, patience_ns: int, now_ns: int) -> None:
        """A call was answered that might have been unread for so long; 0: for ever."""
        if patience_ns:
            self._patience_ns = max(patience_ns, PATIENCE_NS_MIN)
            self._judge(now_ns)

    def refused(self, now_ns: int) -> None:
        """Calls had been unread for too long: where all are, nobody is answered."""
        self._judge(now_ns)

    def _judge(self, now_ns: int) -> None:
        # Turns are not timed any more where all but a few have left: what the last one took says nothing then.
        is_known = now_ns - self._ended_ns < _LONG_FOR_NS
        if is_known and 0 < self._patience_ns < _BEARABLE * self._took_ns:
            self._long_ns = now_ns
            self.group_ns = self._patience_ns // _GROUP

    def are_long(self, now_ns: int) -> bool:
        return now_ns - self._long_ns < _LONG_FOR_NS
