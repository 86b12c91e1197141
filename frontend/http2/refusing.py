"""Which calls of a read are refused before anybody has looked at their messages, and the refusing itself.

A call whose message begins and ends as those do that would be refused now is refused like them (`handler.Crowd`). One
that has waited for a quarter of its deadline is refused, and in a rush (`rush.py`) all but some of each read are. Of
calls that are alike the newest are taken, as they have waited least, and the others are told at once. Only calls of
methods that are work, and that have a deadline, are ever refused; the others wait.
"""

from __future__ import annotations

from math import inf
from struct import Struct
from typing import Final, NamedTuple

from ringserve.frontend.handler import Crowd, EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import Arriving
from ringserve.frontend.http2.calls import stopped, turned_away
from ringserve.frontend.http2.frames import DATA, END_HEADERS, END_STREAM, FRAME_HEADER, HEADERS, RST_STREAM
from ringserve.frontend.http2.grpc_messages import PREFIX_BYTES
from ringserve.frontend.http2.headers import HeaderCache, HeaderDecoder
from ringserve.frontend.http2.request import Request
from ringserve.frontend.http2.runs import run_of_calls, run_of_headers
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
#: Calls that are looked at one by one before the first of them is answered.
_ROW_CALLS_MAX: Final = 512
_ROW_CALLS_PER_WORK: Final = 4
_HEAD_RESET: Final = 4 << 8 | RST_STREAM

_frame_header = FRAME_HEADER.unpack_from
_message_head = Struct(">IBIBI").unpack_from  # of a DATA frame, and of the message in it


class Run(NamedTuple):
    """Calls of a row that are alike. at: where they begin. call_bytes: each one's. resets, received_bytes: what lies
    before them in the row. is_whole: it is one call, and its message has come."""

    at: int
    call_bytes: int
    streams: list[bytes]
    resets: int
    received_bytes: int
    is_whole: bool


class Row(NamedTuple):
    """Calls, and resets of streams that are closed or in this row, as they lie one behind another until `end`.

    given_up: the streams that are reset. received_bytes: of DATA.
    """

    runs: list[Run]
    given_up: set[bytes]
    resets: int
    received_bytes: int
    end: int


