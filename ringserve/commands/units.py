"""The files of an installation under systemd: the units of ringserve/units fitted to this host, and server.toml.

Each begins with the hash of what follows, so that a file that somebody has edited since is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from ringserve.config.schema import Server

_COMMAND: Final = "/opt/ringserve/bin/ringserve"
_CONFIG: Final = "/etc/ringserve/server.toml"
_MARK: Final = "# Written by `ringserve systemd install`; sha256 of what follows: "

GRPC_SOCKET: Final = "ringserve-frontend.socket"
REST_SOCKET: Final = "ringserve-frontend-rest.socket"
SERVICE: Final = "ringserve.service"
STANDBY: Final = "ringserve-standby.service"
TARGET: Final = "ringserve.target"
FRONTEND: Final = "ringserve-frontend@{}.service"
_SLICE: Final = "ringserve.slice"
#: Drop-ins for this name are for every unit whose name begins so.
_ALL_PARTS: Final = "ringserve-.service"
_DROP_IN: Final = re.compile(r"^(Environment|LoadCredential)=(.*)$", re.MULTILINE)
_SYSUSERS: Final = "ringserve.sysusers"
_PARTS: Final = (
    TARGET,
    "ringserve-run.service",
    "ringserve-broker.socket",
    "ringserve-broker.service",
    "ringserve-workers.service",
    "ringserve-admin.socket",
    "ringserve-frontend@.service",
)
#: What needs root's systemd: the manager of a user can neither change users nor hide the host's files.
_NOT_FOR_USERS: Final = re.compile(
    r"(User|DynamicUser|SocketUser|Protect\w+|Private\w+|ReadWritePaths|CapabilityBoundingSet|AmbientCapabilities|"
    r"RemoveIPC|RestrictNamespaces|OOMPolicy)=|(After|Wants)=network-online\.target$"
)


class Places(NamedTuple):
    """Where files go. root: in front of all of them; it does not stand in what is written."""

    units: Path
    config: Path
    sysusers: Path | None
    root: Path = Path("/")

    def under_root(self, path: Path) -> Path:
        return self.root / path.relative_to("/")


def places(*, user: bool, root: Path) -> Places:
    """The folders of root's systemd, or of this user's."""
    if user:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return Places(home / "systemd/user", home / "ringserve/server.toml", None, root)
    return Places(
        Path("/etc/systemd/system"), Path(_CONFIG), Path("/etc/sysusers.d/ringserve.conf"), root
    )  # fmt: skip


def server_toml(models: Mapping[str, str]) -> str:
    """The configuration to begin with."""
    lines = ["# Every setting: `ringserve config show`. What is wrong here: `ringserve config check --config FILE`."]
    for name, path in models.items():
        lines += ["", "[[models]]", f"name = {json.dumps(name)}", f"base_path = {json.dumps(path)}"]
    return "\n".join(lines) + "\n"


def unit_files(where: Places, server: Server, *, split: bool, user: bool) -> dict[Path, str]:
    """The units, by where they go. Ports are those of `server`; one that is off has no socket."""
    grpc, rest = server.port >= 0, server.rest_api_port > 0
    sockets = [name for name, on in ((GRPC_SOCKET, grpc), (REST_SOCKET, rest)) if on]
    names = [_SLICE, *sockets, STANDBY, *(_PARTS if split else (SERVICE,))]
    host = f"[{server.host}]" if ":" in server.host else server.host
    texts = {}
    for name in names:
        text = _shipped(name).replace(_COMMAND, command()).replace(_CONFIG, str(where.config))
        text = text.replace("0.0.0.0:8500", f"{host}:{server.port}").replace(
            "0.0.0.0:8501", f"{host}:{server.rest_api_port}"
        )
        for socket, on in ((GRPC_SOCKET, grpc), (REST_SOCKET, rest)):
            if not on:
                text = re.sub(rf" ?\b{re.escape(socket)}\b", "", text)
        text = re.sub(r"(?m)^(Sockets|Requires|Wants|After)=\n", "", text)
        if not split:
            text = text.replace("Service=ringserve-frontend@0.service", f"Service={SERVICE}")
        texts[where.units / name] = for_user(text) if user else text
    if split and where.sysusers is not None:
        texts[where.sysusers] = _shipped(_SYSUSERS)
    return texts


def environment(where: Places, *, split: bool) -> dict[str, str]:
    """Settings that the host's own drop-ins give the service that opens the ports, as its environment. Files that will
    be its credentials are named where they are now."""
    found: dict[str, str] = {}
    credentials: dict[str, str] = {}
    for folder in (_ALL_PARTS, FRONTEND.format("")) if split else (SERVICE,):
        for path in sorted(where.under_root(where.units / f"{folder}.d").glob("*.conf")):
            for key, line in _DROP_IN.findall(path.read_text(encoding="utf-8", errors="replace")):
                if key == "Environment":
                    pairs = (word.partition("=") for word in shlex.split(line))
                    found.update({name: value for name, _, value in pairs if name.startswith("RINGSERVE_")})
                else:
                    name, _, source = line.partition(":")
                    credentials[f"%d/{name}"] = source
    return {name: credentials.get(value, value) for name, value in found.items()}


def for_user(text: str) -> str:
    """The unit for the manager of a user."""
    lines = [line for line in text.splitlines(keepends=True) if not _NOT_FOR_USERS.match(line.strip())]
    return "".join(lines).replace("WantedBy=multi-user.target", "WantedBy=default.target")


def all_paths(where: Places) -> list[Path]:
    """Every file that an installation of either form may have written, server.toml excepted."""
    names = [_SLICE, GRPC_SOCKET, REST_SOCKET, STANDBY, SERVICE, *_PARTS]
    return [where.units / name for name in names] + ([where.sysusers] if where.sysusers else [])


def command() -> str:
    """What starts this installation's `ringserve`."""
    script = Path(sys.executable).with_name("ringserve")
    return str(script) if script.exists() else f"{sys.executable} -m ringserve"


def _shipped(name: str) -> str:
    return (resources.files("ringserve") / "units" / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- hashes


def marked(text: str) -> str:
    """With its hash in front."""
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_edited(path: Path) -> bool:
    """Whether the file is there and is not as it was written."""
    try:
        found = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    head, _, text = found.partition("\n")
    return head != marked(text).partition("\n")[0]
