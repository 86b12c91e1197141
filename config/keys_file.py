"""The file of keys: who may ask for what, as `ringserve keys` writes it and operators edit it.

    [[keys]]
    name = "team-a"
    sha256 = "9f86d081..."                  # of the token, which is not kept anywhere
    scopes = ["predict:digits*", "status"]
    requests_per_s = 100.0                  # optional, with a burst
    burst = 200

    [[keys]]
    name = "batch-job"
    certificate = "dns:batch.example"       # or uri:, email:, ip:, cn: of a client's verified certificate
    scopes = ["predict"]

A token is 256 random bits: nobody finds one by trying, however fast its hash is made, so a slow hash (which is for
passwords, of which people choose the same few) would cost time at every request and protect nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import tomllib
from typing import Any, Final, NamedTuple

from ringserve.config.regular_file import regular_only

_TOKEN_BYTES: Final = 32
_TOKEN_PREFIX: Final = "rs_"
_KEYS: Final = frozenset(("name", "sha256", "certificate", "scopes", "requests_per_s", "burst"))
_CERTIFICATE_KINDS: Final = ("dns:", "uri:", "email:", "ip:", "cn:")

#: Places for the rates of keys, in memory that all frontends share (`frontend.access.Access`).
RATE_SLOTS: Final = 65_536

PREDICT: Final = "predict"
STATUS: Final = "status"
ADMIN: Final = "admin"


class KeysError(Exception):
    """A file of keys, or a scope, that cannot be used. The text says where and why."""


class Scopes(NamedTuple):
    """What a key may ask for. predict: globs (`*`, `?`, `[...]`) of models' names. admin includes status."""

    predict: tuple[str, ...] = ()
    status: bool = False
    admin: bool = False


class Entry(NamedTuple):
    """One key. digest: the SHA-256 of its token, or b"". certificate: whose it is instead, or "".

    requests_per_s: 0 for no limit. burst: requests that may come at once.
    """

    name: str
    digest: bytes
    certificate: str
    scopes: Scopes
    requests_per_s: float = 0.0
    burst: int = 1


def digest_of(token: bytes) -> bytes:
    """What of a token is kept."""
    return hashlib.sha256(token).digest()


def new_token() -> str:
    """256 random bits as text; the prefix lets scanners of leaked secrets know it."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def parse_scopes(words: list[str]) -> Scopes:
    """`predict` (all models), `predict:GLOB`, `status`, `admin`. Raises KeysError."""
    globs, status, admin = [], False, False
    for word in words:
        kind, colon, glob = word.strip().partition(":")
        if kind == PREDICT and (glob or not colon):
            globs.append(glob or "*")
        elif kind == STATUS and not colon:
            status = True
        elif kind == ADMIN and not colon:
            admin = True
        else:
            raise KeysError(f"{word!r} is no scope: predict, predict:GLOB, status or admin")
    return Scopes(tuple(globs), status or admin, admin)


def parse_anonymous(text: str) -> Scopes:
    """The setting `anonymous`: scopes with commas between them, or nothing. Raises KeysError."""
    return parse_scopes([word for word in text.split(",") if word.strip()])


def read_keys(path: str) -> tuple[Entry, ...]:
    """The keys in that file. Raises KeysError, which names every mistake's place."""
    try:
        with open(path, "rb", opener=regular_only) as file:
            return parse_keys(file.read().decode(), path)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path} is no text in UTF-8") from error


def parse_keys(text: str, path: str) -> tuple[Entry, ...]:
    """As `read_keys`; path: for messages."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number that is too long, nesting that is too deep, too
        raise KeysError(f"{path}: not a TOML file: {error}") from error
    tables = data.pop("keys", [])
    if data:
        raise KeysError(f"{path}: {next(iter(data))!r} is nothing that belongs here: only [[keys]] does")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise KeysError(f"{path}: keys must be tables: [[keys]]")
    entries = tuple(_entry(table, f"{path}: key {number}") for number, table in enumerate(tables, start=1))
    for what, values in (
        ("name", [entry.name for entry in entries]),
        ("sha256", [entry.digest.hex() for entry in entries if entry.digest]),
        ("certificate", [entry.certificate for entry in entries if entry.certificate]),
    ):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise KeysError(f"{path}: two keys have the {what} {twice!r}")
    return entries


def _entry(table: dict[str, Any], place: str) -> Entry:
    unknown = sorted(table.keys() - _KEYS)
    if unknown:
        raise KeysError(f"{place}: {unknown[0]!r} is nothing that belongs here")
    name = table.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise KeysError(f"{place} has no name")
    place = f"{place} ({name})"
    digest, certificate = table.get("sha256", ""), table.get("certificate", "")
    if bool(digest) == bool(certificate):
        raise KeysError(f"{place} must have either a sha256 (of its token) or a certificate")
    if certificate and not (isinstance(certificate, str) and certificate.startswith(_CERTIFICATE_KINDS)):
        raise KeysError(f"{place}: certificate must begin with one of {' '.join(_CERTIFICATE_KINDS)}")
    scopes = table.get("scopes")
    if not isinstance(scopes, list) or not scopes or not all(isinstance(scope, str) for scope in scopes):
        raise KeysError(f"{place}: scopes must be a list such as ['predict:digits*', 'status']")
    try:
        parsed = parse_scopes(scopes)
    except KeysError as error:
        raise KeysError(f"{place}: {error}") from error
    rate = table.get("requests_per_s", 0.0)
    if "burst" in table and "requests_per_s" not in table:
        raise KeysError(f"{place}: burst without requests_per_s limits nothing")
    if not _is_number(rate) or not 0 <= rate <= 1e9 or ("requests_per_s" in table and rate == 0):
        raise KeysError(f"{place}: requests_per_s must be a number above 0")
    burst = table.get("burst", max(1, round(rate)))
    if type(burst) is not int or not 1 <= burst <= 1_000_000_000:
        raise KeysError(f"{place}: burst must be a whole number from 1 on")
    return Entry(name, _digest(digest, place), certificate, parsed, float(rate), burst)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _digest(value: Any, place: str) -> bytes:
    if not value:
        return b""
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise KeysError(f"{place}: sha256 must be 64 hexadecimal digits")
    return digest


def written(name: str, token: str, scopes: list[str], requests_per_s: float = 0.0, burst: int = 0) -> str:
    """A new key as it stands in the file: its token's hash, not the token. Raises KeysError."""
    lines = ["", "[[keys]]", f"name = {_quoted(name)}", f'sha256 = "{digest_of(token.encode()).hex()}"']
    lines.append(f"scopes = [{', '.join(map(_quoted, scopes))}]")
    if requests_per_s:
        lines.append(f"requests_per_s = {requests_per_s!r}")
    if burst:
        lines.append(f"burst = {burst}")
    text = "\n".join(lines) + "\n"
    parse_keys(text, "the new key")
    return text


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise KeysError(f"{text!r} has characters that cannot be printed")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
