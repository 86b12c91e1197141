"""Hosts that are network namespaces of this machine, on one switch; made by a test (root only), removed after it."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60, capture_output=True)


class Network:
    """A switch with an address of its own, and hosts by address. Use it as a context manager."""

    def __init__(self, own: str, *hosts: str) -> None:
        self._own, self._hosts = own, hosts
        self._prefix = f"rs{os.getpid()}"

    def namespace(self, address: str) -> str:
        """The namespace that has that address."""
        return f"{self._prefix}-{address.rpartition('.')[2]}"

    def inside(self, address: str) -> list[str]:
        """What runs a command on that host, when put before it."""
        return ["ip", "netns", "exec", self.namespace(address)]

    def plug(self, address: str, *, pulled: bool) -> None:
        """Pull the host's cable, or put it back. Nobody is told: packets stop coming."""
        port = f"p{address.rpartition('.')[2]}"
        _ip("-n", self.namespace(self._own), "link", "set", port, "down" if pulled else "up")

    def __enter__(self) -> Network:
        switch = self.namespace(self._own)
        try:
            _ip("netns", "add", switch)
            _ip("-n", switch, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "addr", "add", f"{self._own}/24", "dev", "br0")
            _ip("-n", switch, "link", "set", "br0", "up")
            for address in self._hosts:
                name, port = self.namespace(address), f"p{address.rpartition('.')[2]}"
                _ip("netns", "add", name)
                _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
                _ip("-n", switch, "link", "set", port, "master", "br0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for address in (*self._hosts, self._own):
            command = ["ip", "netns", "del", self.namespace(address)]
            subprocess.run(command, check=False, timeout=60, capture_output=True)
