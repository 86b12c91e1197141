"""The server's ports: found free before anything starts, then kept ours while frontends come and go."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple


class PortError(Exception):
    """A port cannot be had; the text says which, why, and how to choose another."""


class Held(NamedTuple):
    """port: the number. placeholder: bound, never listening; while it is open, no other user's program gets the port,
    and frontends of ours (SO_REUSEPORT) bind beside it. It takes no connections. The caller's to close."""

    port: int
    placeholder: socket.socket


def hold(host: str, port: int, flag: str) -> Held:
    """Make sure that nobody uses the port, and keep it. port: 0 or -1 picks a free one. Raises PortError.

    flag: the setting's flag, for the error's text.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    wanted = max(port, 0)
    # Without SO_REUSEPORT: with it the kernel would let us share a port with another server of the same user, and
    # hand out the connections between the two.
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        # Connections of an earlier server that are in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, host, wanted, flag)
        wanted = probe.getsockname()[1]
    placeholder = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        try:
            placeholder.bind((host, wanted))
        except OSError:
            # TIME_WAIT of a server that did not share its port; this way a second supervisor that starts at the very
            # same moment is not noticed, so it is the second choice.
            placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(placeholder, host, wanted, flag)
    except PortError:
        placeholder.close()
        raise
    return Held(wanted, placeholder)


def _bind(sock: socket.socket, host: str, port: int, flag: str) -> None:
    try:
        sock.bind((host, port))
    except OSError as error:
        where = f"--{flag}: port {port} of {host}"
        if error.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another program: stop it, or choose another port with --{flag}=NUMBER"
        elif error.errno == errno.EACCES:
            text = f"{where} needs privileges: choose one above 1023 with --{flag}=NUMBER"
        elif error.errno == errno.EADDRNOTAVAIL:
            text = f"{where}: this machine has no such address: see --host"
        else:
            text = f"{where} cannot be bound: {error.strerror or error}"
        raise PortError(text) from error
