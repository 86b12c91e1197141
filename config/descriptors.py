"""How many connections a frontend may take, by how many descriptors the system lets it have.

A frontend needs descriptors in the middle of its life: a worker or a broker that follows another is introduced to it by
some. Were connections to take the last ones, clients that do nothing but connect could keep it from both. So what it
needs for itself is set apart, and its ports share the rest.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final, NamedTuple

from ringserve.config.limits import groups_of
from ringserve.config.schema import Settings
from ringserve.config.tls import source_of_grpc, source_of_rest

#: Of a frontend beside its connections, with libraries, logs, metrics and what is opened for a moment; measured: 41.
_OWN: Final = 128
#: For each worker: a ring and a cable, as often as workers are replaced while the rings of dead ones are still kept.
#: Measured: 2 at rest, up to 24 where configurations are reloaded one after the other.
_WORKER: Final = 8
#: Connections beyond a port's limit, which are told so: those are descriptors, too, for a moment.
_TOLD_MAX: Final = 128
#: TLS handshakes under way of one port (`frontend/tls_door.py`), which do not count as connections yet.
_HANDSHAKES_MAX: Final = 512
#: Of each port, or a frontend is of no use.
_PORT_MIN: Final = 16
#: The part of all that operators' ports get where there is not enough for everybody, each.
_OPERATORS_SHARE: Final = 16
#: What no limit is taken for.
_NO_LIMIT: Final = 2**30


class TooFewError(Exception):
    """A frontend cannot work with so few descriptors; the text says how many it needs."""


class Port(NamedTuple):
    """connections_max: of one listener, or of all that one engine has. told_max: so many more are told that they are
    too many; those beyond are closed without a word."""

    connections_max: int
    told_max: int = _TOLD_MAX


class Caps(NamedTuple):
    """clients: gRPC's port, and likewise REST's. operators: each port for operators or metrics. needed: how many
    descriptors it takes for all of them to have what is configured. warning: what is to be said; empty where they do.
    """

    clients: Port
    operators: Port
    needed: int
    warning: str = ""


def raise_limit() -> int:
    """Take as many descriptors as the system gives (the usual soft limit of 1024 is there for select(), which nobody
    here uses). Returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return _NO_LIMIT if soft == resource.RLIM_INFINITY else soft


def caps_of(settings: Settings, files_max: int, *, rest: bool = False) -> Caps:
    """What a frontend's ports may take of so many descriptors. settings: resolved. rest: REST is on whatever they say.
    Raises TooFewError."""
    server = settings.server
    rest = rest or server.rest_api_port != 0
    operators = 1 + (server.admin_port > 0) + (server.metrics_port > 0)  # and the UNIX socket, which is always there
    rest_like = rest + (server.admin_port > 0)
    return shared_out(
        files_max,
        server.connections_max,
        workers=sum(group.workers_max for group in groups_of(settings)),
        clients=1 + rest,
        operators=operators,
        encrypted=(source_of_grpc(server) is not None) + rest_like * (source_of_rest(server) is not None),
    )


def shared_out(
    files_max: int, connections_max: int, *, workers: int, clients: int, operators: int, encrypted: int
) -> Caps:
    """The same by numbers. clients, operators: how many ports there are of each (gRPC's is one, wherever
    it listens); encrypted: of all, those with TLS."""
    own = _OWN + _WORKER * workers
    whole = Port(connections_max)
    needed = own + (clients + operators) * sum(whole) + encrypted * _HANDSHAKES_MAX
    if files_max >= needed:
        return Caps(whole, whole, needed)
    least = own + (clients + operators) * _PORT_MIN
    if files_max < least:
        raise TooFewError(
            f"a process may open {files_max} files (RLIMIT_NOFILE); a frontend needs {least} to serve at all with "
            f"{workers} worker{'' if workers == 1 else 's'}, and {needed} for connections_max {connections_max}"
        )
    left = files_max - own
    left -= min(encrypted * _HANDSHAKES_MAX, left // 4)
    each = min(max(left // _OPERATORS_SHARE, _PORT_MIN), sum(whole), left // (clients + operators))
    of_operators = _port(each, connections_max)
    of_clients = _port((left - operators * each) // clients, connections_max)
    warning = (
        f"a process may open {files_max} files (RLIMIT_NOFILE), so that a frontend takes {of_clients.connections_max} "
        f"connections of clients over each protocol and {of_operators.connections_max} on each port for operators, not "
        f"{connections_max} (connections_max): that needs {needed} files"
    )
    return Caps(of_clients, of_operators, needed, warning)


def _port(files_max: int, connections_max: int) -> Port:
    told_max = min(_TOLD_MAX, files_max // 4)
    return Port(min(connections_max, files_max - told_max), told_max)
