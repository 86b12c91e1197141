"""One request's life on this side: records in the request ring, Submit, await Result, deadline, cancel, Release.

A request is *pending* from `infer` until its one terminal message (Results that cover its rows, or Failed). Its ring
records belong to the data plane all that time, even when nobody waits for the answer any more (deadline passed, client
gone): they are released by the terminal message and by nothing else.

What it sends gathers in `outgoing.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from ringserve.broker import wire
from ringserve.broker.messages import Catalog, Code, Failed, Lend, Recall, Result
from ringserve.broker.wire import WireError
from ringserve.frontend import catalog
from ringserve.frontend.asks import Asks
from ringserve.frontend.broker_link import BrokerLink
from ringserve.frontend.deadlines import ARRIVED_LATE_TEXT, NO_BROKER_TEXT, RUNNING_TEXT, DeadlineWheel, Grace
from ringserve.frontend.direct import Direct
from ringserve.frontend.handler import Buffer
from ringserve.frontend.joins import Joins
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outgoing import Outgoing
from ringserve.frontend.outputs import Answered, Output, Reply, answer_all, outputs_of
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.ring_room import no_room
from ringserve.frontend.shedding import count_taken, note
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment
from ringserve.shm.tensor import string_record_bytes, write_strings

log = logging.getLogger(__name__)

#: Time given to Results of a dead worker that may still be on their way before its requests are submitted again.
_RESUBMIT_AFTER_S = 0.02
_TIDY_S = 10.0  # see `buffers.py`, where the same is said of other memory

#: As a request's deadline: it was cancelled. Whoever is sent it from then on refuses it.
_CANCELLED_NS = 1

#: (reply or None when nobody waits, lane, rows, the request as in Submit, its deadline bucket or None)
_Pending = tuple[Reply | None, Lane, int, list[int], "dict[int, int] | None"]


class Client:
    """The frontend's way to the workers. Lives on one event loop.

    segment: this frontend's request ring, whose only writer this is. requests_max: pending requests above which new
    ones are refused. timeout_ns_max: no request may take longer, whatever its client says; 0 = no limit.
    """

    def __init__(
        self,
        segment: Segment,
        *,
        registration_path: str,
        inbox_path: str,
        requests_max: int = 65_536,
        timeout_ns_max: int = 0,
    ) -> None:
        self.catalog = catalog.Catalog()
        #: Keeps requests as warm-up records; None while nobody wants any.
        self.recorder: Recorder | None = None
        #: Ends this process in order, for the reason given, when no broker takes it any more.
        self.leave: Callable[[str], None] = lambda _: None
        #: The Result that is being handed out right now, for traces.
        self.result: Result | None = None
        self._segment = segment
        self._data = segment.data
        self._ring = RingWriter(segment.data_bytes)
        self.ring_statistics = self._ring.statistics
        self._requests_max = requests_max
        self._timeout_ns_max = timeout_ns_max
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._joins = Joins()
        self._next_id = 1
        self._deadlines = DeadlineWheel(self._loop, time.monotonic_ns, self._expire)
        self._grace = Grace(self._loop, self._give_up)
        self._tidy_timer = self._loop.call_later(_TIDY_S, self._tidy)
        self._link = BrokerLink(registration_path, inbox_path, segment, self)
        self._direct = Direct(self._loop, self._link, self._pending, time.monotonic_ns)
        self._out = Outgoing(self._loop, self._link, self._direct, self._pending)
        self._asks = Asks(self._link.ask)
        #: An operator's call to the broker: (verb, body, timeout_s) -> (code, text, body); verbs: broker/admin.py.
        self.ask = self._asks.ask
        self.on_told = self._asks.told  # an operator's call has been answered

    @property
    def pending_count(self) -> int:
        """Requests that wait for their terminal message."""
        return len(self._pending)

    @property
    def connected(self) -> bool:
        """True while there is a broker to submit to."""
        return self._link.connected

    # ------------------------------------------------------------------------------------------------- requests

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        """Run one request; `reply` gets its answer or failure, later or (a refusal) before this returns.

        payloads: one per input of the lane, in its order: raw row-major little-endian bytes, or a list of byte strings
        for a string input; copied before this returns. timeout_ns: 0 for none, negative when it is over already.
        Returns the request's id for `cancel`, or -1 when it was refused.
        """
        if timeout_ns < 0:
            reply.fail(Code.DEADLINE_EXCEEDED, ARRIVED_LATE_TEXT)
            return -1
        if self._timeout_ns_max and (not timeout_ns or timeout_ns > self._timeout_ns_max):
            timeout_ns = self._timeout_ns_max
        if self.recorder is not None:
            self.recorder.see(lane, rows, payloads, getattr(reply, "api", ""))
        pressure = lane.pressure
        if timeout_ns and pressure.wait_ns and pressure.room(timeout_ns, time.monotonic_ns()) <= 0:
            reply.fail(Code.RESOURCE_EXHAUSTED, pressure.text)
            return -1
        if lane.heads is not None:
            payloads = lane.with_heads(rows, payloads)
        claim = self._ring.claim
        request_id = self._next_id
        deadline_ns = time.monotonic_ns() + timeout_ns if timeout_ns else 0
        request = [request_id, rows, deadline_ns]
        for payload in payloads:
            if isinstance(payload, list):
                size = string_record_bytes(payload)
                offset = claim(size)
                if offset >= 0:
                    write_strings(self._data, offset, payload)
            else:
                size = len(payload)
                offset = claim(size or 1)
                if offset >= 0:
                    self._data[offset : offset + size] = payload
            if offset < 0:
                self._refuse(request, size, reply)
                return -1
            request.append(offset)
        if len(self._pending) >= self._requests_max:
            self._release_records(request)
            reply.fail(Code.RESOURCE_EXHAUSTED, f"this frontend already holds {self._requests_max} requests")
            return -1
        self._next_id = request_id + 1
        pressure.rows += rows
        bucket = self._deadlines.add(request_id, deadline_ns) if deadline_ns else None
        self._pending[request_id] = (reply, lane, rows, request, bucket)
        self._out.submit(lane, request)
        return request_id

    def infer_together(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer], timeouts_ns: Sequence[int], replies: Sequence[Reply]
    ) -> list[int]:
        """`infer` for each of many requests of one raw input, which are equally long."""
        count, now_ns, lowest_ns = len(replies), time.monotonic_ns(), min(timeouts_ns)
        is_plain = (
            lowest_ns >= 0
            and not self._timeout_ns_max
            and self.recorder is None
            and lane.heads is None
        )
        requests: list[list[int]] = []
        if is_plain:
            room = min(lane.pressure.room(lowest_ns, now_ns) / rows, self._requests_max - len(self._pending), count)
            claim, ring, pending, watch = self._ring.claim, self._data, self._pending, self._deadlines.add
            request_id, size = self._next_id, len(payloads[0])
            for payload, timeout_ns, reply in zip(payloads, timeouts_ns, replies, strict=True):
                if len(requests) >= room:
                    break
                offset = claim(size)
                if offset < 0:
                    break
                ring[offset : offset + size] = payload
                deadline_ns = now_ns + timeout_ns if timeout_ns else 0
                request = [request_id, rows, deadline_ns, offset]
                bucket = watch(request_id, deadline_ns) if deadline_ns else None
                pending[request_id] = (reply, lane, rows, request, bucket)
                requests.append(request)
                request_id += 1
            self._next_id = request_id
        if requests:
            lane.pressure.rows += rows * len(requests)
            self._out.submit_all(lane, requests)
        singly = range(len(requests), count)
        ids = [request[0] for request in requests]
        return ids + [self.infer(lane, rows, [payloads[at]], timeouts_ns[at], replies[at]) for at in singly]

    def cancel(self, request_id: int) -> None:
        """Nobody waits for this request any more; its reply is never called. Unknown ids are ignored."""
        entry = self._pending.get(request_id)
        if entry is not None and entry[0] is not None:
            _, lane, rows, request, bucket = entry
            if bucket is not None:
                bucket.pop(request_id, None)
            request[2] = _CANCELLED_NS  # should it be submitted again, or not have been submitted yet
            self._pending[request_id] = (None, lane, rows, request, None)
            self._out.cancel(lane, request_id)

    def _refuse(self, request: list[int], size: int, reply: Reply) -> None:
        self._release_records(request)
        reply.fail(Code.RESOURCE_EXHAUSTED, no_room(size, self._ring.record_bytes_max, len(self._pending)))

    def _expire(self, request_id: int) -> None:
        """Its deadline has come. If the broker still has it queued it answers the Cancel, and it is gone."""
        entry = self._pending.get(request_id)
        if entry is not None and entry[0] is not None:
            self._out.cancel(entry[1], request_id)
            if self._link.connected:
                self._grace.add(request_id)
            else:
                self._give_up(request_id)

    def _give_up(self, request_id: int) -> None:
        """Nobody but a worker can have it. Its records are released by its Result."""
        entry = self._pending.get(request_id)
        if entry is not None and entry[0] is not None:
            self._pending[request_id] = (None, *entry[1:])
            entry[0].fail(Code.DEADLINE_EXCEEDED, RUNNING_TEXT if self._link.connected else NO_BROKER_TEXT)

    def _release_records(self, request: list[int]) -> None:
        for offset in request[3:]:
            self._ring.release(offset)

    def _tidy(self) -> None:
        """Now and then: give back the ring's pages that a burst has left behind."""
        shrunk = self._ring.take_shrunk()
        if shrunk is not None:
            self._segment.free_pages(*shrunk)
        self._tidy_timer = self._loop.call_later(_TIDY_S, self._tidy)

    def _submit_again(self) -> None:
        self._out.submit_again((lane, request) for _, lane, _, request, _ in self._pending.values())

    # ------------------------------------------------------------------------------------------------ receiving

    def on_mail(self, messages: list[bytes]) -> None:
        """Hot messages from workers and the broker."""
        for data in messages:
            try:
                message = wire.unpack(data)
            except WireError:
                log.exception("dropped a message")
                continue
            if message.__class__ is Result:
                self._on_result(message)
            elif message.__class__ is Failed:
                self._on_failed(message)
            elif message.__class__ is Lend:
                self._direct.on_lend(message)
            elif message.__class__ is Recall:
                self._direct.on_recall(message)
            else:
                log.error("dropped a %s, which no frontend takes", type(message).__name__)
        if self._direct.holds:
            self._out.resume()

    def _on_failed(self, failed: Failed) -> None:
        lanes = (self._pending[one[0]][1] for one in failed.requests if one[0] in self._pending)
        pressed = note(failed, lanes, time.monotonic_ns()) if failed.waits else ()
        for request in failed.requests:
            self._fail(*request)
        if pressed:
            count_taken(pressed, self._after(max(one[0] for one in failed.requests)))

    def _after(self, request_id: int) -> Iterator[tuple[Lane, int]]:
        """(lane, rows) of the requests that came later than this one."""
        for later_id in reversed(self._pending):
            if later_id <= request_id:
                return
            yield self._pending[later_id][1:3]

    def _on_result(self, result: Result) -> None:
        worker = self._link.workers.get(result.worker_id)
        if worker is None:
            return
        outputs: list[Output] | None = None
        pending = self._pending
        answered: list[Answered] = []
        self.result = result
        for request_id, row_first, rows, row_start in result.answers:
            entry = pending.get(request_id)
            if entry is None:
                continue  # answered already: the batch ran twice because a worker died
            reply, lane, rows_whole, request, bucket = entry
            if outputs is None:
                outputs = outputs_of(result, worker.data, lane.spec.batchable)
            if rows != rows_whole:
                self._join(entry, outputs, row_first, rows, row_start)
                continue
            del pending[request_id]
            lane.pressure.rows -= rows
            for offset in request[3:]:
                self._ring.release(offset)
            if bucket is not None:
                bucket.pop(request_id, None)
            self._joins.pop(request_id, None)  # where it was split, and then run again as a whole
            if reply is not None:
                answered.append((reply, row_first, rows))
        if self._direct.answered(result) and not result.failures:
            self._out.resume()  # before the answers are made, so that the worker has something to do meanwhile
        if outputs is not None:
            answer_all(answered, outputs)
        for request_id, code, text, rows, row_start in result.failures:
            if (entry := pending.get(request_id)) is not None and rows != entry[2]:
                self._part_failed(entry, code, text, rows, row_start)
            else:
                self._fail(request_id, code, text)
        self.result = None
        if result.record_id >= 0:
            self._out.returns.add(result.worker_id, result.record_id, outputs)

    def _join(self, entry: _Pending, outputs: list[Output], row_first: int, rows: int, row_start: int) -> None:
        reply, _, rows_whole, request, _ = entry
        join = self._joins.of(request[0], rows_whole)
        text = join.add(outputs, row_first, rows, row_start)
        if text:
            self._part_failed(entry, Code.INVALID_ARGUMENT, text, rows, row_start)
        elif join.complete:
            self._forget(request[0])
            if reply is not None:
                reply.answer(join.outputs(), 0, rows_whole)

    def _part_failed(self, entry: _Pending, code: int, text: str, rows: int, row_start: int) -> None:
        """Its other parts need not run any more, but may do so now: until then its records belong to the workers."""
        reply, _, rows_whole, (request_id, *_), _ = entry
        join = self._joins.of(request_id, rows_whole)
        self.cancel(request_id)
        if join.fail(rows, row_start):
            self._forget(request_id)
        if reply is not None:
            reply.fail(code, text)

    def _fail(self, request_id: int, code: int, text: str) -> None:
        entry = self._pending.get(request_id)
        if entry is not None:
            self._forget(request_id)
            if entry[0] is not None:
                entry[0].fail(code, text)

    def _forget(self, request_id: int) -> None:
        _, lane, rows, request, bucket = self._pending.pop(request_id)
        lane.pressure.rows -= rows
        self._joins.pop(request_id, None)
        self._release_records(request)
        if bucket is not None:
            bucket.pop(request_id, None)

    # ----------------------------------------------------------------------------------------- link's notices

    def on_connected(self, frontend_id: int) -> None:
        """A broker that knows none of our requests."""
        log.info("registered with the broker as frontend %d", frontend_id)
        self._submit_again()

    def on_worker_left(self, worker_id: int) -> None:
        """Its unsent Results are lost although the broker may have settled their leases: ask again for what is left."""
        self._direct.on_worker_left(worker_id)
        self._loop.call_later(_RESUBMIT_AFTER_S, self._submit_again)

    def on_catalog(self, catalog: Catalog) -> None:
        """The catalog changed."""
        self.catalog.update(catalog.versions, catalog.labels, catalog.models, catalog.pads, catalog.starting)

    def on_disconnected(self) -> None:
        """The broker that would have answered is gone."""
        self._direct.broker_lost()
        self._asks.lost()

    def on_outdated(self, reason: str) -> None:
        """No broker will ever answer what is pending."""
        log.error("the broker is of another release: %s", reason)
        for request_id in list(self._pending):
            self._fail(request_id, Code.UNAVAILABLE, "the server is being upgraded, try again")
        self.leave("another release is to take this one's place")

    def close(self) -> None:
        """Fail what is pending and leave."""
        self._deadlines.close()
        self._grace.close()
        self._direct.close()
        self._out.close()
        self._tidy_timer.cancel()
        for request_id in list(self._pending):
            self._fail(request_id, Code.UNAVAILABLE, "the server is shutting down")
        self._link.close()
        self._asks.lost()
