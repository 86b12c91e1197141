"""The table of settings: one row for each field that `schema.py` declares, with its name in each place it may stand."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from ringserve.config.schema import SECTIONS

ENVIRONMENT_PREFIX: Final = "RINGSERVE_"


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings. kind: 'int', 'float', 'bool', 'str' or 'bytes' (an int that may be written
    '4MiB')."""

    section: str
    key: str
    kind: str
    default: Any
    why: str
    low: int | None
    high: int
    choices: tuple[str, ...]
    flag: str
    shown: str

    @property
    def environment(self) -> str:
        """Its name in the environment."""
        return ENVIRONMENT_PREFIX + self.flag.upper()

    @property
    def default_text(self) -> str:
        """The default as it is written in a TOML file."""
        if self.kind == "bytes" and not self.shown.isdigit():
            return f'"{self.shown}"'
        return self.shown or json.dumps(self.default)

    @property
    def allowed(self) -> str:
        """What values are right, in words: for error messages and the reference."""
        if self.choices:
            return " or ".join((", ".join(self.choices[:-1]), self.choices[-1]))
        if self.kind == "bool":
            return "true or false"
        if self.kind == "str":
            return "text"
        bounds = f"from {self.low} to {self.high}"
        return f"a number of bytes {bounds}, such as 4194304 or 4MiB" if self.kind == "bytes" else f"a number {bounds}"


def _rows_of(section: str, cls: type[Any]) -> list[Setting]:
    hints = get_type_hints(cls)
    rows = []
    for item in dataclasses.fields(cls):
        kind = hints[item.name].__name__
        if kind == "int" and item.name.endswith(("_bytes", "_bytes_max", "_bytes_min")):
            kind = "bytes"
        about = dict(item.metadata)
        about["flag"] = about["flag"] or item.name
        rows.append(Setting(section, item.name, kind, item.default, **about))
    return rows


#: The table: every setting, in the order of the file.
SETTINGS: Final[tuple[Setting, ...]] = tuple(row for name, cls in SECTIONS.items() for row in _rows_of(name, cls))
