"""What must hold between settings, the numbers derived from them, and the itemised bill of memory."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import replace
from typing import Final, NamedTuple

from ringserve.config.access_log import mistakes_of_access_log
from ringserve.config.devices import DeviceError, Request, Slot, parse_devices, place, slots
from ringserve.config.groups import DEFAULT, Group, mistakes_of_groups
from ringserve.config.schema import GIB, KIB, MIB, Batching, Model, Server, Settings, Workers
from ringserve.config.topology import Topology
from ringserve.config.tracing import mistakes_of_tracing

#: CPUs per frontend when their number is derived: one frontend feeds about that many workers before it is full.
CPUS_PER_FRONTEND: Final = 4
#: sockaddr_un.sun_path holds 108 bytes with its end; the longest name that we put behind run_dir is below 40.
SOCKET_PATH_BYTES_MAX: Final = 107
RUN_DIR_BYTES_MAX: Final = SOCKET_PATH_BYTES_MAX - 40

#: A process that works may be late by some hundred milliseconds, on a host that is loaded.
HANG_MS_MIN: Final = 1000

#: Where nobody says how long a batch may run.
_LEASE_MS: Final = 30_000

#: Private memory of a process without a model: budgets, not measurements, except the pool's: TensorFlow's import.
BROKER_PRIVATE_BYTES: Final = 60 * MIB
FRONTEND_PRIVATE_BYTES: Final = 60 * MIB
WORKER_PRIVATE_BYTES: Final = 60 * MIB
POOL_PRIVATE_BYTES: Final = 210 * MIB


class Broken(NamedTuple):
    """A relation that does not hold. keys: the settings it is between (`models` for the list of models)."""

    keys: tuple[str, ...]
    text: str


def mistakes(settings: Settings) -> list[Broken]:
    """Every relation between settings that does not hold."""
    found: list[Broken] = []

    def broken(text: str, *keys: str) -> None:
        found.append(Broken(keys, text))

    server, workers = settings.server, settings.workers
    if server.port > 0 and server.port == server.rest_api_port:
        text = f"port and rest_api_port are both {server.port}: gRPC and REST need a port each"
        broken(text, "port", "rest_api_port")
    if server.port == -1 and not server.rest_api_port and not server.grpc_socket_path:
        text = "port is -1, rest_api_port 0 and grpc_socket_path empty: nobody could reach the server"
        broken(text, "port", "rest_api_port", "grpc_socket_path")
    for key in ("grpc_socket_path", "admin_socket_path"):
        if len(os.fsencode(getattr(server, key))) > SOCKET_PATH_BYTES_MAX:
            broken(f"{key} is longer than {SOCKET_PATH_BYTES_MAX} bytes: no UNIX socket can have that name", key)
    for text, *keys in (*_mistakes_of_tls(server), *_mistakes_of_ports(server)):
        broken(text, *keys)
    if server.metrics_path and not server.metrics_path.startswith("/"):
        broken(f"metrics_path: {server.metrics_path!r} does not start with a slash", "metrics_path")
    if not server.host:
        broken("host is empty: '0.0.0.0' listens on all addresses", "host")
    if len(os.fsencode(server.run_dir)) > RUN_DIR_BYTES_MAX:
        broken(f"run_dir is longer than {RUN_DIR_BYTES_MAX} bytes: UNIX sockets in it could not be named", "run_dir")
    if server.run_dir and not os.path.isabs(server.run_dir):
        broken(f"run_dir: {server.run_dir!r} is not an absolute path", "run_dir")
    if 0 < server.hang_ms_max < HANG_MS_MIN:
        text = f"hang_ms_max ({server.hang_ms_max}) is below {HANG_MS_MIN}: a loaded host would have processes killed"
        broken(text, "hang_ms_max")
    if workers.restart_wait_ms_min > workers.restart_wait_ms_max:
        broken(
            f"restart_wait_ms_min ({workers.restart_wait_ms_min}) is above "
            f"restart_wait_ms_max ({workers.restart_wait_ms_max})",
            "restart_wait_ms_min",
            "restart_wait_ms_max",
        )
    if 0 < workers.workers_max < workers.workers:
        text = f"workers ({workers.workers}) is above workers_max ({workers.workers_max})"
        broken(text, "workers", "workers_max")
    for text in mistakes_of_tracing(settings.tracing):
        broken(text, "endpoint")
    for text in mistakes_of_access_log(settings.access_log):
        broken(text, "to", "failures")
    for text in mistakes_of_groups(settings.groups):
        broken(text, "groups")
    for key, devices in (("devices", workers.devices), *(("groups", group.devices) for group in settings.groups)):
        try:
            parse_devices(devices)
        except DeviceError as error:
            broken(str(error), key)
    rows_keys = ("queue_rows_max", "batch_rows_max", "batch_rows_allowed")
    for text in mistakes_of_batching("batching", settings.batching):
        broken(text, *rows_keys)
    if not settings.models and not settings.lifecycle.model_config_file:
        ways = "--model_base_path, --model_config_file, or [[models]] in a file named by --config"
        broken(f"no model to serve: give {ways}", "models", "model_config_file")
    for text in _mistakes_of_models(settings.models):
        broken(text, "models", *rows_keys)
    return found


def _mistakes_of_ports(server: Server) -> list[tuple[str, ...]]:
    """(text, keys), as of TLS."""
    found: list[tuple[str, ...]] = []
    if server.admin_socket_path and server.admin_socket_path == server.grpc_socket_path:
        text = "grpc_socket_path and admin_socket_path are one: gRPC and operators need a socket each"
        found.append((text, "grpc_socket_path", "admin_socket_path"))
    ports = ("port", "rest_api_port", "admin_port", "metrics_port")
    for at, one in enumerate(ports):
        for other in ports[at + 1 :]:
            if getattr(server, one) == getattr(server, other) > 0 and other != "rest_api_port":
                text = f"{one} and {other} are both {getattr(server, one)}: each needs one of its own"
                found.append((text, one, other))
    if not server.admin_host:
        found.append(("admin_host is empty: '127.0.0.1' is reached from this host only", "admin_host"))
    return found


def is_loopback(host: str) -> bool:
    """Whether only this host's processes can reach what is bound to that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warnings_of_access(settings: Settings) -> list[str]:
    server = settings.server
    if settings.access.keys_file:
        return []
    what = []
    if not is_loopback(server.host) and (server.port >= 0 or server.rest_api_port):
        what.append(f"ask every model at {server.host}")
        if server.port >= 0 and server.grpc_admin == "all":
            what.append("replace the models over gRPC (grpc_admin)")
        if server.rest_api_port and server.rest_admin == "all":
            what.append("change the models over REST (rest_admin)")
    if server.admin_port and not is_loopback(server.admin_host):
        what.append(f"change the models at {server.admin_host} (admin_port)")
    if not what or (server.tls_client_verify == "required" and server.tls_ports == "both"):
        return []
    text = f"NO ACCESS CONTROL: whoever reaches this server may {', and '.join(what)}"
    return [f"{text}: see [access] keys_file, or bind 127.0.0.1"]


