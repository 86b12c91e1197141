"""TF Serving's JSON dialect (RapidJSON's iterative parser, NaN and infinity allowed), to the letter and to any depth.

Slower than a strict parser in C by one or two orders of magnitude: it reads what such a parser refuses (tokens like
`NaN`, nesting deeper than its limit, strings that are no UTF-8) and finds the error text of what nobody can read.

Nothing here recurses and nothing goes back more than once over any byte. Containers nested deeper than `DEPTH_BUILT`
are checked but not built: no tensor has so many axes, and their lists would cost a hundred bytes for every byte sent.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from ringserve.frontend.json_text import decode

#: Levels of nesting whose values are kept. More than any tensor's rank, and more than an error text shows.
DEPTH_BUILT: Final = 512

#: Tokens read one by one before the text is refused: a few seconds of work, and enough for 2 million small arrays.
STEPS_MAX: Final = 2_000_000


class JsonError(Exception):
    """The text is not JSON. `text` is what the client sees."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _error(reason: str, offset: int) -> JsonError:
    return JsonError(f"JSON Parse error: {reason} at offset: {offset}")


_EMPTY: Final = "The document is empty."
_INVALID: Final = "Invalid value."
_NO_NAME: Final = "Missing a name for object member."
_NO_COLON: Final = "Missing a colon after a name of object member."
_NO_COMMA_IN_OBJECT: Final = "Missing a comma or } after an object member."
_NO_COMMA_IN_ARRAY: Final = "Missing a comma or ] after an array element."

_SPACE: Final = re.compile(rb"[ \n\r\t]*+")
# No possessive groups: before Python 3.11.5 one that fails half-way does not give back what it took (gh-106052).
_NUMBER: Final = re.compile(rb"-?+(?:(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][+-]?+[0-9]++)?|(NaN|Inf(?:inity)?))")
_PLAIN_STRING: Final = re.compile(rb'"([^"\\\x00-\x1f]*+)"')
_STRING_PART: Final = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*')
#: So much of a string is matched in one go: the pattern remembers each backslash.
_STRING_BYTES: Final = 65_536
_OPENINGS: Final = re.compile(rb"\[(?:[ \n\r\t]*+\[)*+")
_CLOSINGS: Final = re.compile(rb"\](?:[ \n\r\t]*+\])*+")
#: What follows the bracket of an array that holds numbers only.
_FLAT: Final = re.compile(rb"[-+.0-9eE, \n\r\t]*+(?=\])")
_FLAT_SPECIAL: Final = re.compile(rb"[-+.0-9eENaInfity, \n\r\t]*+(?=\])")
_SPACES: Final = b" \n\r\t"
_ESCAPES: Final = {
    **{ord(char): char.encode() for char in '"\\/'},
    ord("b"): b"\b",
    ord("f"): b"\f",
    ord("n"): b"\n",
    ord("r"): b"\r",
    ord("t"): b"\t",
}
_LITERALS: Final[dict[int, tuple[bytes, Any]]] = {
    ord("n"): (b"null", None),
    ord("t"): (b"true", True),
    ord("f"): (b"false", False),
}
_HEX: Final = re.compile(rb"[0-9a-fA-F]{4}")

_ARRAY: Final = 0x5B
_OBJECT: Final = 0x7B


def parse(text: bytes) -> Any:
    """The first JSON value of `text`; what follows it is ignored. Of equal keys in an object the first one counts.

    Strings are str, with bytes that are no UTF-8 as lone surrogates. Integers beyond 64 bits are floats. Raises
    JsonError.
    """
    return _Parser(text).run()


