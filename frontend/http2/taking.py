"""Calls that lie one behind another in a read and are alike, taken together where their handler knows how.

Under load a read holds many calls of one client, with the same headers, but perhaps for the deadline, and messages
that differ in one place. One `struct` reads the heads of them all (`runs.py`), and the handler does once what it else
does for each (`handler.Together`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ringserve.frontend.handler import Kind, Together
from ringserve.frontend.http2.bodies import Bodies
from ringserve.frontend.http2.calls import UnaryCall
from ringserve.frontend.http2.frames import FRAME_BYTES_DEFAULT, FRAME_HEADER
from ringserve.frontend.http2.grpc_messages import PREFIX_BYTES
from ringserve.frontend.http2.refusing import WORK_AT_ONCE_MAX
from ringserve.frontend.http2.request import INTERNAL, Request
from ringserve.frontend.http2.runs import run_of_calls, run_of_messages

#: Fewer are as cheap one by one.
TOGETHER_MIN: Final = 3
#: What is taken before others have their turn.
TOGETHER_MAX: Final = 128

#: Of `Arriving.work`: so many calls are enough.
_CALL_WORK: Final = WORK_AT_ONCE_MAX // TOGETHER_MAX + 1

_frame_header = FRAME_HEADER.unpack_from


class Taking(Bodies):
    """The input of one connection, whose calls may be taken together."""

    def _take_run(self, data: bytes, at: int, body_at: int, end: int, request: Request, waited_ns: int) -> int:
        """Takes the calls from `at` on that are like this one, and end by `end`. Where they end; 0: take them singly.

        request: the first one's, whose HEADERS frame lies whole at `at` and is in order. body_at: where the next frame
        begins.
        """
        body_bytes: int = _frame_header(data, body_at)[0] >> 8
        call_bytes = body_at + 9 + body_bytes - at
        patience_ns = request.patience_ns
        if body_bytes > FRAME_BYTES_DEFAULT or 0 < patience_ns < waited_ns:
            return 0
        room = min(self._limits.concurrent_streams_max - len(self.streams), TOGETHER_MAX)
        if patience_ns:
            room = min(room, self.room_calls)
        together: Together | None = getattr(request.unary, "together", None)
        if together is None or room < TOGETHER_MIN:
            return 0
        message_at = body_at + 9 + PREFIX_BYTES
        kind = together.kind(data[message_at : body_at + 9 + body_bytes])
        if kind is None:
            return 0
        work, others = self.work, dict[bytes, Request]()

        def goes_on(stream: bytes, block: bytes, body_bytes: int) -> bool:
            other = self._known(block, body_bytes)
            if other is None or other.unary is not request.unary or (other.patience_ns > 0) != (patience_ns > 0):
                return False
            others[stream] = other
            return not 0 < other.patience_ns < waited_ns

        end = min(end, at + room * call_bytes)
        limit, prefix, suffix = self._limits.message_bytes_max, kind.prefix, kind.suffix
        run = run_of_calls(
            data, at, request, self.last_stream_id, limit, goes_on, prefix, suffix, end,
            open_streams=self.streams, own_resets=False,
        )  # fmt: skip
        count = len(run.streams)
        if count < TOGETHER_MIN:
            return 0
        if patience_ns:
            self.room_calls -= count
        self.work = max(self.work, work + count * _CALL_WORK)
        self._received_bytes += count * body_bytes
        calls = [self._whole_call(stream, others.get(stream, request)) for stream in run.streams]
        self._hand_over(together, calls, kind, data, run.places(message_at - at))
        if run.resets:
            self._noise.add_late_resets(len(run.resets))
        return run.stop(count)

    def _take_let_in(self, data: bytes, at: int, stop: int, request: Request) -> int:
        """As `_take_run`, of messages whose calls were let in (`barring.py`). The first one's frame ends at `stop`."""
        frame_bytes = stop - at
        together: Together | None = getattr(request.unary, "together", None)
        if together is None or at + TOGETHER_MIN * frame_bytes > len(data) or frame_bytes > FRAME_BYTES_DEFAULT:
            return 0
        kind = together.kind(data[at + 9 + PREFIX_BYTES : stop])
        if kind is None:
            return 0
        calls: list[UnaryCall] = []

        def goes_on(stream: bytes) -> bool:
            stream_id = int.from_bytes(stream, "big")
            call = self.streams.get(stream_id)
            if stream_id not in self.let_in or call is None or not call.is_fresh:
                return False
            if call.request.unary is not request.unary or call.request.body_bytes not in (-1, frame_bytes - 9):
                return False
            if self._was_kept_long(call):
                return False
            self.let_in.remove(stream_id)
            call.is_fresh = False
            call.is_half_closed = True
            calls.append(call)  # type: ignore[arg-type]
            return True

        count = run_of_messages(data, at, frame_bytes, TOGETHER_MAX, goes_on, kind.prefix, kind.suffix)
        if not count:
            return 0
        self.work += count * _CALL_WORK
        self._received_bytes += count * (frame_bytes - 9)
        first = at + 9 + PREFIX_BYTES
        self._hand_over(together, calls, kind, data, range(first, first + count * frame_bytes, frame_bytes))
        return at + count * frame_bytes

    def _hand_over(
        self, together: Together, calls: Sequence[UnaryCall], kind: Kind, data: bytes, messages_at: Sequence[int]
    ) -> None:
        self._noise.forgive(len(calls))
        try:
            together.take(calls, kind, data, messages_at)
        except Exception as error:
            for call in calls[1:]:
                call.fail(INTERNAL, "internal error")
            self._bug(calls[0], error)

    def _whole_call(self, stream: bytes, request: Request) -> UnaryCall:
        """A new call whose message is there."""
        stream_id = self.last_stream_id = int.from_bytes(stream, "big")
        call = self.streams[stream_id] = UnaryCall(self, stream_id, request)  # type: ignore[arg-type]
        call.is_fresh = False
        call.is_half_closed = True
        return call
