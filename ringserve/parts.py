"""One process of a server without a supervisor, which systemd starts, watches and restarts by itself (docs/systemd.md).

    settings of the file -> resolved as the supervisor would -> sockets from systemd -> the process's main

Each resolves the configuration when it starts, so that a restart is all that a change of it needs. What the supervisor
hands down in one server, processes find here in the run directory, which a unit of its own makes.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ringserve import activation
from ringserve.config import limits
from ringserve.config.devices import DeviceError
from ringserve.config.keys_file import RATE_SLOTS
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.rundir import ADMIN_SOCKET, is_private
from ringserve.config.schema import Settings
from ringserve.config.topology import read_topology
from ringserve.shm.words import WORD_BYTES

#: Requests of keys, counted by all frontends together. A file: nobody lives as long as all of them and hands it down.
_RATES: Final = "rates.words"


class PartError(Exception):
    """This process cannot work as configured; the text says every reason on a line of its own."""


def settle(
    config_path: str, environ: Mapping[str, str], sockets: Mapping[str, tuple[int, ...]]
) -> tuple[Settings, str]:
    """The settings, resolved for this machine, and the run directory. Raises PartError."""
    try:
        settings = load_settings({}, environ, config_path or None)
        server = activation.settled(settings.server, sockets)
    except (ConfigError, activation.ActivationError) as error:
        raise PartError(str(error)) from error
    wrong = []
    if not server.run_dir:
        wrong.append("run_dir: processes that are started one by one need one that all of them know")
    elif not os.path.isdir(server.run_dir):
        wrong.append(f"run_dir: {server.run_dir} is not there: it must be made before the first process is started")
    elif not is_private(server.run_dir):
        wrong.append(f"run_dir: {server.run_dir} must be a folder of user {os.geteuid()} that no others may write to")
    for name, port, free in (
        ("port", server.port, 0),
        ("rest_api_port", server.rest_api_port, -1),
        ("admin_port", server.admin_port, -1),
        ("metrics_port", server.metrics_port, -1),
    ):
        if port == free:
            wrong.append(f"{name}: {port} picks a free port, and nobody would tell the other frontends which")
    if server.grpc_socket_path:
        wrong.append("grpc_socket_path: name it in the unit of the gRPC socket in place of this (ListenStream=)")
    if wrong:
        raise PartError("\n".join(wrong))
    machine = read_topology()
    try:
        settings = limits.resolve(replace(settings, server=server), machine)
        limits.slots_of(settings, machine)
    except DeviceError as error:
        raise PartError(str(error)) from error
    admin = server.admin_socket_path or os.path.join(server.run_dir, ADMIN_SOCKET)
    server = replace(
        settings.server, admin_socket_path=admin, metrics_host=server.metrics_host or settings.server.host
    )
    return replace(settings, server=server), server.run_dir


def sweep(run_dir: str, name: str) -> None:
    """Remove the sockets of earlier processes of that name, which could not do it when they were killed."""
    for kind in ("inbox", "grpcio"):
        for path in glob.glob(os.path.join(glob.escape(run_dir), f"{glob.escape(name)}-[0-9]*.{kind}")):
            if path != os.path.join(run_dir, f"{name}-{os.getpid()}.{kind}"):
                with contextlib.suppress(OSError):
                    os.unlink(path)


def inherited_of(settings: Settings, run_dir: str, sockets: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a frontend has from the supervisor otherwise: the fields of `frontend.service.Inherited`."""
    admin = sockets.get(activation.ADMIN, ())
    return {
        "grpc_fds": sockets.get(activation.GRPC, ()),
        "rest_fds": sockets.get(activation.REST, ()),
        "admin_socket_fd": admin[0] if admin else -1,
        "rates_fd": _open_rates(settings, run_dir),
    }


def _open_rates(settings: Settings, run_dir: str) -> int:
    """The words that all frontends count requests of keys in, as `shm.words.make_words` gives them; -1: no keys."""
    if not settings.access.keys_file:
        return -1
    fd = os.open(os.path.join(run_dir, _RATES), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # The same size every time, so that nothing changes for those who have it already.
    os.ftruncate(fd, RATE_SLOTS * WORD_BYTES)
    return fd
