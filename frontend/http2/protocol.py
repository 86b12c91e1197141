"""Bytes between a socket and its `Connection`: one write per turn of the loop, and back-pressure both ways.

The transport tells when the client reads too slowly. Then transfers stop, and when what is unsent grows beyond
`write_buffer_bytes_max` in spite of that, reading stops too, so that no new work is taken from a client that does not
collect its answers. Answers held up by HTTP/2's own windows never stop reading: the window updates that would free
them are yet to be read. A read that holds more than others can wait for stops reading until the rest had its turn, and
after a long read, or when enough was read of long messages, there is none from the same client before the others had
theirs: event loops go on reading while there is more, 8 MB and a tenth of a second in a row, and answers would wait for
that.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2.account import Account
from ringserve.frontend.http2.arrivals import LONG_READ_BYTES, Arrivals, bytes_unread
from ringserve.frontend.http2.connection import Connection
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.in_place import IN_PLACE_BYTES_MIN, InPlace
from ringserve.frontend.http2.long_turns import WAITED_PART
from ringserve.frontend.http2.lulls import Lulls
from ringserve.frontend.http2.refusing import ALL_CALLS
from ringserve.frontend.http2.rush import Round
from ringserve.frontend.http2.sending import PUMP_BYTES_MAX
from ringserve.frontend.http2.shares import Shares
from ringserve.frontend.http2.stalls import Stalls
from ringserve.frontend.http2.turns import FEW, TURN_NS_MAX
from ringserve.frontend.peer_names import names_of

if TYPE_CHECKING:
    from ringserve.frontend.http2.server import NativeEngine

#: Until then a client must have sent its preface and settings.
HANDSHAKE_SECONDS: Final = 20.0
#: A read of so many calls costs more for them than for itself, however short they are.
LONG_READ_CALLS: Final = 64
#: By how much the ages at which connections end differ: else all clients of a new server would come back at once.
_AGE_SPREAD: Final = 0.1


def peer_text(transport: asyncio.BaseTransport) -> str:
    """The client's address as gRPC writes it; empty where nobody knows, as of one that has reset its connection."""
    sock = transport.get_extra_info("socket")
    family = sock.family if sock is not None else None
    address = transport.get_extra_info("peername")
    if address is None:
        return ""
    if family == socket.AF_INET:
        return f"ipv4:{address[0]}:{address[1]}"
    if family == socket.AF_INET6:
        return f"ipv6:[{address[0]}]:{address[1]}"
    return "unix:"


