"""JSON text pieces: strings as RapidJSON escapes them, the error body, and values as error texts quote them."""

from __future__ import annotations

import re
from array import array
from typing import Any, Final

from ringserve.frontend.json_numbers import number_text

#: Longer texts of errors are cut. They may quote a name, which a client makes as long as a body may be.
ERROR_CHARS_MAX: Final = 16_384
#: In longer strings characters are escaped one kind after the other, in C code.
_ONE_BY_ONE_CHARS_MAX: Final = 512

#: Bytes of a quoted value above which TF Serving stops writing it.
QUOTED_BYTES_MAX: Final = 256

_INDENT: Final = "    "
_FLOAT_MAX: Final = 3.4028234663852886e38
_ESCAPED: Final = re.compile(r'["\\\x00-\x1f]')
_ESCAPES: Final = {
    **{chr(code): f"\\u{code:04X}" for code in range(0x20)},
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
#: What the others are escaped with comes first.
_ESCAPES_IN_ORDER: Final = sorted(_ESCAPES.items(), key=lambda each: each[0] != "\\")


def string_text(value: str) -> str:
    """A JSON string. Only quotes, backslashes and control characters are escaped."""
    if _ESCAPED.search(value) is not None:
        if len(value) <= _ONE_BY_ONE_CHARS_MAX:
            value = _ESCAPED.sub(lambda match: _ESCAPES[match.group()], value)
        else:
            for char, escape in _ESCAPES_IN_ORDER:
                value = value.replace(char, escape)
    return f'"{value}"'


def error_body(text: str) -> bytes:
    """The body of an answer that is an error."""
    if len(text) > ERROR_CHARS_MAX:
        text = f"{text[:ERROR_CHARS_MAX]}...TRUNCATED"
    return encode(f'{{\n{_INDENT}"error": {string_text(text)}\n}}')


def encode(text: str) -> bytes:
    """UTF-8. Bytes of the client or the model that were no UTF-8, kept as lone surrogates, go out as they came in."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """Inverse of `encode`."""
    return data.decode("utf-8", "surrogateescape")


def quoted(value: Any) -> str:
    """A parsed JSON value as error texts quote it: pretty-printed, arrays on one line, not much over 256 bytes.

    Writing stops behind the token that passes the limit, so neither size nor depth of the value costs anything.
    """
    pieces: list[str] = []
    size = 0
    # (iterator over what is left, closing bracket, what separates the next one) of every open container
    stack: list[tuple[Any, str, list[str]]] = []
    token = _open(value, stack)
    while True:
        pieces.append(token)
        size += len(token)
        if size > QUOTED_BYTES_MAX or not stack:
            break
        rest, closing, before = stack[-1]
        try:
            child = next(rest)
        except StopIteration:
            stack.pop()
            token = closing
            continue
        token = before[0]
        before[0] = before[1]
        if closing != "]":
            key, child = child
            token += f"{string_text(key[:QUOTED_BYTES_MAX])}: "
        token += _open(child, stack)
    return "".join(pieces)


def _open(value: Any, stack: list[tuple[Any, str, list[str]]]) -> str:
    """The text of a scalar, or the opening of a container, which is put on the stack."""
    if isinstance(value, list):
        if not value:
            return "[]"
        stack.append((iter(value), "]", ["", ", "]))
        return "["
    if isinstance(value, dict):
        if not value:
            return "{}"
        depth = len(stack)
        inner = "\n" + _INDENT * (depth + 1)
        stack.append((iter(value.items()), "\n" + _INDENT * depth + "}", [inner, "," + inner]))
        return "{"
    if isinstance(value, str):
        return string_text(value[:QUOTED_BYTES_MAX])
    if isinstance(value, float):
        single = abs(value) <= _FLOAT_MAX
        return number_text(array("f", (value,))[0] if single else value, single=single)
    return _CONSTANTS[value] if value is None or isinstance(value, bool) else str(value)


_CONSTANTS: Final = {None: "null", True: "true", False: "false"}


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type."""
    if isinstance(value, bool):
        return "True" if value else "False"
    if value is None:
        return "Null"
    if isinstance(value, dict):
        return "Object"
    if isinstance(value, list):
        return "Array"
    return "String" if isinstance(value, str) else "Number"
