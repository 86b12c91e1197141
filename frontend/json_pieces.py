"""A large JSON text read by the parser in C, piece by piece.

That parser lets no other thread run until it is done, which is seconds for a hundred megabytes of short values. So it
is given pieces, cut at commas, with the brackets of the container that the piece lies in around them. A piece that is
read this way was cut rightly: it begins where a value or a key of its container does, so had it been cut within a
string or another container, its brackets would not close. Where no cut is found the container at hand is opened by
itself.

Whatever is not strict JSON, or is cut too seldom, is refused, and the caller goes another way.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

#: Some milliseconds of the parser's time, whatever is in it.
PIECE_BYTES: Final = 131_072

#: How an element may end. Where a comma follows, a text is cut.
_ENDS: Final = (b"}", b"]", b'"', b"", b"]]", b"}}", b"]}", b"}]", b'"}', b'"]')
#: So many of the last ones in a piece are looked at for a comma, and so many more quotes are passed over that stand
#: within a string: texts of JSON or of speech, sent as strings, are full of them.
_ENDS_AT_ONCE: Final = 8
_QUOTES_MAX: Final = 2_048
_BACKSLASH: Final = 0x5C
_QUOTE: Final = 0x22
_COMMA: Final = re.compile(rb"[ \n\r\t]*+,")
_SPACE: Final = re.compile(rb"[ \n\r\t]*+")
_SCALAR: Final = re.compile(rb"[^ \n\r\t,:\[\]{}\"]++")
#: What may stand in a string, and how much of one is matched in one go: the pattern remembers each backslash.
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)
_INSIDE_BYTES: Final = 65_536
_DEPTH_MAX: Final = 32
#: Attempts that may fail, and steps that may be taken: so many, and so many for each piece's bytes.
_FAILURES_MAX: Final = 64, 2
_STEPS_MAX: Final = 1_024, 16

_Text = bytes | bytearray


class CutError(ValueError):
    """The text cannot be read in pieces; perhaps it can be read whole."""


def read_in_pieces(text: _Text) -> Any:
    """The array or object that `text` begins with, as the parser would make it of the whole text.

    Raises CutError or orjson.JSONDecodeError, of which nothing follows for the whole text.
    """
    return _Pieces(text).read()


#: All bytes but brackets.
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _closings(piece: _Text) -> bytes:
    """The brackets that close a list of which this is a part, and the lists in it that are open at the end."""
    left = piece.translate(None, _NO_BRACKETS)
    for _ in range(_DEPTH_MAX):
        before = len(left)
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if len(left) == before:
            break
    # Of equal keys in an object the last one counts, and need not be its last: it is not known which member is open.
    return b"]" * (len(left) + 1) if len(left) < _DEPTH_MAX and not left.strip(b"[") else b"]"


class _Pieces:
    """State of one reading. position: where the next element of the innermost open container begins, behind blanks.
    is_first: there may be none."""

    def __init__(self, text: _Text) -> None:
        self._text = text
        self._position = 0
        self._is_first = True
        self._open: list[list[Any] | dict[str, Any]] = []
        self._end = 0  # which of _ENDS went well the last time
        pieces = len(text) // PIECE_BYTES
        self._failures_left = _FAILURES_MAX[0] + _FAILURES_MAX[1] * pieces
        self._steps_left = _STEPS_MAX[0] + _STEPS_MAX[1] * pieces

    def read(self) -> Any:
        """The value."""
        self._skip_blanks()
        self._open.append(self._opened())
        value = self._open[0]
        while self._open:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise CutError
            if not self._take_piece():
                self._take_element()
        return value

    def _skip_blanks(self) -> int:
        """The byte behind them; 0 at the end."""
        position = self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
        return self._text[position] if position < len(self._text) else 0

    def _opened(self) -> list[Any] | dict[str, Any]:
        """A container for the bracket here."""
        byte = self._text[self._position : self._position + 1]
        if byte not in (b"[", b"{") or len(self._open) == _DEPTH_MAX:
            raise CutError
        self._position += 1
        self._is_first = True
        return [] if byte == b"[" else {}

    def _take_piece(self) -> bool:
        """As many elements as one piece holds."""
        text, start = self._text, self._position
        stop = start + PIECE_BYTES
        if stop >= len(text) and self._parsed(text[start:], b"", len(text)):
            return True
        brackets = b"]" if type(self._open[-1]) is list else b"}"
        tried: list[int] = []
        for turn in range(len(_ENDS)):
            index = (self._end + turn) % len(_ENDS)
            cut = self._cut(_ENDS[index], stop)
            if cut < 0 or cut in tried:
                continue
            tried.append(cut)
            piece = text[start:cut]
            closing = _closings(piece) if brackets == b"]" else brackets
            if self._parsed(piece, closing, cut + 1):
                self._end = index
                return True
        return False

    def _cut(self, end: bytes, stop: int) -> int:
        """Where a comma stands behind this, before `stop`; -1 for nowhere."""
        text, start = self._text, self._position
        if not end:
            return text.rfind(b",", start, stop)
        place = stop
        looks_left = _ENDS_AT_ONCE
        for _ in range(_QUOTES_MAX):
            place = text.rfind(end, start, place)
            if place < 0 or not looks_left:
                break
            if end[0] == _QUOTE and text[place - 1] == _BACKSLASH:
                continue
            looks_left -= 1
            comma = _COMMA.match(text, place + len(end), stop)
            if comma is not None:
                return comma.end() - 1
        return -1

    def _parsed(self, piece: _Text, closing: bytes, behind: int) -> bool:
        """Whether this is a part of the innermost container, or its end with something behind it.

        closing: of more than one bracket where it ends within lists in a list, which go on behind it.
        """
        here = self._open[-1]
        is_list = type(here) is list
        document = b"".join((b"[" if is_list else b"{", piece, closing))
        try:
            part = orjson.loads(document)
        except orjson.JSONDecodeError as error:
            if not error.msg.startswith("unexpected content"):
                self._failures_left -= 1
                if self._failures_left < 0:
                    raise CutError from None
                return False
            end = error.pos  # in characters
            document = document[:end] if document.isascii() else document.decode()[:end].encode()
            part = orjson.loads(document)
            closing = closing[: max(len(document) - 1 - len(piece), 0)]  # brackets in strings are none
            behind = behind if closing else self._position + len(document) - 1
        is_empty_end = not part and not closing and self._is_first
        if not part and not is_empty_end:
            raise CutError  # a comma with nothing before or behind it
        if is_list:
            here += part
        else:
            here.update(part)  # type: ignore[union-attr]
        self._position = behind
        self._is_first = False
        for _ in closing[1:]:
            part = part[-1]
            self._open.append(part)
        if not (part or is_empty_end) or len(self._open) > _DEPTH_MAX:
            raise CutError
        if not closing:
            self._open.pop()
            self._go_on()
        return True

    def _go_on(self) -> None:
        """Behind a value, or in an empty container: to the next value, or out of the containers that end here."""
        while self._open:
            byte = self._skip_blanks()
            self._position += 1
            if byte == 0x2C:
                self._is_first = False
                return
            if byte != (0x5D if type(self._open[-1]) is list else 0x7D):
                raise CutError
            self._open.pop()

    def _take_element(self) -> None:
        """One element by itself; of a container only its beginning."""
        here = self._open[-1]
        key = None
        byte = self._skip_blanks()
        if self._is_first and byte == (0x5D if type(here) is list else 0x7D):
            self._go_on()
            return
        if type(here) is dict:
            key = self._string()
            if self._skip_blanks() != 0x3A:
                raise CutError
            self._position += 1
            byte = self._skip_blanks()
        value: Any
        if byte in b"[{":
            value = self._opened()
        elif byte == _QUOTE:
            value = self._string()
        else:
            found = _SCALAR.match(self._text, self._position)
            if found is None:
                raise CutError
            value = orjson.loads(found[0])
            self._position = found.end()
        if key is None:
            here.append(value)  # type: ignore[union-attr]
        else:
            here[key] = value  # type: ignore[call-overload]
        if byte in b"[{":
            self._open.append(value)
        else:
            self._go_on()

    def _string(self) -> str:
        """The string that begins here."""
        text, start = self._text, self._position
        if text[start : start + 1] != b'"':
            raise CutError
        end, behind = start, start + 1
        while end != behind:
            end = behind
            behind = _INSIDE.match(text, end, end + _INSIDE_BYTES).end()  # type: ignore[union-attr]
        if text[end : end + 1] != b'"':
            raise CutError
        self._position = end + 1
        value: str = orjson.loads(text[start : end + 1])
        return value
