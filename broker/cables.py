"""The broker's cables to frontends and workers, on its poll loop: requests and Done in, batches out."""

from __future__ import annotations

import selectors

from ringserve.broker.cable import Cable
from ringserve.broker.registry import Arrivals


class Cables:
    """By peer id. Owns every cable from `add` to `remove` or `close`; what comes in goes into `Arrivals.mail`."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._cables: dict[int, Cable] = {}

    def add(self, peer_id: int, cable: Cable) -> None:
        self._cables[peer_id] = cable
        self._selector.register(cable.fd, selectors.EVENT_READ, lambda arrivals: self._serve(cable, arrivals))

    def send(self, peer_id: int, message: bytes) -> None:
        """Send without waiting; what does not fit the socket's buffer goes when it is writable."""
        cable = self._cables[peer_id]
        if not cable.send(message):
            self._watch(cable, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def remove(self, peer_id: int) -> list[bytes]:
        """The peer is gone: what it had sent before, and nobody has received yet."""
        cable = self._cables.pop(peer_id, None)
        if cable is None:
            return []
        mail = cable.receive()
        self._close(cable)
        return mail

    def close(self) -> None:
        for cable in self._cables.values():
            self._close(cable)
        self._cables.clear()

    def _serve(self, cable: Cable, arrivals: Arrivals) -> None:
        if cable.unsent and cable.flush():
            self._watch(cable, selectors.EVENT_READ)
        arrivals.mail += cable.receive()
        if cable.over:
            # The registration tells of the death; this descriptor would only go on waking the loop until then.
            self._selector.unregister(cable.fd)

    def _watch(self, cable: Cable, events: int) -> None:
        if not cable.over and self._selector.get_key(cable.fd).events != events:
            data = self._selector.get_key(cable.fd).data
            self._selector.modify(cable.fd, events, data)

    def _close(self, cable: Cable) -> None:
        if cable.fd in self._selector.get_map():
            self._selector.unregister(cable.fd)
        cable.close()