def _warnings_of_files(settings: Settings) -> list[str]:
    """Secrets that others can read, and keys that others can make."""
    key_file, keys_file = settings.server.tls_key_file, settings.access.keys_file
    found = []
    if key_file and _mode(key_file) & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        found.append(f"tls_key_file {key_file} can be read or changed by others: chmod 600")
    if keys_file and _mode(keys_file) & (stat.S_IWOTH | stat.S_IWGRP):
        found.append(f"keys_file {keys_file} can be changed by others, who may so make themselves a key: chmod go-w")
    return found


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _mistakes_of_tls(server: Server) -> list[tuple[str, ...]]:
    """(text, keys) of what does not hold between the settings of TLS. What is in the files is looked at elsewhere."""
    found: list[tuple[str, ...]] = []
    for one, other in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if getattr(server, one) and not getattr(server, other):
            found.append((f"{one} without {other}: TLS needs both", "tls_cert_file", "tls_key_file"))
    if server.ssl_config_file and server.tls_cert_file and server.tls_ports != "rest":
        text = "ssl_config_file and tls_cert_file are both about gRPC: give one of them, or set tls_ports to rest"
        found.append((text, "ssl_config_file", "tls_cert_file", "tls_ports"))
    if server.tls_client_verify != "none":
        if not server.tls_client_ca_file:
            text = f"tls_client_verify is {server.tls_client_verify}, and no tls_client_ca_file says whom to trust"
            found.append((text, "tls_client_verify", "tls_client_ca_file"))
        if not server.tls_cert_file:
            text = f"tls_client_verify is {server.tls_client_verify}, and there is no tls_cert_file: without TLS"
            found.append((f"{text} nobody can be verified", "tls_client_verify", "tls_cert_file"))
        if server.tls_client_verify == "optional" and server.grpc_engine == "grpcio" and server.tls_ports != "rest":
            text = "tls_client_verify: the engine grpcio knows no optional certificates; take grpc_engine=native"
            found.append((text, "tls_client_verify", "grpc_engine", "tls_ports"))
    elif server.tls_client_ca_file:
        text = "tls_client_ca_file is given, and tls_client_verify is none: nobody would be verified"
        found.append((text, "tls_client_verify", "tls_client_ca_file"))
    if server.tls_client_crl_file:
        if server.tls_client_verify == "none":
            text = "tls_client_crl_file is given, and tls_client_verify is none: nobody would be verified"
            found.append((text, "tls_client_verify", "tls_client_crl_file"))
        if server.grpc_engine == "grpcio" and server.tls_ports != "rest":
            text = "tls_client_crl_file: the engine grpcio knows no such lists; take grpc_engine=native"
            found.append((text, "tls_client_crl_file", "grpc_engine", "tls_ports"))
    return found


