"""Certificates for tests of TLS, made by openssl: an authority, the server and client that it signed, a stranger."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

HAS_OPENSSL = shutil.which("openssl") is not None

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
#: Clients from Python 3.13 on take no authority that does not say what it is for (RFC 5280 4.2.1.3).
_AUTHORITY = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
#: openssl's own configuration makes an authority of everybody.
_NO_AUTHORITY = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", _NAMES)


class Pair(NamedTuple):
    """A private key and its certificate, PEM texts."""

    key: str
    cert: str


class Certificates(NamedTuple):
    """server, client: signed by `authority`; stranger: by itself."""

    authority: Pair
    server: Pair
    client: Pair
    stranger: Pair


@cache
def certificates() -> Certificates:
    """Made once for a test session."""
    with TemporaryDirectory() as folder:
        authority = _make(Path(folder), "authority", *_AUTHORITY)
        signed = ("-CA", "authority.pem", "-CAkey", "authority.key", *_NO_AUTHORITY)
        server, client = (_make(Path(folder), name, *signed) for name in ("server", "client"))
        return Certificates(authority, server, client, _make(Path(folder), "stranger", "-addext", _NAMES))


def _make(folder: Path, name: str, *options: str) -> Pair:
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    files = ("-keyout", str(key), "-out", str(cert))
    command = ["openssl", "req", "-x509", *_KEY, *files, "-subj", f"/CN={name}", *options]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return Pair(key.read_text(), cert.read_text())
