"""Operators' calls straight to a server's broker, without a frontend between: registered as one, and gone after it."""

from __future__ import annotations

import json
import os
import select
import tempfile
import time
from typing import Any

from ringserve.broker.control import ControlChannel
from ringserve.broker.mailbox import Mail
from ringserve.broker.messages import PROTOCOL_VERSION, Ask, Hello, Role, Told
from ringserve.shm.segment import Segment
from tests.e2e.server import Server

_PATIENCE_S = 60.0


def ask(server: Server, verb: str, body: bytes = b"") -> Told:
    """One call and its answer."""
    with tempfile.TemporaryDirectory(prefix="rs-") as folder:
        mail, segment = Mail(), Segment.create("operator", 1 << 20)
        inbox = mail.inbox(os.path.join(folder, "inbox"))
        channel = ControlChannel.connect(str(server.run_dir / "broker.sock"))
        hello = Hello(PROTOCOL_VERSION, int(Role.FRONTEND), os.getpid(), inbox.path, segment.data_bytes, -1, 0)
        channel.send(hello, (segment.fd,))
        channel.send(Ask(1, verb, body))
        try:
            return _answer(channel)
        finally:
            channel.close()
            inbox.close()
            mail.close()
            segment.close()


def ask_json(server: Server, verb: str, **fields: Any) -> Told:
    """The same with a JSON body."""
    return ask(server, verb, json.dumps(fields).encode())


def state(server: Server) -> dict[str, Any]:
    """What the broker says of itself."""
    found: dict[str, Any] = json.loads(ask(server, "state").body)
    return found


def _answer(channel: ControlChannel) -> Told:
    limit = time.monotonic() + _PATIENCE_S
    poller = select.poll()
    poller.register(channel.fd, select.POLLIN)
    while time.monotonic() < limit:
        if not poller.poll(1_000):
            continue
        for message, fds in channel.receive():
            for fd in fds:
                os.close(fd)
            if isinstance(message, Told):
                return message
    raise AssertionError("the broker did not answer")
