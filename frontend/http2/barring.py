"""Calls refused by their headers, in a rush in which most are: their clients keep the messages until they are let in.

To refuse a call whose message has come costs little here, but the message has been carried for nothing: written by the
client, copied by the kernel twice. Where most are refused that is most of what all of them cost, and a queue forms in
sockets and clients in which every call waits until it is too late. So a connection most of whose calls are refused
unread is *barred*: new streams have no room for a message at all. What comes then are forty bytes a call. Who is let in
is given its window, for a round trip more than else; the others are told to keep theirs.

Those that are let in come one batch at a time: while many of them are on their way, the next ones are refused. So what
a round costs (`rush.py`) is known before there is another.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.beginnings import NARROW_BYTES, Beginnings
from ringserve.frontend.http2.calls import Exchange, UnaryCall, stopped, turned_away
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import DATA, END_HEADERS, END_STREAM, FRAME_HEADER, HEAD_RESET, HEADERS
from ringserve.frontend.http2.grpc_messages import PREFIX_BYTES
from ringserve.frontend.http2.headers import HeaderCache
from ringserve.frontend.http2.refusing import NEVER_NS
from ringserve.frontend.http2.request import Request
from ringserve.frontend.http2.runs import run_of_headers
from ringserve.frontend.http2.sending import Host

#: Who was let in and has not come after so long is far away, or slow, and nobody else waits for it.
LET_IN_NS: Final = 50_000_000
#: Of its deadline a call may have lost three eighths until its message is there; more is not won back by refusing it.
_KEPT: Final = 3 / 2
#: Calls that are looked at before the first of them is answered, and how many are as much work as an unknown byte of a
#: header block (`WORK_AT_ONCE_MAX`).
_ROW_CALLS_MAX: Final = 512
_ROW_CALLS_PER_WORK: Final = 4

_frame_header = FRAME_HEADER.unpack_from
_message_head = Struct(">IBIBI").unpack_from  # of a DATA frame, and of the message in it


class Run(NamedTuple):
    """Calls of a row that are alike. at: where they begin. call_bytes: each one's. is_whole: it is one call, and its
    message has come: its client did not know better."""

    at: int
    call_bytes: int
    streams: list[bytes]
    is_whole: bool


class Row(NamedTuple):
    """Calls, and resets of streams that are closed or in this row, as they lie one behind another until `end`.

    So lie the frames of a client that begins many calls and gives up many.

    given_up: the streams that are reset. received_bytes: of DATA.
    """

    runs: list[Run]
    given_up: set[bytes]
    resets: int
    received_bytes: int
    end: int


class Barring(Beginnings):
    """The input of one connection, without the messages of what would be refused.

    is_barring: its client keeps messages until they are let in. let_in: the streams whose messages may come now.
    """

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits) -> None:
        super().__init__(host, cache, limits)
        self.is_barring = False
        self.let_in: set[int] = set()
        self._let_in_ns = 0  # when the newest was
        self._barred_streams = range(0)  # may have sent a message before their client knew

    def bar(self, is_barring: bool) -> None:
        """From now on messages must wait for being let in, or need not any more."""
        if is_barring != self.is_barring:
            self.is_barring = is_barring
            next_id = self.last_stream_id + 1
            first = self._barred_streams.start or next_id
            self._barred_streams = range(first, frames.WINDOW_BYTES_CEILING if is_barring else next_id)
            self._resize()

    def room_left(self, room_calls: int, now_ns: int) -> int:
        """How many calls of a read are taken, of so many in a round."""
        expected = len(self.let_in)
        if not expected or now_ns - self._let_in_ns > LET_IN_NS:
            return room_calls
        return max(0, room_calls // 2 - expected)

    def is_too_much(self, call: UnaryCall) -> bool:
        """A call that may be refused has come whole. Whether it has waited for too long, or is one too many."""
        if call.stream_id in self.let_in:
            self.let_in.remove(call.stream_id)
            return self._was_kept_long(call)
        return self.waited_ns() > call.request.patience_ns or not call.has_room()

    def _was_kept_long(self, call: Exchange) -> bool:
        return self.host.clock_ns() - call.arrived_ns > _KEPT * call.request.patience_ns

    def _withheld(self) -> int:
        return STREAM_WINDOW_BYTES if self.is_barring else super()._withheld()

    def _was_barred(self, stream_id: int) -> bool:
        """Its client may not have known that it must keep what it sends on this stream."""
        return stream_id in self._barred_streams

    def _refuse_run(
        self, data: bytes, at: int, request: Request, waited_ns: int, sought_ns: int
    ) -> tuple[int, int]:
        if not self.is_barring:
            return super()._refuse_run(data, at, request, waited_ns, sought_ns)
        if self.told is not None or self.inline_bytes_max < 0 or request.patience_ns >= sought_ns:
            return 0, 0
        row = self._row_of_calls(data, at, waited_ns)
        if not row.runs:
            return 0, 0
        room = min(self.room_calls, self._limits.concurrent_streams_max - len(self.streams))
        last_stream = row.runs[-1].streams[-1]
        kept = self._keep_newest(row, room) if request.patience_ns >= waited_ns else []
        self._refuse_row(row)
        self.last_stream_id = int.from_bytes(last_stream, "big")
        for stream, place, stop in reversed(kept):
            known = self._decoder.alike(data[place + 9 : stop])
            assert known is not None, "it was in the row"
            stream_id = int.from_bytes(stream, "big")
            call = self.streams[stream_id] = UnaryCall(self, stream_id, known)  # type: ignore[arg-type]
            self._admit(call, 0)
        return row.end, 0

    def _row_of_calls(self, data: bytes, at: int, waited_ns: int) -> Row:
        """The calls from `at` on that may be refused. Their messages need not have come."""
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
            if head == HEAD_RESET and stream_id <= last and stream_id & 1 and stream_id not in streams:
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
                run = Run(at, stop + 9 + body_bytes - at, [data[at + 5 : at + 9]], True)
            else:
                run = Run(at, stop - at, run_of_headers(data, at, last, goes_on), False)
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

    def _refuse_row(self, row: Row) -> None:
        runs = [run for run in row.runs if run.streams]
        count = sum(len(run.streams) for run in runs)
        if count:
            self.calls.turn_away(count)
            self.work += count // _ROW_CALLS_PER_WORK
            answers = [turned_away(run.streams) if run.is_whole else stopped(run.streams) for run in runs]
            self._answer_run(count, runs[-1].streams[-1], row.received_bytes, b"".join(answers))
        if row.resets:
            self._noise.add_late_resets(row.resets)

    @staticmethod
    def _keep_newest(row: Row, room: int) -> list[tuple[bytes, int, int]]:
        """Takes so many calls out of a row, the newest first: their streams, and where their HEADERS lie.

        None whose client has given it up already, and none that has sent its message before it knew better.
        """
        kept: list[tuple[bytes, int, int]] = []
        for run in reversed(row.runs):
            for number in range(len(run.streams) - 1, -1, -1):
                if len(kept) >= room:
                    return kept
                if not run.is_whole and run.streams[number] not in row.given_up:
                    place = run.at + number * run.call_bytes
                    kept.append((run.streams.pop(number), place, place + run.call_bytes))
        return kept

    def _admit(self, call: Exchange, waited_ns: int) -> None:
        """A new call whose message its client keeps: let in, unless it may be refused and there is no room."""
        request = call.request
        if request.patience_ns and isinstance(call, UnaryCall):
            if not self.room_calls or request.patience_ns < waited_ns:
                self._noise.forgive(1)
                call.turn_away_by_name()
                return
            self.room_calls -= 1
            self.let_in.add(call.stream_id)
            self._let_in_ns = self.received_ns
        nbytes = NARROW_BYTES if self._is_narrow else STREAM_WINDOW_BYTES  # which may have grown since it was opened
        call.unreturned_bytes -= nbytes
        self.write(frames.window_update(call.stream_id, nbytes))

    def _forget_stream(self, call: Exchange) -> None:
        super()._forget_stream(call)
        self.let_in.discard(call.stream_id)