class HostOfTheGone:
    """The `Host` of connections whose socket is closed, for handlers that still hold their calls."""

    def __init__(
        self,
        now: Callable[[], float],
        clock_ns: Callable[[], int],
        bug: Callable[[BaseException], None],
        account: Account,
    ) -> None:
        self.now = now
        self.clock_ns = clock_ns
        self.bug = bug
        self.account = account

    def wake(self) -> None:
        """Nobody reads what is written to a connection that is gone."""

    def aside(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """Nobody waits for it."""


class EngineProtocol(asyncio.Protocol):
    """One accepted socket. Also the `Host` of its connection."""

    def __init__(self, engine: NativeEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._limits: EngineLimits = engine.limits
        self._loop = loop
        self._can_write = True
        self._is_full = False  # with answers that the client does not take
        self._waits_for_turn = False  # with the rest of a read, or with the next one
        self.turn_ns = 0  # about how long that takes
        self._is_paused = False  # so that its next read holds more
        self._unread_ns = 0  # since when it waits for either; 0: nothing came meanwhile, or it has been read
        self._unread_part = 1.0  # of that time, which the first byte is taken to have waited
        self._reading_paused = False
        self.now: Callable[[], float] = loop.time
        self.clock_ns = engine.clock_ns
        self.bug = engine.bug
        self.account = engine.account
        self.aside = engine.aside
        self._stalls = Stalls()
        self._written_bytes = 0
        self._round = Round(engine.rush)
        self._lulls = Lulls()
        self._shares = Shares()
        self._in_place: InPlace | None = None  # while the rest of a long frame is read to where it belongs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=min(PUMP_BYTES_MAX, self._limits.write_buffer_bytes_max))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arrivals = Arrivals(partial(bytes_unread, sock.fileno()) if sock is not None else int)
        self.connection = Connection(self, self._engine.cache, self._limits, peer_text(transport))
        self.connection.names = names_of(transport.get_extra_info("peercert"))
        self._handshake_timer = self._loop.call_later(HANDSHAKE_SECONDS, self._handshake_is_late)
        age_s = self._limits.connection_age_ms_max / 1000 * random.uniform(1 - _AGE_SPREAD, 1 + _AGE_SPREAD)
        self._age_timer = self._loop.call_later(age_s, self.connection.drain) if age_s else None
        if not self._engine.joined(self, transport):
            self.connection.close(ErrorCode.ENHANCE_YOUR_CALM, "too many connections")
        self.flush()

    def _handshake_is_late(self) -> None:
        if not self.connection.has_settings:
            self.connection.close(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS")
            self.flush()

    def data_received(self, data: bytes) -> None:
        self.read(data)
        if self.connection.part_bytes >= IN_PLACE_BYTES_MIN and not self.connection.is_closing:
            self.read_in_place()

    def read_in_place(self) -> None:
        """Reads what comes next to where it belongs, if that is known."""
        if self.connection.room() is not None:
            self._in_place = InPlace(self)
            self._set_protocol(self._in_place)

    def read_as_usual(self) -> None:
        """Ends `read_in_place`."""
        self._in_place = None
        self._set_protocol(self)

    def _set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if self._transport.is_closing():
            return
        if not self._reading_paused:
            self._transport.pause_reading()  # how to read is looked up when it begins
        self._transport.set_protocol(protocol)
        if not self._reading_paused:
            self._transport.resume_reading()

    def read(self, data: bytes) -> None:
        """Handles what was read."""
        connection, calls = self.connection, self.account.calls
        received_before, unread_before, was_long = calls.received, calls.unread, len(data) >= LONG_READ_BYTES
        now_ns, since_ns = self._begin_read(len(data))
        if connection.is_in_rush:
            must_wait = self._receive_in_rush(data, since_ns, now_ns)
        else:
            if connection.is_barring:
                self._shares.calm()
                connection.bar(False)
            connection.room_calls = ALL_CALLS
            connection.receive(data, since_ns)
            must_wait = was_long
        if calls.unread > unread_before:
            self._engine.turns.long.refused(now_ns)
        self._end_read(now_ns, was_long or calls.received - received_before >= LONG_READ_CALLS, must_wait)

    def read_part(self, piece: memoryview, behind: bytes, has_more: bool) -> None:
        """Handles what was read in place, and the beginning of the next frame's head behind it.

        has_more: there may be more in the socket, which the loop reads at once unless it is told not to.
        """
        connection = self.connection
        now_ns, since_ns = self._begin_read(len(piece) + len(behind))
        connection.receive_part(piece, since_ns)
        if behind:
            connection.room_calls = ALL_CALLS
            connection.receive(behind, since_ns)
        is_enough = self._engine.turns.have_read(len(piece))
        self._end_read(now_ns, len(piece) >= LONG_READ_BYTES, is_enough and has_more)

    def _begin_read(self, nbytes: int) -> tuple[int, int]:
        """What time it is, and since when the first of these bytes has waited."""
        arrivals, rush = self._arrivals, self._engine.rush
        self.connection.is_awake = True  # `flush` follows anyway
        now_ns = self.clock_ns()
        if self._engine.connections_count > FEW:
            self._engine.turns.reads(now_ns)
        since_ns = arrivals.since_ns(nbytes, now_ns, self.connection.held_bytes)
        if self._unread_ns:
            since_ns = min(since_ns, now_ns - int((now_ns - self._unread_ns) * self._unread_part))
            self._unread_ns = 0
        if arrivals.is_standing:
            rush.seen(now_ns)
        self.connection.is_in_rush = rush.is_on(now_ns)
        return now_ns, since_ns

    def _end_read(self, now_ns: int, was_long: bool, must_wait: bool) -> None:
        """must_wait: others come first, before there is another read."""
        connection = self.connection
        self.flush()
        if not connection.has_rest:
            self._pause_if_it_pays(now_ns, was_long)
        in_group = self._engine.turns.long.are_long(now_ns)
        if connection.has_rest or (not self._is_paused and (must_wait or in_group)):
            # Of a read that was too much for one turn the next part is that, too.
            is_part = connection.has_rest or (must_wait and connection.part_bytes)
            self.turn_ns = TURN_NS_MAX if is_part else self.clock_ns() - now_ns
            self._unread_part = WAITED_PART if in_group and not connection.has_rest else 1.0
            self._wait_for_turn()
        connection.was_crowded = False

    def _pause_if_it_pays(self, now_ns: int, was_long: bool) -> None:
        """Stops reading for a moment if nothing more is there, and the next read is better for coming later."""
        connection = self.connection
        if self._is_paused or self._arrivals.unread_bytes or connection.part_bytes >= IN_PLACE_BYTES_MIN:
            return
        pause_ns = self._lulls.pause_ns(
            len(connection.streams), connection.was_crowded, was_long, is_barred=connection.is_barring
        )
        if pause_ns:
            self._is_paused = True
            self._unread_ns, self._unread_part = now_ns, 1.0
            self._engine.pauses.ask(self, pause_ns)
            self._set_reading()

    def _receive_in_rush(self, data: bytes, since_ns: int, now_ns: int) -> bool:
        """Takes some calls of a read and refuses the others. Whether the next read must wait for its turn.

        Not where it only refused what is old, and not where little came and all of it was taken: who asks for little
        must not wait for those who ask for too much.
        """
        connection, calls = self.connection, self.account.calls
        unread_before, received_before = calls.unread, calls.received
        room = self._round.room_calls(len(data), self._arrivals.unread_bytes, self._engine.own_ns())
        connection.room_calls = room = connection.room_left(room, now_ns)
        connection.receive(data, since_ns)
        refused = calls.unread - unread_before
        taken = calls.received - received_before - refused
        connection.bar(self._shares.bars(now_ns, len(data), taken, refused))
        if refused:
            self._engine.rush.seen(now_ns)
            return room > 0
        if len(data) < LONG_READ_BYTES and not connection.has_rest:
            self._round.forget()
            return False
        return True

    def _wait_for_turn(self) -> None:
        if not self._waits_for_turn and not self._is_full:
            self._waits_for_turn = True
            self._unread_ns = self._unread_ns or self.clock_ns()
            self._engine.turns.ask(self)
        self._set_reading()

    def take_turn(self) -> bool:
        """Handles more of a read that was too much for one turn of the loop. False: that was all of it, read on."""
        connection = self.connection
        if connection.has_rest:
            connection.is_awake = True
            connection.go_on()
            self.flush()
        if self._round.has_begun and not connection.has_rest:
            self._round.end(self._engine.own_ns())  # a system call, which only a rush is worth
        self._waits_for_turn = connection.has_rest and not self._is_full
        if not connection.has_rest:
            self._look_for_unread()
        self._set_reading()
        return self._waits_for_turn

    def go_on(self) -> None:
        """The pause is over."""
        self._is_paused = False
        if self._round.has_begun:
            self._round.end(self._engine.own_ns())
        self._look_for_unread()
        self._set_reading()

    def _look_for_unread(self) -> None:
        """What comes from now on has not waited."""
        if self._transport.is_closing() or self._arrivals.is_empty():
            self._unread_ns = 0

    def _set_reading(self) -> None:
        """Reads while there is room for answers, and nothing of what was read waits."""
        paused = self._is_full or self._waits_for_turn or self._is_paused
        if paused != self._reading_paused and not self._transport.is_closing():
            self._reading_paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def wake(self) -> None:
        """Output is waiting. Everything that this turn of the loop still adds will leave with it."""
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what is in `out`, and as much of the transfers as the transport takes."""
        connection = self.connection
        if connection.host is not self:
            return  # the client left in this turn of the loop, after something had been said to it
        connection.is_awake = False
        if connection.first_answered is not None:
            arrived_ns, patience_ns = connection.first_answered
            connection.first_answered = None
            now_ns = self.clock_ns()
            self._lulls.answered(now_ns - arrived_ns, patience_ns)
            self._engine.turns.long.answered(patience_ns, now_ns)
        while True:
            is_long = self._can_write and connection.has_transfers()
            if is_long:
                connection.pump()
            out = connection.out
            if not out:
                break
            if is_long:
                self._written_bytes += sum(map(len, out))
                self._transport.writelines(out)  # not joined: the pieces are long
            else:
                data = b"".join(out)
                self._written_bytes += len(data)
                self._transport.write(data)
            out.clear()
        if connection.is_closing or connection.is_drained:
            self._transport.close()
        elif not self._can_write and not self._is_full:
            self._stop_if_full()

    def _stop_if_full(self) -> None:
        if self._transport.get_write_buffer_size() > self._limits.write_buffer_bytes_max:
            self._is_full = True
            self._set_reading()

    def pause_writing(self) -> None:
        self._can_write = False
        self.connection.set_blocked(True)

    def resume_writing(self) -> None:
        self._can_write = True
        self.connection.set_blocked(False)
        if self._is_full:
            self._is_full = False
            if self.connection.has_rest:
                self._wait_for_turn()
            self._set_reading()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._handshake_timer.cancel()
        if self._age_timer is not None:
            self._age_timer.cancel()
        self.connection.disconnected()
        # The connection and its host refer to each other, and the process may run without a cyclic collector.
        self.connection.host = self._engine.host_of_the_gone
        self._in_place = None
        self._engine.left(self)

    def look_for_stalls(self) -> None:
        """Ends what the client keeps waiting; called every `stall_ms_max`."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if self._stalls.look(self.connection, unsent_bytes, self._written_bytes - unsent_bytes):
            self.flush()
        else:
            self.account.refusals["unread"] += 1
            self._transport.abort()

    def abort(self) -> None:
        """Ends the connection at once; a client that reads still gets the last frames."""
        self.connection.close(ErrorCode.NO_ERROR)
        self.flush()
        if not self._can_write:
            self._transport.abort()
