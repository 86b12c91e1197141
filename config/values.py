"""One setting's value from what somebody wrote: text of a flag, of the environment or of a map, or what TOML holds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ringserve.config.schema import Versions
from ringserve.config.table import SETTINGS, Setting

_SIZE = re.compile(r"\s*(\d+)\s*([a-zA-Z]*)\s*")
_UNIT_BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_LATEST = re.compile(r"latest:(\d+)", re.ASCII)
_NUMBERS = re.compile(r"\s*\d+\s*(,\s*\d+\s*)*", re.ASCII)
_INT64_MAX: Final = 2**63 - 1
_UINT32_MAX: Final = 2**32 - 1

#: The rows of [batching] by key: what a model may override.
BATCHING_ROWS: Final = {row.key: row for row in SETTINGS if row.section == "batching"}


def parse(row: Setting, value: Any) -> Any:
    """`value` (text, or what TOML holds) as this setting's type. Raises ValueError saying what would be right."""
    try:
        parsed = _PARSERS[row.kind](value)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{value!r} is not {row.allowed}") from None
    if row.choices and parsed not in row.choices:
        raise ValueError(f"{value!r} is not {row.allowed}{suggestion(str(parsed), row.choices)}")
    if row.low is not None and not row.low <= parsed <= row.high:
        raise ValueError(f"{value!r} is not {row.allowed}")
    return parsed


def parse_batching(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Overrides of [batching] by key: those that are right, parsed, and of the others what is wrong."""
    overrides: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for key, value in table.items():
        try:
            overrides[key] = parse(BATCHING_ROWS[key], value)
        except KeyError:
            wrong[key] = f"no such setting of [batching]{suggestion(key, BATCHING_ROWS)}"
        except ValueError as error:
            wrong[key] = str(error)
    return overrides, wrong


def parse_versions(value: Any) -> Versions | None:
    """A model's `versions` from a word (`latest`, `latest:2`, `all`), a number, numbers between commas, or a list of
    numbers; None when it is none of these."""
    if isinstance(value, str):
        word = value.strip()
        if word in ("latest", "all"):
            return word
        if match := _LATEST.fullmatch(word):
            count = int(match[1])
            return None if not 1 <= count <= _UINT32_MAX else latest(count)
        if not _NUMBERS.fullmatch(word):
            return None
        value = [int(item) for item in word.split(",")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    sound = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= _INT64_MAX for item in value)
    return tuple(sorted(set(value))) if sound else None


def latest(count: int) -> Versions:
    """The `count` highest versions."""
    return "latest" if count <= 1 else f"latest:{count}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parse_int(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _parse_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        raise ValueError from None


def parse_bytes(value: Any) -> int:
    """A number of bytes, or text such as `4MiB`. Raises ValueError, KeyError or TypeError for anything else."""
    if not isinstance(value, str):
        return _parse_int(value)
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError
    return int(match[1]) * _UNIT_BYTES[match[2].lower()]


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _parse_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "int": _parse_int,
    "float": _parse_float,
    "bytes": parse_bytes,
    "bool": _parse_bool,
    "str": _parse_str,
}
