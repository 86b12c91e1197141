"""From when until when a certificate is valid, which Python's `ssl` does not tell of one that is our own."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from typing import Final, NamedTuple

_FIRST: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

# ASN.1 tags in DER.
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17


class Validity(NamedTuple):
    """Seconds since 1970 began; both ends belong to it."""

    begin_s: float
    end_s: float


def validity(pem: str) -> Validity | None:
    """Of the first certificate in a PEM text; None when there is none that can be read."""
    found = _FIRST.search(pem)
    if found is None:
        return None
    try:
        return _of_der(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ValueError, IndexError):
        return None


def _of_der(der: bytes) -> Validity:
    """Certificate -> tbsCertificate -> version (optional), serial, signature, issuer, validity (RFC 5280 4.1)."""
    at = _element(der, _element(der, 0)[1])[1]
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _ in range(3):
        at = _element(der, at)[2]
    begin = _element(der, at)[1]
    end = _element(der, begin)[2]
    return Validity(_time(der, begin), _time(der, end))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the element at `at`, where its content begins, and where it ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return der[at], start, start + length


def _time(der: bytes, at: int) -> float:
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