class Refusing(Arriving):
    """The input of one connection, without what comes too late.

    room_calls: how many calls that may be refused are still taken of the present read. was_crowded: some calls were
    refused as their lane is full, since the host last looked. is_barring: see `barring.py`.
    """

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits) -> None:
        super().__init__(host, limits.unsent_bytes_max)
        self.told = cache.methods.refused
        self._crowds = cache.methods.crowds
        self.room_calls = ALL_CALLS
        self.was_crowded = False
        self.is_barring = False
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
        if request.patience_ns >= sought_ns:
            return 0, 0
        after = self._turn_away_run(data, at, request, waited_ns)
        return after or self._turn_away_row(data, at, request, waited_ns), 0

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

        streams, call_bytes, body_bytes = run_of_calls(
            data, at, request, self.last_stream_id, self._limits.message_bytes_max, goes_on, crowd.prefix, crowd.suffix
        )
        end = at + len(streams) * call_bytes
        taken = int(min(room, self.room_calls))
        if taken > 0:
            del streams[-taken:]
        if streams:
            self.crowded(crowd, size)
            code, text, retry_ms = crowd.refuse(len(streams))
            self.calls.refuse_all(code, len(streams))
            pushback = frames.retry_pushback(retry_ms) if retry_ms else b""
            answers = turned_away(streams, frames.refusal_block(code, text, pushback))
            self._answer_run(len(streams), streams[-1], len(streams) * body_bytes, answers)
        return at + len(streams) * call_bytes if streams else 0, end

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

        streams, call_bytes, body_bytes = run_of_calls(
            data, at, request, self.last_stream_id, self._limits.message_bytes_max, goes_on
        )
        if self.room_calls and request.patience_ns >= waited_ns:
            del streams[-self.room_calls :]
        if not streams:
            return 0
        self.calls.turn_away(len(streams))
        self._answer_run(len(streams), streams[-1], len(streams) * body_bytes, turned_away(streams))
        return at + len(streams) * call_bytes

    def _turn_away_row(self, data: bytes, at: int, request: Request, waited_ns: int) -> int:
        """As `_turn_away_run`, of calls that may differ and resets that cross answers, as many clients' frames lie."""
        row = self._row_of_calls(data, at, waited_ns)
        runs, resets, received_bytes, end = row.runs, row.resets, row.received_bytes, row.end
        if self.room_calls and request.patience_ns >= waited_ns:
            for run in runs[-self.room_calls :][:1]:  # each is one call
                resets, received_bytes, end = run.resets, run.received_bytes, run.at
            del runs[-self.room_calls :]
        if not runs:
            return 0
        self._refuse_row(runs, received_bytes, resets)
        return end

    def _refuse_row(self, runs: list[Run], received_bytes: int, resets: int) -> None:
        count = sum(len(run.streams) for run in runs)
        if count:
            self.calls.turn_away(count)
            self.work += count // _ROW_CALLS_PER_WORK
            answers = [turned_away(run.streams) if run.is_whole else stopped(run.streams) for run in runs]
            self._answer_run(count, runs[-1].streams[-1], received_bytes, b"".join(answers))
        if resets:
            self._noise.add_late_resets(resets)

    def _row_of_calls(self, data: bytes, at: int, waited_ns: int) -> Row:
        """The calls from `at` on that may be refused. Of a barred connection's the messages need not have come."""
        chosen_ns = NEVER_NS if self.is_in_rush else waited_ns
        streams, end, last = self.streams, len(data), self.last_stream_id
        resets = nbytes = count = 0
        row = Row([], set(), 0, 0, 0)

        def goes_on(block: bytes) -> bool:
            return self._refusable(block, chosen_ns) is not None

        while at + 9 <= end and count < _ROW_CALLS_MAX:
            head, flags, stream_id = _frame_header(data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            if head == _HEAD_RESET and stream_id <= last and stream_id & 1 and stream_id not in streams:
                row.given_up.add(data[at + 5 : at + 9])
                resets += 1
                at = stop
                continue
            if head & 255 != HEADERS or flags != END_HEADERS or stream_id <= last or stream_id & 0x80000001 != 1:
                break
            other = self._refusable(data[at + 9 : stop], chosen_ns)
            if other is None:
                break
            body_bytes = self._body_behind(data, stop, stream_id, other)
            if body_bytes:
                run = Run(at, stop + 9 + body_bytes - at, [data[at + 5 : at + 9]], resets, nbytes, True)
            elif self.is_barring:
                run = Run(at, stop - at, run_of_headers(data, at, last, goes_on), resets, nbytes, False)
            else:
                break
            last = int.from_bytes(run.streams[-1], "big")
            count += len(run.streams)
            nbytes += body_bytes
            at += len(run.streams) * run.call_bytes
            row.runs.append(run)
        return row._replace(resets=resets, received_bytes=nbytes, end=at)

    def _refusable(self, block: bytes, chosen_ns: int) -> Request | None:
        """The request of this block, if it may be refused so and has less patience than that."""
        request = self._decoder.blocks.get(block) or self._known(block, -1)
        if request is None or request.unary is None or request.echo or not 0 < request.patience_ns < chosen_ns:
            return None
        return request

    def _body_behind(self, data: bytes, at: int, stream_id: int, request: Request) -> int:
        """The bytes of the DATA frame at `at` if it is the whole input of this call, one plain message; or else 0."""
        if at + 9 + PREFIX_BYTES > len(data):
            return 0
        head, flags, body_id, compressed, size = _message_head(data, at)
        if body_id != stream_id or head != size + PREFIX_BYTES << 8 | DATA or flags != END_STREAM or compressed:
            return 0
        body_bytes: int = head >> 8
        is_whole = at + 9 + body_bytes <= len(data) and size <= self._limits.message_bytes_max
        return body_bytes if is_whole and request.body_bytes in (-1, body_bytes) else 0
