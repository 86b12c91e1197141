"""Which calls of a read are refused before anybody has looked at their messages, and the refusing itself.

A call that has waited for a quarter of its deadline is refused, and in a rush (`rush.py`) all but some of each read
are: the newest of those that are alike are taken, as they have waited least, and the others are told at once. Only
calls of methods that are work, and that have a deadline, are ever refused; the others wait.
"""

from __future__ import annotations

from typing import Final

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2.arriving import Arriving
from ringserve.frontend.http2.calls import turned_away
from ringserve.frontend.http2.headers import HeaderCache, HeaderDecoder
from ringserve.frontend.http2.request import Request
from ringserve.frontend.http2.runs import run_of_calls
from ringserve.frontend.http2.sending import Host

#: More work in one part of a read than others can wait for: bytes of header blocks that no cache knows, about a
#: microsecond each.
WORK_AT_ONCE_MAX: Final = 2_048
#: Longer than anybody waits.
NEVER_NS: Final = 1 << 63
#: More calls than a read can hold.
ALL_CALLS: Final = 1 << 62


class Refusing(Arriving):
    """The input of one connection, without what comes too late.

    room_calls: how many calls that may be refused are still taken of the present read.
    """

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits) -> None:
        super().__init__(host, limits.unsent_bytes_max)
        self.told = cache.methods.refused
        self.room_calls = ALL_CALLS
        self._limits = limits
        self._decoder = HeaderDecoder(cache)

    def _decode(self, block: bytes) -> Request:
        """The request of a header block that is not in the cache. ConnectionFault: it is not HPACK."""
        request = self._decoder.decode(block)
        self.work += self._decoder.read_bytes
        return request

    def _turn_away_run(self, data: bytes, at: int, request: Request, waited_ns: int) -> int:
        """Refuses what is too much of the calls from `at` on that are like this one, which may be refused.

        Where the refused ones end; 0: there are none, or they must be refused one by one.
        """
        if request.unary is None or request.echo or self.told is not None or self.inline_bytes_max < 0:
            return 0
        chosen_ns = NEVER_NS if self.is_in_rush else waited_ns

        def goes_on(block: bytes, body_bytes: int) -> bool:
            other = self._decoder.alike(block) if self.work <= WORK_AT_ONCE_MAX else None
            if other is None or other.unary is None or other.echo or other.body_bytes not in (-1, body_bytes):
                return False
            self.work += self._decoder.read_bytes
            return 0 < other.patience_ns < chosen_ns

        streams, call_bytes, body_bytes = run_of_calls(
            data, at, request, self.last_stream_id, self._limits.message_bytes_max, goes_on
        )
        if self.room_calls and request.patience_ns >= waited_ns:
            del streams[-self.room_calls :]
        if not streams:
            return 0
        self.last_stream_id = int.from_bytes(streams[-1], "big")
        self._received_bytes += len(streams) * body_bytes
        self._noise.forgive(len(streams))
        self.calls.turn_away(len(streams))
        self.out.append(turned_away(streams))
        return at + len(streams) * call_bytes
