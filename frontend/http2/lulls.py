"""Pure: whether a connection had better not be read for a moment, so that its next read holds more.

A read costs some 20 us whatever it holds, and calls that lie one behind another in it half of what each costs alone. A
frontend that keeps up reads one call at a time, and takes for that what workers on its core could have worked off the
queue with: on one core 45,000 calls a second that came as they liked were 30,000 answers, and 45,000 with pauses.
Where calls take long because they wait in a queue, a pause is a part of that wait, and makes it shorter.
"""

from __future__ import annotations

from typing import Final

#: How long a pause is. Event loops count whole milliseconds.
PAUSE_NS: Final = 3_000_000
#: And where calls take but little longer than that.
_PAUSE_NS_SHORT: Final = 2_000_000
#: Who is answered sooner, what he waited unread included, waits for no queue that would outlast a pause.
_TOOK_NS_MIN: Final = 3_000_000
#: A read that will hold fewer calls costs as much as theirs did.
_CALLS_MIN: Final = 4
#: A deadline must bear some pauses, where nobody need be refused: a call that came in one counts as that much older.
_PATIENCE_NS_MIN: Final = 2 * PAUSE_NS
#: How far one answer moves what is believed.
_PART: Final = 8


class Lulls:
    """What one connection's answers tell. One a turn of the loop is enough."""

    __slots__ = ("_patience_ns", "_took_ns")

    def __init__(self) -> None:
        self._took_ns = 0
        self._patience_ns = 0

    def answered(self, took_ns: int, patience_ns: int) -> None:
        """took_ns: from a call's arrival to its answer. patience_ns: for so long it may be unread; 0: for ever."""
        self._took_ns += (took_ns - self._took_ns) // _PART
        if patience_ns:
            self._patience_ns = patience_ns

    def pause_ns(self, in_flight_count: int, is_crowded: bool, was_long: bool, is_barred: bool = False) -> int:
        """How long nothing is read; 0: read on.

        in_flight_count: calls that wait for their answers. is_crowded: some of the last read were refused. was_long: it
        held many calls. is_barred: its calls come without their messages (`barring.py`), and cost little but the read.
        """
        if is_barred and self._patience_ns >= 2 * _PAUSE_NS_SHORT:
            return 0 if was_long else _PAUSE_NS_SHORT
        took_ns = self._took_ns
        if 0 < self._patience_ns < _PATIENCE_NS_MIN:
            # Of 60,000 calls a second that had 20 ms 20,000 were answered so, 12,000 without any, 16,000 with all.
            return PAUSE_NS if is_crowded and not was_long else 0
        if is_crowded:
            return PAUSE_NS
        pause_ns = PAUSE_NS if took_ns >= 2 * PAUSE_NS else _PAUSE_NS_SHORT
        return pause_ns if took_ns >= _TOOK_NS_MIN and in_flight_count * pause_ns >= _CALLS_MIN * took_ns else 0