def mistakes_of_batching(place: str, batching: Batching) -> list[str]:
    """What does not hold between the keys of one [batching], each line with its place in front."""
    found = []
    if batching.queue_rows_max < batching.batch_rows_max:
        found.append(
            f"{place}: queue_rows_max ({batching.queue_rows_max}) is below batch_rows_max "
            f"({batching.batch_rows_max}): no batch could ever be full"
        )
    try:
        allowed = rows_allowed(batching)
    except ValueError:
        found.append(f"{place}: batch_rows_allowed: {batching.batch_rows_allowed!r} is not a list such as '1,8,32'")
    else:
        if allowed and allowed[-1] < batching.batch_rows_max:
            found.append(
                f"{place}: batch_rows_allowed ends at {allowed[-1]}, below batch_rows_max ({batching.batch_rows_max}): "
                "larger batches could not be padded"
            )
    return found


def rows_allowed(batching: Batching) -> list[int]:
    """`batch_rows_allowed` as numbers, ascending; empty: any. Raises ValueError for a text that is no such list."""
    if not batching.batch_rows_allowed.strip():
        return []
    allowed = sorted({int(word) for word in batching.batch_rows_allowed.split(",")})
    if allowed[0] < 1:
        raise ValueError(batching.batch_rows_allowed)
    return allowed


