"""What each process gives up when it begins: all that it could be given and does not need.

Every process of a server runs as the same user. So this holds back somebody who has found a hole in one of them from
what another user, the system or an operator gave it; it does not keep two of them apart (docs/security.md).
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import struct
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
#: Nothing of ours is for others; the UNIX sockets that are get their modes by name.
_UMASK: Final = 0o077
#: Environment variables that hold secrets, by how people call them.
_SECRET: Final = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(PRIVATE|ACCESS|API)_?KEY", re.IGNORECASE)
#: Who opens ports, which may need CAP_NET_BIND_SERVICE.
_OPENERS: Final = ("supervisor", "frontend")
#: Whose models may lie where only secrets lead to.
_LOADERS: Final = ("supervisor", "pool")


def settle(name: str) -> None:
    """Give up what the process of that name (`frontend-0`) does not need. Once, before it starts a thread.

    From here on no program that it starts gains rights by its file's owner or capabilities. Capabilities go where they
    are not needed for low ports; root keeps them, as without them it is no root to its own files. A frontend holds the
    server's private key and clients' tokens: it leaves no core dump.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(_UMASK)
    role = name.partition("-")[0]
    if role == "frontend":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid():
        if role not in _OPENERS:
            libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    elif role == "supervisor":
        log.warning("RUNNING AS ROOT: a model is a program, and would run as root; use a user of the server's own")


def environment(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment to start the process of that name with: without secrets, unless it may need them for models."""
    keeps = name.partition("-")[0] in _LOADERS
    return {key: value for key, value in environ.items() if keeps or not _SECRET.search(key)}
