"""The server's ports and UNIX socket: found free before anything starts, then kept ours while frontends come and go."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from ringserve.activation import GRPC, REST
from ringserve.config.schema import Settings

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
#: Who may connect: the server's user and group; for operators, the user alone.
_SOCKET_MODE: Final = 0o660
ADMIN_SOCKET_MODE: Final = 0o600


class PortError(Exception):
    """A port or socket cannot be had; the text says which, why, and how to choose another."""


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


def take_ports(settings: Settings, stack: contextlib.ExitStack, held: Collection[str] = ()) -> Settings:
    """Hold every port that is configured, until `stack` closes. Returns the settings with the ports as they came out.
    Raises PortError.

    held: names (`activation.GRPC`, `activation.REST`) of what somebody else holds for us, at the address that is set.
    """
    server = settings.server
    if server.port >= 0 and GRPC not in held:
        port, placeholder = hold(server.host, server.port, "port")
        stack.enter_context(placeholder)
        server = replace(server, port=port)
    if server.rest_api_port and REST not in held:
        port, placeholder = hold(server.host, server.rest_api_port, "rest_api_port")
        stack.enter_context(placeholder)
        server = replace(server, rest_api_port=port)
    if server.admin_port:
        port, placeholder = hold(server.admin_host, server.admin_port, "admin_port")
        stack.enter_context(placeholder)
        server = replace(server, admin_port=port)
    if server.metrics_port:
        host = server.metrics_host or server.host
        port, placeholder = hold(host, server.metrics_port, "metrics_port")
        stack.enter_context(placeholder)
        server = replace(server, metrics_port=port, metrics_host=host)
    grpc_port = server.port if server.port >= 0 else "none"
    log.info("gRPC port %s, REST port %s, of %s", grpc_port, server.rest_api_port or "none", server.host)
    return replace(settings, server=server)


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


@contextlib.contextmanager
def unix_listener(
    path: str, flag: str = "grpc_socket_path", mode: int = _SOCKET_MODE
) -> Iterator[socket.socket]:
    """A listening UNIX socket of that name, which all frontends accept from; removed at the end. Raises PortError.

    flag: the setting's, for the error's text. mode: who may connect. A socket's file that nobody listens on (its server
    was killed) is replaced; anything else of that name is left.
    """
    path = os.path.abspath(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        # The file is made with the mode of the descriptor, so that it is at no moment open to others.
        os.fchmod(listener.fileno(), mode)
        try:
            _remove_stale(path)
            listener.bind(path)
            os.chmod(path, mode)  # which the process's umask may have narrowed
            made = os.lstat(path)
            listener.listen(_BACKLOG)
        except OSError as error:
            text = "another program listens on it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise PortError(f"--{flag}: {path}: {text}; choose another with --{flag}=PATH") from error
        try:
            yield listener
        finally:
            _remove_ours(path, made)


def _remove_stale(path: str) -> None:
    """Make room for a socket. Raises OSError (EADDRINUSE, EEXIST) when what is there must stay."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # a full backlog is somebody's, too
        result = probe.connect_ex(path)
    if result == errno.ECONNREFUSED:
        os.unlink(path)
    elif result != errno.ENOENT:
        raise OSError(errno.EADDRINUSE if result in (0, errno.EAGAIN) else result, os.strerror(result))


def _remove_ours(path: str, made: os.stat_result) -> None:
    """Remove the socket's file, if it is still the one that was made."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)
