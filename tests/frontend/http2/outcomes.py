"""What becomes of a connection that was sent some bytes after a correct beginning: for tables of cases of RFCs."""

from __future__ import annotations

from collections.abc import Callable

from ringserve.frontend.http2.frames import ErrorCode
from tests.frontend.http2.peer import Peer, answers, goaway, message

Write = Callable[[Peer], bytes]
#: A row: what must become of the connection, and what is sent. `None`: nothing, the next call is served.
#: An error code and 0: the connection ends with it. An error code and a stream: that stream does, others are served.
Case = tuple[tuple[ErrorCode, int] | None, Write]

_NEXT = 90_001


def outcome(write: Write, *, short_way: bool) -> tuple[ErrorCode, int] | None:
    """What became of it. Checks on the way that nothing is left behind, and that what still lives still serves."""
    peer = Peer(short_way=short_way)
    peer.send(write(peer))
    found = peer.read()
    code = goaway(found)
    if code is not None:
        assert peer.connection.is_closing
        assert not peer.connection.streams
        assert (peer.host.account.input_bytes, peer.host.account.output_bytes) == (0, 0)
        peer.send(peer.call(_NEXT))
        assert peer.read() == []
        return code, 0
    resets = {stream_id: answer.reset for stream_id, answer in answers(found).items() if answer.reset}
    peer.send(peer.call(_NEXT, b"next"))
    assert answers(peer.read())[_NEXT].body == message(b"next")
    assert not peer.host.bugs
    for stream_id, reset in resets.items():
        assert reset is not None
        assert stream_id not in peer.connection.streams
        return reset, stream_id
    return None
