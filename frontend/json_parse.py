"""A request body as a JSON object: strict JSON by orjson (large ones in pieces), the rest by `json_exact`."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from ringserve.frontend.json_exact import JsonError, parse
from ringserve.frontend.json_pieces import CutError, read_in_pieces
from ringserve.frontend.json_text import quoted

__all__ = ["JsonError", "SlowError", "parse_object"]

#: Bodies from here on are bounded in the containers that they hold, and read in pieces.
_LARGE_BYTES_MIN: Final = 2**20

#: Arrays and objects that a large body may hold; each takes 60 bytes and more, however few it is written with.
CONTAINERS_MAX: Final = 8_000_000

#: The search for keys that are written twice looks through the body once for each name. For many names in a large body
#: it would take longer than the exact parser.
_SEARCHED_NAMES: Final = 16
_SEARCHED_BYTES_MAX: Final = 512 * 2**20

#: The end of a name that is written with escapes, as any letter may be: from the last escape to the colon.
_ESCAPED_NAME: Final = re.compile(rb'\\(?:u[0-9a-fA-F]{4}|/)[^"\\]*+"[ \n\r\t]*+:')
#: Such names are searched for in so much of a body at once, while no other thread runs, and not if they are longer.
#: However many there are: each takes a microsecond, and the exact parser as long for each of its bytes.
_STRETCH_BYTES: Final = 65_536
_NAME_BYTES_MAX: Final = 4_096

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_Text = bytes | bytearray


class SlowError(Exception):
    """Only the exact parser can tell, and the caller is in a hurry."""


def parse_object(body: _Text, *, hurry: bool = False) -> dict[str, Any]:
    """The JSON object at the start of `body`: scalars, lists, dicts.

    Of equal keys at the top level, and in the object of `inputs`, the first one counts. Raises JsonError with TF
    Serving's text. hurry: raise SlowError rather than begin what takes a second per megabyte.
    """
    if not body:
        raise JsonError("JSON Parse error: The document is empty")
    if len(body) >= _LARGE_BYTES_MIN and body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
        raise JsonError(f"JSON Parse error: more than {CONTAINERS_MAX} arrays and objects")
    value = _read(body, hurry)
    if type(value) is not dict:
        raise JsonError(f"JSON Value: {quoted(value)} Is not object")
    # orjson keeps the last of equal keys. Where a key may be written twice the exact parser looks.
    members: dict[str, Any] = value
    inputs = members.get("inputs")
    names = [*_TOP_KEYS, *inputs] if isinstance(inputs, dict) else _TOP_KEYS
    is_long = len(names) > _SEARCHED_NAMES and len(names) * len(body) > _SEARCHED_BYTES_MAX
    if is_long or _is_any_twice(body, frozenset(names)):
        members = _parse_exactly(body, hurry)
    return members


_TOP_KEYS: Final = ("signature_name", "instances", "inputs", "examples", "context")


def _key_text(name: str) -> bytes:
    return b'"' + name.encode("utf-8", "surrogateescape") + b'"'


def _is_any_twice(body: _Text, names: frozenset[str]) -> bool:
    """Whether one of these keys may be in the body more than once, at whatever depth."""
    if any(name in body and body.count(name) > 1 for name in map(_key_text, names)):
        return True
    if b"\\u" not in body and b"\\/" not in body:
        return False
    seen: set[str] = set()
    for start in range(0, len(body), _STRETCH_BYTES):
        stop = start + _STRETCH_BYTES
        for match in _ESCAPED_NAME.finditer(body, start, stop + _NAME_BYTES_MAX):
            if match.start() >= stop:
                break  # the next stretch begins with it
            begin = body.rfind(b'"', max(match.start() - _NAME_BYTES_MAX, 0), match.start())
            name = _text_of(bytes(body[begin : match.end()]).rstrip(b": \n\r\t")) if begin >= 0 else ""
            if name in names:
                if name in seen or _key_text(name) in body:
                    return True
                seen.add(name)
    return False


def _text_of(text: bytes) -> str:
    """What a string is in JSON; empty for nothing."""
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:
        return ""


def _read(body: _Text, hurry: bool) -> Any:
    strict = body[len(_BYTE_ORDER_MARK) :] if body.startswith(_BYTE_ORDER_MARK) else body
    try:
        return read_in_pieces(strict) if len(strict) >= _LARGE_BYTES_MIN else orjson.loads(strict)
    except CutError:
        pass
    except orjson.JSONDecodeError as error:
        # The commonest departure from strict JSON is text behind the value; its position counts characters.
        is_small = len(strict) < _LARGE_BYTES_MIN
        if is_small and error.msg.startswith("unexpected content") and strict.isascii():
            try:
                return orjson.loads(strict[: error.pos])
            except orjson.JSONDecodeError:
                pass
    return _parse_exactly(body, hurry)


def _parse_exactly(body: _Text, hurry: bool) -> dict[str, Any]:
    if hurry:
        raise SlowError
    members: dict[str, Any] = parse(bytes(body))
    return members
