"""A cable on the event loop: it never waits, loses nothing that fits no socket, and does not wake for a dead peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ringserve.broker.cable import Cable, pair
from ringserve.frontend.line import Line
from tests.frontend.test_client import until

#: More than a socket's buffer holds.
LARGE = bytes(range(256)) * 8192


@asynccontextmanager
async def lined() -> AsyncIterator[tuple[Line, list[bytes], Cable]]:
    """A line, what has come over it, and the other end."""
    ours, theirs = pair()
    mail: list[bytes] = []
    line, cable = Line(ours.detach(), mail.extend), Cable(theirs)
    try:
        yield line, mail, cable
    finally:
        line.close()
        cable.close()


async def test_what_a_peer_does_not_read_is_kept_and_arrives_whole_and_in_order() -> None:
    async with lined() as (line, mail, cable):
        sent = [LARGE, b"small", LARGE[::-1], b"last"]
        for message in sent:
            line.send(message)
        cable.send(b"hello")
        await until(lambda: mail == [b"hello"])  # the loop turns, though nobody has read
        received: list[bytes] = []

        def read() -> bool:
            received.extend(cable.receive())
            return len(received) == len(sent)

        await until(read)
        assert received == sent
        line.send(b"now at once")
        assert cable.receive() == [b"now at once"]


async def test_the_last_words_of_a_peer_are_heard_and_what_is_sent_to_it_goes_nowhere() -> None:
    async with lined() as (line, mail, cable):
        line.send(LARGE)
        cable.send(b"last words")
        cable.close()
        await until(lambda: mail == [b"last words"])
        await asyncio.sleep(0)
        line.send(LARGE)
        line.send(b"anybody?")
        assert mail == [b"last words"]