def _mistakes_of_models(models: tuple[Model, ...]) -> list[str]:
    names = [model.name for model in models]
    found = [f"two models are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    for model in models:
        if "://" in model.base_path:
            found.append(f"model {model.name!r}: base_path {model.base_path!r} is not a folder of this machine")
        found += mistakes_of_batching(f"model {model.name!r}", model.batching)
    return found


def warnings(settings: Settings) -> list[str]:
    """What is probably not meant, and no reason to refuse to start: a model's folder may still come."""
    found = _warnings_of_access(settings) + _warnings_of_files(settings) + [
        f"model {model.name!r}: base path {model.base_path} does not exist (yet)"
        for model in settings.models
        if not os.path.isdir(model.base_path)
    ]
    workers = settings.workers
    limit = "gpu_bytes_max" if workers.gpu_bytes_max else "per_process_gpu_memory_fraction"
    if workers.gpu_allocator != "bfc" and getattr(workers, limit):
        found.append(f"{limit} is no limit with gpu_allocator {workers.gpu_allocator}: it gives back what is above")
    return found


def workers_of(settings: Settings, machine: Topology) -> int:
    """How many workers: as set, or one for every `threads_per_worker` usable CPUs, or every GPU. Raises DeviceError."""
    workers = settings.workers
    if workers.workers:
        return workers.workers
    return len(slots(workers.devices, machine, workers=0, threads=workers.threads_per_worker, pin=False))


def groups_of(settings: Settings) -> tuple[Group, ...]:
    """All groups, the default one first, of settings that are resolved."""
    workers = settings.workers
    default = Group(
        DEFAULT,
        (),
        workers.devices,
        workers.workers,
        max(workers.workers, workers.workers_max),
        workers.threads_per_worker,
        workers.workers_replace,
    )
    return (default, *settings.groups)


def slots_of(settings: Settings, machine: Topology) -> dict[str, list[Slot]]:
    """Where the workers of each group run, by the group's name; as many slots as it may have workers. Raises
    DeviceError. `settings` are resolved."""
    groups = groups_of(settings)
    requests = [Request(group.devices, group.workers_max, group.threads_per_worker) for group in groups]
    places = place(requests, machine, pin=settings.workers.pin)
    return {group.name: slots for group, slots in zip(groups, places, strict=True)}


def _resolved(group: Group, settings: Settings, machine: Topology) -> Group:
    threads = group.threads_per_worker or settings.workers.threads_per_worker
    workers = group.workers
    if not workers:
        workers = len(slots(group.devices, machine, workers=0, threads=threads, pin=False))
        workers = min(workers, group.workers_max or workers)
    return replace(group, workers=workers, workers_max=group.workers_max or workers, threads_per_worker=threads)


def frontends_of(settings: Settings, machine: Topology) -> int:
    """How many frontends: as set, or max(1, usable CPUs // CPUS_PER_FRONTEND)."""
    return settings.server.frontends or max(1, machine.count // CPUS_PER_FRONTEND)


def lease_ms(workers: Workers) -> int:
    """How long a batch may run, unless a client waits for longer: what hangs is found by then."""
    return workers.lease_ms_max or _LEASE_MS


def resolve(settings: Settings, machine: Topology) -> Settings:
    """The same settings with every number that was left to be derived filled in (ports are the supervisor's)."""
    workers, most = workers_of(settings, machine), settings.workers.workers_max
    return replace(
        settings,
        server=replace(settings.server, frontends=frontends_of(settings, machine)),
        workers=replace(settings.workers, workers=min(workers, most or workers)),
        groups=tuple(_resolved(group, settings, machine) for group in settings.groups),
    )


def fixed_bytes(settings: Settings) -> int:
    """Private memory of all processes, whatever is loaded: what a budget for models begins with. Rings do not count:
    they take memory only while requests fill them. `settings` are resolved."""
    frontends, workers = settings.server.frontends, sum(group.workers_max for group in groups_of(settings))
    private = frontends * FRONTEND_PRIVATE_BYTES + workers * WORKER_PRIVATE_BYTES
    return private + BROKER_PRIVATE_BYTES + POOL_PRIVATE_BYTES


def memory_bill(settings: Settings) -> list[str]:
    """What the server may take at most beside its models' weights and working memory, item by item, and the sum; and
    how weights are counted.

    `settings` are resolved. Rings count in full, although their pages are taken only when requests fill them.
    """
    frontends = settings.server.frontends
    workers = sum(group.workers_max for group in groups_of(settings))
    items = [
        ("request rings", frontends, settings.shm.request_ring_bytes),
        ("result rings", workers, settings.shm.result_ring_bytes),
        ("frontends", frontends, FRONTEND_PRIVATE_BYTES),
        ("broker", 1, BROKER_PRIVATE_BYTES),
        ("pool (TensorFlow)", 1, POOL_PRIVATE_BYTES),
        ("workers", workers, WORKER_PRIVATE_BYTES),
    ]
    lines = [f"{name:<18}{count:>4} × {_mib(each):>9} = {_mib(count * each):>10}" for name, count, each in items]
    total = sum(count * each for _, count, each in items)
    memory = settings.memory
    weights = "each worker has weights of its own"
    if memory.weight_sharing == "on":
        weights = f"weights of {_mib(memory.weight_sharing_bytes_min)} or more are once in memory"
    limit = f"memory_bytes_max {_mib(memory.memory_bytes_max)}, " if memory.memory_bytes_max else ""
    return [*lines, f"{'at most':<18}{'':>4}   {'':>9}   {_mib(total):>10}, models not counted: {limit}{weights}"]


def _mib(count_bytes: int) -> str:
    if count_bytes >= 10 * GIB:
        return f"{count_bytes / GIB:.0f} GiB"
    return f"{count_bytes / MIB:.0f} MiB" if count_bytes >= MIB else f"{count_bytes / KIB:.0f} KiB"
