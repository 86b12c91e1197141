"""Which calls of a read are refused before anybody has looked at their messages, and the refusing itself.

A call whose message begins and ends as those do that would be refused now is refused like them (`handler.Crowd`). One
that has waited for a quarter of its deadline is refused, and in a rush (`rush.py`) all but some of each read are. Of
calls that are alike the newest are taken, as they have waited least, and the others are told at once. Only calls of
methods that are work, and that have a deadline, are ever refused; the others wait.
"""

from __future__ import annotations

from math import inf
from typing import Final

from ringserve.frontend.handler import Crowd, EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import Arriving
from ringserve.frontend.http2.calls import turned_away
from ringserve.frontend.http2.grpc_messages import PREFIX_BYTES
from ringserve.frontend.http2.headers import HeaderCache, HeaderDecoder
from ringserve.frontend.http2.request import Request
from ringserve.frontend.http2.runs import Calls, run_of_calls
from ringserve.frontend.http2.sending import Host

#: More work in one part of a read than others can wait for: bytes of header blocks that no cache knows, about a
#: microsecond each.
WORK_AT_ONCE_MAX: Final = 2_048
#: Longer than anybody waits.
NEVER_NS: Final = 1 << 63
#: More calls than a read can hold.
ALL_CALLS: Final = 1 << 62
#: By such a part of it the timeouts of calls may be longer than the first one's that are refused with it.
_TIMEOUT_VARIES: Final = 16


class Refusing(Arriving):
    """The input of one connection, without what comes too late.

    room_calls: how many calls that may be refused are still taken of the present read. was_crowded: some calls were
    refused as their lane is full, since the host last looked.
    """

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits) -> None:
        super().__init__(host, limits.unsent_bytes_max)
        self.told = cache.methods.refused
        self._crowds = cache.methods.crowds
        self.room_calls = ALL_CALLS
        self.was_crowded = False
        self._limits = limits
        self._decoder = HeaderDecoder(cache)

    def crowded(self, crowd: Crowd, size: int) -> None:
        """Messages of that size were refused as their lane is full."""
        self.was_crowded = True

    def _decode(self, block: bytes) -> Request:
        """The request of a header block that is not in the cache. ConnectionFault: it is not HPACK."""
        request = self._decoder.decode(block)
        self.work += self._decoder.read_bytes
        return request

    def _refuse_run(
        self, data: bytes, at: int, request: Request, waited_ns: int, sought_ns: int
    ) -> tuple[int, int]:
        """Refuses what is too much of the calls from `at` on that are like this one, which may be refused.

        sought_ns: those of less patience have waited for too long, or are too many. Where the refused ones end, 0:
        there are none, or they must be refused one by one; and where the next look is worth it.
        """
        if request.unary is None or request.echo or self.told is not None or self.inline_bytes_max < 0:
            return 0, 0
        if self._crowds:
            refused = self._refuse_crowd(data, at, request)
            if refused is not None:
                return refused
        return (self._turn_away_run(data, at, request, waited_ns) if request.patience_ns < sought_ns else 0), 0

    def _refuse_crowd(self, data: bytes, at: int, request: Request) -> tuple[int, int] | None:
        """Refuses calls whose lane is full; None: this one's is not."""
        body_at = at + 9 + int.from_bytes(data[at : at + 3], "big")
        size = int.from_bytes(data[body_at : body_at + 3], "big") - PREFIX_BYTES
        message_at = body_at + 9 + PREFIX_BYTES
        for crowd in self._crowds.get(size, ()):
            if (
                data.startswith(crowd.prefix, message_at)
                and data.startswith(crowd.suffix, message_at + size - len(crowd.suffix))
                and request.details.path == crowd.path
            ):
                break
        else:
            return None
        timeout_ns = request.timeout_ns + request.timeout_ns // _TIMEOUT_VARIES
        room = crowd.room(request.timeout_ns - self.waited_ns())
        if room == inf:
            self._disperse(size, crowd)
            return None

        def goes_on(_: bytes, block: bytes, body_bytes: int) -> bool:
            other = self._known(block, body_bytes)
            return other is not None and other.unary is request.unary and 0 < other.timeout_ns <= timeout_ns

        run = run_of_calls(
            data, at, request, self.last_stream_id, self._limits.message_bytes_max, goes_on, crowd.prefix, crowd.suffix,
            open_streams=self.streams,
        )  # fmt: skip
        streams, end = run.streams, run.stop(len(run.streams))
        taken = int(min(room, self.room_calls))
        if taken > 0:
            del streams[-taken:]
        if not streams:
            return 0, end
        self.crowded(crowd, size)
        code, text, retry_ms = crowd.refuse(len(streams))
        self.calls.refuse_all(code, len(streams))
        pushback = frames.retry_pushback(retry_ms) if retry_ms else b""
        return self._answer_calls(run, turned_away(streams, frames.refusal_block(code, text, pushback))), end

    def _disperse(self, size: int, crowd: Crowd) -> None:
        """Its lane is full no more."""
        self._crowds[size].remove(crowd)
        if not self._crowds[size]:
            del self._crowds[size]

    def _known(self, block: bytes, body_bytes: int) -> Request | None:
        """The request of a block in a run, as far as it costs little to know it and nothing in it needs a look."""
        other = self._decoder.alike(block) if self.work <= WORK_AT_ONCE_MAX else None
        if other is None or other.unary is None or other.echo or other.body_bytes not in (-1, body_bytes):
            return None
        self.work += self._decoder.read_bytes
        return other

    def _answer_calls(self, run: Calls, answers: bytes) -> int:
        """Answers those that are left of a run, and passes the resets between them. Where they end."""
        count = len(run.streams)
        self._answer_run(count, run.streams[-1], count * run.body_bytes, answers)
        resets = run.resets_before(count)
        if resets:
            self._noise.add_late_resets(resets)
        return run.stop(count)

    def _answer_run(self, count: int, last_stream: bytes, received_bytes: int, answers: bytes) -> None:
        self.last_stream_id = int.from_bytes(last_stream, "big")
        self._received_bytes += received_bytes
        self._noise.forgive(count)
        self.out.append(answers)

    def _turn_away_run(self, data: bytes, at: int, request: Request, waited_ns: int) -> int:
        """Those that have waited for too long, or are too many; as `_refuse_run`."""
        chosen_ns = NEVER_NS if self.is_in_rush else waited_ns

        def goes_on(_: bytes, block: bytes, body_bytes: int) -> bool:
            other = self._known(block, body_bytes)
            return other is not None and 0 < other.patience_ns < chosen_ns

        run = run_of_calls(
            data, at, request, self.last_stream_id, self._limits.message_bytes_max, goes_on, open_streams=self.streams
        )
        streams = run.streams
        if self.room_calls and request.patience_ns >= waited_ns:
            del streams[-self.room_calls :]
        if not streams:
            return 0
        self.calls.turn_away(len(streams))
        return self._answer_calls(run, turned_away(streams))
