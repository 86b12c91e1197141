"""A streaming call: a coroutine that receives and sends messages, run as a task of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ringserve.frontend import ledger
from ringserve.frontend.handler import StreamFailure
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.calls import Exchange
from ringserve.frontend.http2.grpc_messages import MessageFault, MessageReader, RawMessage
from ringserve.frontend.http2.request import DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, Request
from ringserve.frontend.http2.sending import Transfer

if TYPE_CHECKING:
    from ringserve.frontend.http2.connection import Connection


class CallGone(Exception):
    """The handler used a call that is over: the client has gone, or the call has failed."""


class StreamingCall(Exchange):
    """`handler.Stream` of the native engine.

    Messages wait undecoded until the handler takes them, and until then their bytes stay out of the client's window.
    One message is on its way out at a time; `send` returns when its last byte has gone to the socket's buffer.
    """

    __slots__ = ("_headers_sent", "_messages", "_task", "_timer", "_waiter", "_write_waiters")

    def __init__(self, connection: Connection, stream_id: int, request: Request) -> None:
        super().__init__(connection, stream_id, request)
        self.is_fresh = False
        self._headers_sent = False
        self._messages: deque[RawMessage] = deque()
        self._waiter: asyncio.Future[None] | None = None  # of `receive`
        self._write_waiters: deque[asyncio.Future[None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Runs the handler, no longer than the client waits. It takes its first step in the loop's next turn."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run())
        timeout_ns = self.timeout_ns
        if timeout_ns:
            self._timer = loop.call_later(max(timeout_ns, 0) / 1e9, self.fail, DEADLINE_EXCEEDED, "Deadline Exceeded")

    # For the handler.

    async def receive(self) -> bytes | None:
        while not self._messages:
            if self.is_done:
                raise CallGone
            if self.is_half_closed:
                if self.reader is not None and self.reader.is_inside_message:
                    raise StreamFailure(INTERNAL, "the stream ended inside a message")
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        reader, raw = self.reader, self._messages.popleft()
        assert reader is not None
        self.unread_bytes -= len(raw[1]) + 5
        self.connection.count_held(self)
        self.connection.return_stream_window(self)
        try:
            if reader.is_long_work(raw):
                return await self._decoded_aside(reader, raw)
            return bytes(reader.decoded(raw))  # a long one is a view
        except MessageFault as fault:
            raise StreamFailure(fault.code, fault.text) from fault

    async def _decoded_aside(self, reader: MessageReader, raw: RawMessage) -> bytes:
        decoded: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(message: bytes, error: Exception | None) -> None:
            if decoded.done():
                return
            if error is not None:
                decoded.set_exception(error)
            else:
                decoded.set_result(message)

        box = [raw]
        self.connection.host.aside(lambda: reader.decoded(box.pop()) if box else b"", done)
        try:
            return await decoded
        finally:
            box.clear()  # a call that is over by then does not hold its message

    async def send(self, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        while self.transfer is not None:  # a send of another task of the same handler
            waiter = loop.create_future()
            self._write_waiters.append(waiter)
            await waiter
        if self.is_done:
            raise CallGone
        if not self.connection.has_room(len(message)):
            raise StreamFailure(RESOURCE_EXHAUSTED, "too many answers wait for their clients to take them")
        self._send_headers()
        sent = loop.create_future()
        self._write_waiters.append(sent)
        self.connection.transfer(Transfer(self, message, b"", self._wake_writers))
        await sent

    # For the connection.

    def take(self, messages: list[RawMessage]) -> None:
        for raw in messages:
            self._messages.append(raw)
            self.unread_bytes += len(raw[1]) + 5
        if messages or self.is_half_closed:
            self._wake_reader()

    @property
    def waiting_count(self) -> int:
        return len(self._messages)

    def gone(self) -> None:
        if not self.is_done:
            self.is_done = True
            self.connection.calls.ended[ledger.CANCELLED] += 1
            self._let_go()
            self._cancel()

    def fail(self, code: int, text: str) -> None:
        """Ends the call from outside of its handler."""
        if not self.is_done:
            self._end(code, text)
            self._cancel()

    # Inside.

    async def _run(self) -> None:
        handler = self.request.details.stream
        assert handler is not None
        try:
            await handler(self)
            while self.transfer is not None and not self.is_done:  # sent without waiting for it
                waiter = asyncio.get_running_loop().create_future()
                self._write_waiters.append(waiter)
                await waiter
        except StreamFailure as failure:
            self._end(failure.code, failure.text)
        except CallGone:
            pass
        except Exception as error:
            self._end(INTERNAL, "internal error")
            self.connection.host.bug(error)
        else:
            self._end(0, "")
        finally:
            self._task = None  # which refers to this call, by its traceback, too: memory would wait for the collector
            # A task cancelled by somebody other than `gone` must not leave its client waiting.
            self._end(INTERNAL, "the call was abandoned")

    def _end(self, code: int, text: str) -> None:
        if self.is_done:
            return
        self.is_done = True
        self._let_go()
        connection = self.connection
        connection.calls.ended[code] += 1
        echo = self.request.echo
        if self.transfer is not None:
            connection.drop_transfer(self)  # half a message, then trailers: the client sees the status
        if code and not self._headers_sent:
            connection.write_headers(self.stream_id, frames.refusal_block(code, text) + echo, end_stream=True)
        else:
            self._send_headers()
            connection.write_headers(self.stream_id, frames.status_block(code, text) + echo, end_stream=True)
        connection.close_stream(self)
        self._wake_reader()
        self._wake_writers()

    def _let_go(self) -> None:
        """Nobody takes any more what has come, nor waits until the call is late."""
        self._messages.clear()
        self.reader = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _send_headers(self) -> None:
        if not self._headers_sent:
            self._headers_sent = True
            self.connection.write_headers(self.stream_id, frames.RESPONSE_BLOCK, end_stream=False)

    def _wake_reader(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _wake_writers(self) -> None:
        waiters, self._write_waiters = self._write_waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
