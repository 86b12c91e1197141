"""Listening sockets that systemd holds for this process (sd_listen_fds(3)): they outlive it, and so do the connections
in their backlog, which the next process accepts.

What a socket is for is told by its name, `FileDescriptorName=` of its unit.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Final

from ringserve.config.schema import Server

#: Descriptors are passed from here on.
_FIRST: Final = 3

#: Clients' gRPC and REST, operators' UNIX socket, and where a server's processes register with its broker.
GRPC: Final = "grpc"
REST: Final = "rest"
ADMIN: Final = "admin"
BROKER: Final = "broker"
NAMES: Final = (GRPC, REST, ADMIN, BROKER)


class ActivationError(Exception):
    """Sockets came that nobody here knows what to do with; the text says what to write into the unit."""


def take(environ: MutableMapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The descriptors by name; they are the caller's to close, and are not inherited unless it is asked for.

    Empty when none were passed, or to another process. The variables are removed: they are not for children. Raises
    ActivationError.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, tuple[int, ...]] = {}
    fds = range(_FIRST, _FIRST + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    for fd, name in zip(fds, [*names, *[""] * len(fds)], strict=False):
        if name not in NAMES:
            known = ", ".join(f"FileDescriptorName={each}" for each in NAMES)
            raise ActivationError(f"systemd passed a socket named {name!r}: its unit must say one of {known}")
        found[name] = (*found.get(name, ()), fd)
    return found


def settled(server: Server, sockets: Mapping[str, tuple[int, ...]]) -> Server:
    """The settings with the address that the sockets have, which counts; a port of -1 (of REST: 0) when they have none
    because they are UNIX sockets. Raises ActivationError."""
    if sockets.get(GRPC) and server.grpc_engine != "native":
        raise ActivationError(f"grpc_engine: {server.grpc_engine} takes no sockets that systemd holds: use native")
    if GRPC in sockets:
        host, port = _first_address(sockets[GRPC]) or (server.host, -1)
        server = replace(server, host=host, port=port)
    if REST in sockets:
        host, port = _first_address(sockets[REST]) or (server.host, 0)
        server = replace(server, host=host, rest_api_port=port)
    return server


def _first_address(fds: tuple[int, ...]) -> tuple[str, int] | None:
    for fd in fds:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                host, port = sock.getsockname()[:2]
                return str(host), int(port)
    return None
