"""Which calls the access log has, and how a line of it looks. Pure: time and chance are arguments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, Final

import orjson

from ringserve.broker.messages import Code
from ringserve.config.access_log import AccessLog, codes_of
from ringserve.config.process import timestamp
from ringserve.frontend.console_failures import shown_text
from ringserve.frontend.passing import GONE
from ringserve.frontend.status import HTTP_STATUS, code_name, http_status

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
#: An end below this is a gRPC code, or GONE; else an HTTP status.
_HTTP_STATUS_MIN: Final = 100
#: Of statuses that stand for several codes, the commonest.
_COMMONEST: Final = {400: Code.INVALID_ARGUMENT, 500: Code.INTERNAL, 409: Code.ABORTED}
_CODES: Final = {status: code for code, status in HTTP_STATUS.items()} | _COMMONEST
_TEXT_CHARS_MAX: Final = 256
#: What stands in a text line without quotes: one printable ASCII word without =, " and \.
_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]+")


def code_of(end: int) -> Code:
    """The code that an end stands for: a gRPC code, an HTTP status, or GONE."""
    if end == GONE:
        return Code.CANCELLED
    if end >= _HTTP_STATUS_MIN:
        if end < 400:
            return Code.OK
        return _CODES.get(end, Code.INVALID_ARGUMENT if end < 500 else Code.INTERNAL)
    try:
        return Code(end)
    except ValueError:
        return Code.UNKNOWN


class Choice:
    """Chooses. chance: the next number from 0 to 1, as `random.random`.

    dropped: lines beyond the rate since somebody last set it to 0, of failures and of others.
    """

    def __init__(self, settings: AccessLog, chance: Callable[[], float]) -> None:
        codes = {Code[name] for name in codes_of(settings.failures)}
        #: Ends that are always written. A status may stand for several codes: for one of them is enough.
        self._always = {int(code) for code in codes} | {http_status(code) for code in codes}
        self._codes = codes
        self._share = settings.share
        self._slow_ns = settings.slow_ms * _NS_PER_MS
        self._lines_max = settings.lines_per_s_max
        self._chance = chance
        self._since_ns = 0
        self._lines = [0, 0]
        self.dropped = [0, 0]

    def takes(self, end: int, took_ns: int, now_ns: int) -> bool:
        """Whether a call that has ended so, after so long, is written."""
        is_ok = end == 0 or _HTTP_STATUS_MIN <= end < 400
        if not (
            (not is_ok and (end in self._always or code_of(end) in self._codes))
            or 0 < self._slow_ns <= took_ns
            or self._chance() < self._share
        ):
            return False
        if now_ns - self._since_ns >= _NS_PER_S:
            self._since_ns = now_ns
            self._lines = [0, 0]
        kind = int(is_ok)
        if self._lines[kind] >= self._lines_max:
            self.dropped[kind] += 1
            return False
        self._lines[kind] += 1
        return True


class LineMaker:
    """Makes lines of one process. log_format: `text` or `json`. for_journal: standard error is the journal's."""

    def __init__(self, process: str, log_format: str, *, for_journal: bool = False) -> None:
        self._process = process
        self._is_json = log_format == "json"
        self._for_journal = for_journal
        self._about = {"process": process, "pid": os.getpid(), "logger": "ringserve.access"}

    def line(self, time_s: float, fields: dict[str, Any], level: str = "info") -> bytes:
        """One line. fields: those that are None or empty are left out. time_s: since 1970 began."""
        told: dict[str, Any] = {}
        for key, value in fields.items():
            if value.__class__ is str:
                if value:
                    told[key] = value if len(value) <= _TEXT_CHARS_MAX else f"{value[: _TEXT_CHARS_MAX - 3]}..."
            elif value is not None:
                told[key] = value
        if self._is_json:
            text = _json({"time": timestamp(time_s), "level": level, **self._about, **told})
        else:
            words = " ".join([f"{key}={_word(value)}" for key, value in told.items()])
            when = "" if self._for_journal else f"{timestamp(time_s)} {level} "
            text = f"{when}{self._process}: access: {words}"
        priority = ("<4>" if level == "warning" else "<6>") if self._for_journal else ""
        return f"{priority}{text}\n".encode()


def status_of(end: int) -> str | int:
    """How a line tells an end."""
    return end if end >= _HTTP_STATUS_MIN else "CANCELLED" if end == GONE else code_name(end)


def error_of(end: int, text: str, *, ran: bool) -> str:
    """What of a failure's text may stand in a log: no value that the client sent. ran: a model was to run it."""
    return shown_text(code_of(end), text, ran=ran).replace("…", "...") if text else ""


def _json(value: Any) -> str:
    """JSON of printable ASCII alone: what shows a line has nothing to interpret."""
    try:
        data = orjson.dumps(value)
        if data.isascii() and b"\x7f" not in data:
            return data.decode()
    except TypeError:  # half a surrogate pair
        pass
    return json.dumps(value).replace("\x7f", "\\u007f")


def _word(value: Any) -> str:
    if value.__class__ is not str:
        return str(value)
    return value if _PLAIN.fullmatch(value) else _json(value)
