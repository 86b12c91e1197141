"""The names in a client's certificate, in the one form that both gRPC engines, REST and the file of keys use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_KINDS: Final = {"DNS": "dns", "URI": "uri", "email": "email", "IP Address": "ip"}


def names_of(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """`dns:client.example`, `uri:spiffe://...`, `email:...`, `ip:...`, `cn:...` of a certificate as `ssl` tells it.

    It tells only those of verified certificates. The subject's common name comes last; of several none counts, because
    nothing says which of them its authority has looked at.
    """
    if not certificate:
        return ()
    found = [f"{_KINDS[kind]}:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind in _KINDS]
    common = [name for part in certificate.get("subject", ()) for kind, name in part if kind == "commonName"]
    if len(common) == 1:
        found.append(f"cn:{common[0]}")
    return tuple(found)
