"""Whether a client that sends nothing more is still there to read the answer.

The end of what it sends does not tell: one that closed its socket and one that only stopped sending look alike, until
something is sent to them. And where reading has stopped, because of what was sent ahead, that end is not seen at all.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final

from ringserve.frontend.http1.answers import CONTINUE

#: A client that has said goodbye is sent a word twice, this long apart: the second one fails if nobody listens.
_PROBE_S: Final = 0.05
_ENDED: Final = select.POLLRDHUP
_LOST: Final = select.POLLERR | select.POLLHUP


def probe(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_busy: Callable[[], bool]) -> None:
    """Send an interim answer, which every client of HTTP/1.1 ignores, and another one soon.

    A closed socket refuses the first, so that the second fails here, which ends the connection. is_busy: whether there
    is still an answer to come; none may be sent after it.
    """

    def again() -> None:
        if is_busy():
            transport.write(CONTINUE)

    transport.write(CONTINUE)
    loop.call_later(_PROBE_S, again)


def has_ended(transport: asyncio.Transport) -> bool:
    """Whether the client has stopped sending, whatever is still unread. One that has reset the connection is lost here:
    the connection is aborted."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _ENDED)
    events = sum(found for _, found in poll.poll(0))
    if events & _LOST or (events and not transport.can_write_eof()):  # TLS has no half-closed state
        transport.abort()
    return bool(events)
