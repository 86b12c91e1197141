"""How a setting is declared: what `schema.py` and the sections that have files of their own are written with."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

#: What every int field may hold unless it says less: 2**31 - 1 is the largest that all users of these numbers take.
INT_MAX: Final = 2**31 - 1


def setting(
    default: Any,
    why: str,
    *,
    low: int | None = None,
    high: int = INT_MAX,
    choices: tuple[str, ...] = (),
    flag: str = "",
    shown: str = "",
) -> Any:
    """A field of a settings section. `low`, `high`: bounds of a number, both allowed. `shown`: the default as written
    in files, where that reads better than Python's form (`256MiB`)."""
    if low is None and type(default) is int:
        low = 0
    return field(
        default=default,
        metadata={"why": why, "low": low, "high": high, "choices": choices, "flag": flag, "shown": shown},
    )