class _Parser:
    """State of one parse. kinds: the kind of every open container; containers and keys: of those that are built."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._kinds = bytearray()
        self._containers: list[Any] = []
        self._keys: list[str] = []  # of open objects: the key whose value is being read

    def run(self) -> Any:
        text, kinds, containers = self._text, self._kinds, self._containers
        space = _SPACE.match
        end = len(text)
        # RapidJSON looks at each of the three bytes of a byte order mark by itself.
        position = 0
        for mark in (0xEF, 0xBB, 0xBF):
            position += position < end and text[position] == mark
        position = space(text, position).end()  # type: ignore[union-attr]
        byte = text[position] if position < end else 0
        if byte == 0 or byte in b",:]}":
            raise _error(_EMPTY, position)
        value: Any = None
        for _ in range(STEPS_MAX):
            # ---- a value begins at `position`; `byte` is its first
            opened = False
            if byte == _ARRAY:
                position, value, opened = self._open_arrays(position)
            elif byte == _OBJECT:
                kinds.append(_OBJECT)
                if len(kinds) <= DEPTH_BUILT:
                    containers.append({})
                    self._keys.append("")
                position += 1
                opened = True
            else:
                position, value = self._scalar(position, byte)
            # ---- behind a value, or inside a container just opened: what comes next
            while True:
                if not kinds:
                    return value
                position = space(text, position).end()  # type: ignore[union-attr]
                byte = text[position] if position < end else 0
                if opened:
                    opened = False
                    if kinds[-1] == _ARRAY:
                        if byte != 0x5D:
                            break
                    elif byte != 0x7D:
                        position = self._key(position, byte)
                        break
                else:
                    if len(kinds) <= DEPTH_BUILT:
                        self._keep(value)
                    if kinds[-1] == _ARRAY:
                        if byte == 0x2C:
                            position += 1
                            break
                        if byte != 0x5D:
                            raise _error(_NO_COMMA_IN_ARRAY, position)
                    elif byte == 0x2C:
                        position = space(text, position + 1).end()  # type: ignore[union-attr]
                        position = self._key(position, text[position] if position < end else 0)
                        break
                    elif byte != 0x7D:
                        raise _error(_NO_COMMA_IN_OBJECT, position)
                # the container closes; it is the value now
                if len(kinds) > DEPTH_BUILT:
                    position = self._close_deep(position)
                    value = None
                else:
                    kinds.pop()
                    value = containers.pop()
                    self._pop_key(value)
                    position += 1
            position = space(text, position).end()  # type: ignore[union-attr]
            byte = text[position] if position < end else 0
            if byte == 0 or byte in b",:]}":
                raise _error(_INVALID, position)
        raise JsonError(f"JSON Parse error: more than {STEPS_MAX} tokens of a text that is not strict JSON")

    # ------------------------------------------------------------------------------------------------- containers

    def _keep(self, value: Any) -> None:
        container = self._containers[-1]
        if container.__class__ is list:
            container.append(value)
        else:
            container.setdefault(self._keys[-1], value)

    def _pop_key(self, container: Any) -> None:
        if container.__class__ is dict:
            self._keys.pop()

    def _open_arrays(self, position: int) -> tuple[int, Any, bool]:
        """Enter all the arrays that open here, and read the innermost whole when it holds numbers only."""
        text = self._text
        match = _OPENINGS.match(text, position)
        assert match is not None
        count = match.group().count(b"[")
        position = match.end()
        numbers = self._numbers(position)
        if numbers is not None:
            count -= 1
        room = DEPTH_BUILT - len(self._kinds)
        self._kinds += b"[" * count
        self._containers.extend([] for _ in range(min(count, room)))
        if numbers is None:
            return position, None, True
        return numbers[0], numbers[1], False

    def _numbers(self, position: int) -> tuple[int, list[Any]] | None:
        """Where an array of numbers that begins here ends, and the numbers; None when it is anything else, or empty."""
        text = self._text
        match = _FLAT.match(text, position)
        try:
            if match is not None:
                values = orjson.loads(b"[" + match.group() + b"]")
            else:
                match = _FLAT_SPECIAL.match(text, position)
                if match is None:
                    return None
                values = [number(token.strip(_SPACES)) for token in match.group().split(b",")]
        except (ValueError, OverflowError):
            return None  # read it step by step: it will say what is wrong, and where
        return (match.end() + 1, values) if values else None

    def _close_deep(self, position: int) -> int:
        """Leave as many of the containers that are not built as close here."""
        kinds = self._kinds
        if kinds[-1] == _OBJECT:
            kinds.pop()
            return position + 1
        match = _CLOSINGS.match(self._text, position)
        assert match is not None
        run = match.group().count(b"]")
        count = min(run, len(kinds) - DEPTH_BUILT, len(kinds) - 1 - kinds.rfind(b"{"))
        del kinds[len(kinds) - count :]
        if count == run:
            return match.end()
        for _ in range(count):
            position = self._text.index(b"]", position) + 1
        return position

    def _key(self, position: int, byte: int) -> int:
        """Read `"name" :` at `position`; returns where its value may begin."""
        text = self._text
        if byte != 0x22:
            raise _error(_NO_NAME, position)
        position, key = self._string(position)
        if len(self._kinds) <= DEPTH_BUILT:
            self._keys[-1] = key
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if position >= len(text) or text[position] != 0x3A:
            raise _error(_NO_COLON, position)
        return position + 1

    # ---------------------------------------------------------------------------------------------------- scalars

    def _scalar(self, position: int, byte: int) -> tuple[int, Any]:
        if byte == 0x22:
            return self._string(position)
        text = self._text
        literal = _LITERALS.get(byte)
        if literal is not None:
            word, value = literal
            if text.startswith(word, position):
                return position + len(word), value
            raise _error(_INVALID, position + _common(word, text[position : position + len(word)]))
        match = _NUMBER.match(text, position)
        if match is None:
            position += byte == 0x2D
            word = text[position : position + 3]
            for special in (b"NaN", b"Inf"):
                if word[:1] == special[:1]:
                    position += _common(special, word)
            raise _error(_INVALID, position)
        stop = match.end()
        after = text[stop : stop + 1]
        if match[3] is not None:
            if match[3] == b"Inf" and after == b"i":
                raise _error(_INVALID, stop + _common(b"inity", text[stop : stop + 5]))
        elif after == b"." and match[1] is None and match[2] is None:
            raise _error("Miss fraction part in number.", stop + 1)
        elif after in (b"e", b"E") and match[2] is None:
            raise _error("Miss exponent in number.", stop + 1 + (text[stop + 1 : stop + 2] in (b"+", b"-")))
        try:
            return stop, number(match.group())
        except OverflowError:
            raise _error("Number too big to be stored in double.", position) from None

    def _string(self, position: int) -> tuple[int, str]:
        """The string that begins at `position`, and where it ends."""
        text = self._text
        match = _PLAIN_STRING.match(text, position)
        if match is not None:
            return match.end(), decode(match[1])
        parts: list[bytes] = []
        position += 1
        while True:
            stop = position + _STRING_BYTES
            match = _STRING_PART.match(text, position, stop)
            assert match is not None
            parts.append(_unescaped(match.group()))
            position = match.end()
            if position == stop:
                continue
            byte = text[position] if position < len(text) else 0
            if byte == 0x22:
                return position + 1, decode(b"".join(parts))
            if byte == 0:
                raise _error("Missing a closing quotation mark in string.", position)
            if byte != 0x5C:
                raise _error("Invalid encoding in string.", position)
            escape = text[position + 1] if position + 1 < len(text) else 0
            plain = _ESCAPES.get(escape)
            if plain is not None:
                parts.append(plain)
                position += 2
            elif escape == 0x75:
                position, char = self._unicode(position)
                parts.append(char)
            else:
                raise _error("Invalid escape character in string.", position)

    def _unicode(self, start: int) -> tuple[int, bytes]:
        """The character written as `\\uXXXX` or a pair of them at `start`."""
        text = self._text
        point = self._hex(start + 2, start)
        position = start + 6
        if 0xD800 <= point <= 0xDFFF:
            low = 0
            if point <= 0xDBFF and text[position : position + 2] == b"\\u":
                low = self._hex(position + 2, start)
            if not 0xDC00 <= low <= 0xDFFF:
                raise _error("The surrogate pair in string is invalid.", start)
            point = ((point - 0xD800) << 10) + (low - 0xDC00) + 0x10000
            position += 6
        return position, chr(point).encode()

    def _hex(self, position: int, start: int) -> int:
        match = _HEX.match(self._text, position)
        if match is None:
            raise _error("Incorrect hex digit after \\u escape in string.", start)
        return int(match.group(), 16)


def number(token: bytes) -> Any:
    """The value of a number token. Raises ValueError when it is none, OverflowError beyond the range of a double."""
    match = _NUMBER.fullmatch(token)
    if match is None:
        raise ValueError("not a number")
    if match[3] is not None:
        return float(token)
    if match[1] is None and match[2] is None and len(token) <= 20:
        integer = int(token)
        if -(2**63) <= integer < 2**64:
            return integer
    value = float(token)
    if value - value != 0.0:
        raise OverflowError("too big for a double")
    return value


def _unescaped(part: bytes) -> bytes:
    """Text of a string without escapes but those by number."""
    if b"\\" in part:
        part = part.replace(b"\\\\", b"\0")  # which stands in no string
        for char, plain in _ESCAPES.items():
            part = part.replace(b"\\%c" % char, plain)
        part = part.replace(b"\0", b"\\")
    return part


def _common(word: bytes, text: bytes) -> int:
    """How many leading bytes of two texts are the same."""
    count = 0
    for ours, theirs in zip(word, text, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
