"""One HTTP/1.1 connection: bytes to requests, one at a time, and answers back in the same order.

A request is handed to the application when all of it is there. What a client sends before it is answered (pipelining)
stays unread here, and reading stops, so that a connection holds one request and one read's bytes at most.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final, cast

from ringserve.config.process import of_request
from ringserve.frontend.bugs import BUG_RATE
from ringserve.frontend.http1.answers import CLOSE, CONTINUE, KEEP_ALIVE
from ringserve.frontend.http1.arrivals import waited_ns
from ringserve.frontend.http1.exchange import Head, echo_of
from ringserve.frontend.http1.heads import END_OF_HEAD, BadRequestError, HeadParser
from ringserve.frontend.http1.incoming import IncomingBody
from ringserve.frontend.http1.presence import has_ended, probe
from ringserve.frontend.http1.request import Peer, ServedExchange

if TYPE_CHECKING:
    from ringserve.frontend.http1.server import Http1Server

log = logging.getLogger(__name__)
log.addFilter(BUG_RATE)

#: Bodies up to this are not counted into `bodies_bytes_max`: uvloop reads as much at once for every connection.
_FREE_BODY_BYTES: Final = 262_144
#: Answers longer than this are handed to the transport as they are, not joined with their head.
_JOIN_BYTES_MAX: Final = 65_536
_STOPPING: Final = "the server is shutting down"
#: How long a client that was told that its idle TLS connection ends may take to say so, too.
_GOODBYE_S: Final = 1.0

# What a connection waits for, in order; plain numbers, because they are compared at every step.
_IDLE: Final = 0  # a request's first byte
_HEAD: Final = 1  # the rest of a head
_BODY: Final = 2  # the rest of a body
_BUSY: Final = 3  # the application's answer
_REFUSED: Final = 4  # whatever comes first, to be answered 503: there are too many connections
_LINGER: Final = 5  # the end: what still comes is dropped
_CLOSED: Final = 6


class Http1Connection(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, server: Http1Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._phase = _IDLE
        self._is_fresh = True  # nothing was answered yet
        self._since = server.tick  # when the phase began, or the window of a body
        self._unread: bytes = b""  # bytes of later requests; in HEAD, of the head so far
        self._parser: HeadParser | None = None
        self._body: IncomingBody | None = None
        self._counted_bytes = 0  # of the body, counted by the server
        self._exchange: ServedExchange | None = None
        self._is_receiving = False
        self._is_paused = False
        self._can_write = True
        self._is_half_closed = False
        self._paused_bytes = 0  # of answers, when writing was paused: counted by the server
        self._unsent_bytes, self._unsent_since = 0, 0
        self._is_ahead = False  # what is being read was sent before the last answer
        self._is_probed = False  # the end of what it sends was seen while reading was paused

    # ------------------------------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        welcome = self._server.joined(self, transport)
        if welcome is None:
            self._phase = _CLOSED
            self._transport.abort()
        elif not welcome:
            self._phase = _REFUSED

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase <= _BODY:
            self._is_ahead = False
            self._receive(data)
        elif phase == _BUSY:
            self._set_aside(data)
        elif phase == _REFUSED:
            self._refuse(503, f"there are {self._server.limits.connections_max} connections already")

    def eof_received(self) -> bool:
        """The client sends nothing more; whether it still listens, nobody knows. (TLS has no half-closed state.)"""
        self._is_half_closed = True
        if not self._transport.can_write_eof():
            return False
        if self._phase == _BUSY:
            self._probe()
            return True
        if self._phase == _LINGER:
            self._phase = _CLOSED
            return False
        return bool(self._unread) and self._phase == _IDLE

    def _probe(self) -> None:
        if self._exchange is not None and self._exchange.head.is_1_1:
            probe(self._transport, self._loop, lambda: self._phase == _BUSY)

    def connection_lost(self, error: Exception | None) -> None:
        self._phase = _CLOSED
        self._unread = b""
        self._drop_body()
        self._count_unsent(0)
        self._server.left(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def pause_writing(self) -> None:
        self._can_write = False
        self._count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._can_write = True
        self._count_unsent(0)
        self._go_on()

    def _count_unsent(self, size: int) -> None:
        self._server.unsent_bytes += size - self._paused_bytes
        self._paused_bytes = size

    # --------------------------------------------------------------------------------------------------- reading

    def _receive(self, data: bytes) -> None:
        """Take requests out of `data` until one has to be waited for."""
        self._is_receiving = True
        left = self._server.limits.requests_at_once_max
        try:
            while data and self._phase <= _BODY and self._can_write and left:
                body = self._body
                data = self._take_head(data) if body is None else self._take_body(body, data)
                left = 0 if body is not None and body is self._body else left - (self._phase != _HEAD)
        except BadRequestError as error:
            self._refuse(error.status, error.text, error.head)
            data = b""
        self._is_receiving = False
        if data and self._phase <= _BUSY:
            self._set_aside(data)
            if not left and self._phase <= _BODY:
                self._loop.call_soon(self._go_on)

    def _set_aside(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Read what was set aside, now that there is nothing to wait for."""
        if self._is_receiving or self._phase > _BODY or not self._can_write:
            return
        if self._unread and self._phase != _HEAD:
            data, self._unread = self._unread, b""
            self._is_ahead = True
            self._receive(data)
        if (self._unread and self._phase != _HEAD) or self._phase > _BUSY:
            return
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        if self._is_half_closed and self._phase <= _BODY:
            self._close()

    def _take_head(self, data: bytes) -> bytes:
        """Read a head, or as much of it as there is. Returns what follows it."""
        server = self._server
        if self._phase == _HEAD:
            return self._take_head_further(data)
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD) or data[0] <= 0x0D:
            data = data.lstrip(b"\r\n")  # llhttp, too, takes no notice of empty lines before a request
            return self._take_head_further(data) if data else b""
        raw = data[:end]
        head = server.heads.find(raw)
        if head is None:
            self._check_head_bytes(end)
            head = server.heads.read(raw)
        size = head.body_bytes
        if size == 0:
            self._hand_over(head, b"")
            return data[end:]
        if 0 < size <= len(data) - end and size <= server.limits.body_bytes_max:
            end += size
            self._hand_over(head, data[end - size : end])
            return data[end:] if end < len(data) else b""
        self._begin_body(head, has_begun=end < len(data))
        return data[end:]

    def _take_head_further(self, data: bytes) -> bytes:
        """A head that arrives in pieces: each is parsed at once, so that what is no HTTP is refused at once."""
        parser = self._parser
        if parser is None:
            parser = self._parser = self._server.heads.parser()
            self._phase = _HEAD
            self._since = self._server.tick
        before = self._unread
        whole = before + data
        end = whole.find(END_OF_HEAD, max(0, len(before) - len(END_OF_HEAD) + 1)) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            self._check_head_bytes(len(whole))
            parser.feed(data)
            self._unread = whole
            return b""
        self._unread = b""
        self._check_head_bytes(end)
        parser.feed(whole[len(before) : end])
        head = parser.head()
        self._server.heads.keep(whole[:end], head)
        self._parser = None
        rest = whole[end:]
        if head.body_bytes == 0:
            self._hand_over(head, b"")
        else:
            self._begin_body(head, has_begun=bool(rest))
        return rest

    def _check_head_bytes(self, size: int) -> None:
        size_max = self._server.limits.header_bytes_max
        if size > size_max:
            raise BadRequestError(431, f"a request's head may have {size_max} bytes at most")

    def _begin_body(self, head: Head, *, has_begun: bool) -> None:
        server = self._server
        self._body = IncomingBody(head, server.limits.body_bytes_max, server.clock_ns())
        self._phase = _BODY
        self._since = server.tick
        if head.expects_continue and not has_begun:
            self._transport.write(CONTINUE)

    def _take_body(self, body: IncomingBody, data: bytes) -> bytes:
        """Read a body further. Returns what follows it."""
        size = body.feed(data)
        self._count_body(len(body))
        if body.is_complete:
            self._body = None
            self._hand_over(body.head, body.take(_FREE_BODY_BYTES), self._server.clock_ns() - body.began_ns)
        return data[size:] if size < len(data) else b""

    def _count_body(self, size: int) -> None:
        """Tell the server how much is held here, if it is much. The count ends with the answer."""
        if size > _FREE_BODY_BYTES:
            server = self._server
            server.bodies_bytes += size - self._counted_bytes
            self._counted_bytes = size
            if server.bodies_bytes > server.limits.bodies_bytes_max:
                raise BadRequestError(503, "too many bytes of request bodies are held already; try again")

    def _drop_body(self) -> None:
        self._body = None
        self._server.bodies_bytes -= self._counted_bytes
        self._counted_bytes = 0

    # ------------------------------------------------------------------------------------------------- answering

    def _hand_over(self, head: Head, body: bytes | bytearray, upload_ns: int = 0) -> None:
        self._phase = _BUSY
        exchange = self._exchange = ServedExchange(self, head, body, self._server.calls, upload_ns)
        try:
            self._server.handler(exchange)
        except Exception:
            log.exception("the handler of %s %s", head.method, head.target, extra=of_request(head.request_id))
            exchange.answer(500, *self._server.error_page(500, "internal error; see the log of the server"))

    def answered(
        self, head: Head, status: int, body: bytes, content_type: bytes, headers: bytes, made_id: str = ""
    ) -> bool:
        """The application's answer to the present request. See Exchange. False: refused in its place."""
        self._exchange, self._is_fresh = None, False
        if self._counted_bytes:
            self._drop_body()
        server = self._server
        keeps = head.keeps_alive and not server.is_draining and (bool(self._unread) or not self._is_half_closed)
        connection = (b"" if head.is_1_1 else KEEP_ALIVE) if keeps else CLOSE
        echo = echo_of(made_id) if made_id else head.echo
        start = server.answers.head(status, content_type, headers, connection, len(body), echo)
        if head.method == "HEAD":
            self._transport.write(start)
        elif len(body) <= _JOIN_BYTES_MAX:
            self._transport.write(start + body)
        elif server.unsent_bytes > server.limits.unsent_bytes_max:
            self._refuse(503, "too many bytes of answers wait for their clients already; try again", head)
            return False
        else:
            self._transport.writelines((start, body))
        if keeps:
            self._phase = _IDLE
            self._since = server.tick
            if not self._is_receiving:
                self._go_on()
        else:
            self._close()
        return True

    def _refuse(self, status: int, text: str, head: Head | None = None) -> None:
        """Answer what is no request, or one too many, and end the connection when the client has read the answer."""
        head = self._body.head if self._body is not None else head
        self._server.refused(status, text, head, self.peer())
        is_head = head is not None and head.method == "HEAD"
        echo = head.echo if head is not None else b""
        self._drop_body()
        self._unread = b""
        body, content_type = self._server.error_page(status, text)
        start = self._server.answers.head(status, content_type, b"", CLOSE, len(body), echo)
        self._transport.write(start if is_head else start + body)
        if self._is_half_closed or not self._transport.can_write_eof():
            self._close()
            return
        # A socket closed with unread bytes in it resets the connection, and the client may lose the answer.
        self._phase = _LINGER
        self._since = self._server.tick
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._transport.write_eof()

    def _close(self) -> None:
        self._phase = _CLOSED
        self._unread = b""
        self._transport.close()

    # ---------------------------------------------------------------------------------------- time, and the end

    def on_tick(self, tick: int) -> None:
        """Called about once a second: end what has waited too long."""
        server, phase = self._server, self._phase
        limits = server.limits
        self._watch_writing(tick)
        waited = tick - self._since
        if phase == _IDLE:
            if waited > server.ticks(limits.idle_s) and self._can_write:
                self._close()
        elif phase in (_HEAD, _REFUSED):
            if waited > server.ticks(limits.head_s):
                self._refuse(408, f"a request's head did not arrive within {limits.head_s:g} s")
        elif self._body is not None:
            body = self._body
            if waited > server.ticks(limits.body_window_s) and self._can_write:
                if body.window_bytes < limits.body_window_bytes_min:
                    self._refuse(408, f"only {body.window_bytes} bytes of a body within {limits.body_window_s:g} s")
                self._since, body.window_bytes = tick, 0
        elif phase == _BUSY and self._is_paused and not self._is_probed and has_ended(self._transport):
            self._is_probed = True
            self._probe()
        elif phase == _LINGER and waited > server.ticks(limits.linger_s):
            self._close()

    def _watch_writing(self, tick: int) -> None:
        unsent, before = self._transport.get_write_buffer_size(), self._unsent_bytes
        if not unsent or unsent > before or before - unsent >= self._server.limits.write_window_bytes_min:
            self._unsent_bytes, self._unsent_since = unsent, tick
        elif tick - self._unsent_since > self._server.ticks(self._server.limits.write_s):
            self._server.refusals["unread"] += 1
            self._transport.abort()

    def drain(self) -> None:
        """Close if nothing is going on, nor under way on one just opened; else the next answer is the last."""
        if self._phase == _IDLE and not self._unread and not (self._is_fresh and self._server.tick - self._since <= 1):
            self._close()
            if not self._transport.can_write_eof() and not self._transport.get_write_buffer_size():
                # TLS waits for the client's goodbye, and one that is idle says none until its next request.
                self._loop.call_later(_GOODBYE_S, self._transport.abort)

    def stop(self) -> None:
        """End now: what runs is cancelled and answered 503."""
        exchange = self._exchange
        if exchange is not None and self._phase == _BUSY:
            head = exchange.head
            exchange.cancel()
            self.answered(head, 503, *self._server.error_page(503, _STOPPING), b"")
        elif self._phase < _CLOSED:
            self._close()

    is_busy = property(lambda self: self._exchange is not None)  # the application has a request and has not answered it

    def abort(self) -> None:
        """Close without waiting for what is unsent."""
        self._transport.abort()

    def peer(self) -> Peer:
        """Who the client is."""
        return Peer(self._transport)

    def waited_ns(self) -> int:
        """How long the present request lay in the socket. See Exchange."""
        sock = None if self._is_ahead else self._transport.get_extra_info("socket")
        return waited_ns(sock) if sock is not None else 0
