"""Flags, environment and a TOML file become one `Settings`: a flag beats the environment, which beats the file.

All mistakes are gathered and reported together, each with where it stands and what would be right, so that a new
configuration is repaired in one round.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ringserve.config import limits
from ringserve.config.schema import (
    ENVIRONMENT_PREFIX,
    MODEL_FLAGS,
    MODEL_KEYS,
    SECTIONS,
    SETTINGS,
    Batching,
    Model,
    Setting,
    Settings,
    Versions,
)

#: Names that look like ours and are none: Kubernetes gives every pod these for a Service called "ringserve".
_KUBERNETES = re.compile(r"RINGSERVE_(SERVICE_(HOST|PORT.*)|PORT_\d+_.*)")
_KUBERNETES_PORT = re.compile(r"(tcp|udp)://.*")

_SIZE = re.compile(r"\s*(\d+)\s*([a-zA-Z]*)\s*")
_UNIT_BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_BATCHING_ROWS = {row.key: row for row in SETTINGS if row.section == "batching"}


class ConfigError(Exception):
    """The configuration cannot be used. `mistakes` holds every one of them, each a line for the operator."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class _Given(NamedTuple):
    """One value as somebody wrote it, and where."""

    value: Any
    source: str


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    toml_path: str | None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings that these sources make together. Raises ConfigError with every mistake found.

    flags: by flag name (`Setting.flag` and MODEL_FLAGS), only those that were given; text or typed.
    environ: the environment; only names that start with RINGSERVE_ count. toml_path: the file, or None.
    defaults: by flag name, in place of the schema's: for a command that promises other defaults.
    """
    mistakes: list[str] = []
    faulty: set[str] = set()  # settings without a value that is right: what relates to them is not judged
    given: dict[str, _Given] = {name: _Given(value, "default") for name, value in (defaults or {}).items()}
    models = [] if toml_path is None else _read_file(toml_path, given, mistakes)
    if mistakes:
        faulty.add("models")
    _read_environment(environ, given, mistakes)
    for name, value in flags.items():
        given[name] = _Given(value, f"--{name}")
    sections: dict[str, Any] = {name: _section(name, given, mistakes, faulty) for name in SECTIONS}
    single = _single_model(given, sections["batching"], mistakes)
    if single is not None:
        models = [lambda _batching: single]
    listed = tuple(model for model in (make(sections["batching"]) for make in models) if model is not None)
    settings = Settings(models=listed, **sections)
    mistakes += [broken.text for broken in limits.mistakes(settings) if not faulty.intersection(broken.keys)]
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def parse(row: Setting, value: Any) -> Any:
    """`value` (text, or what TOML holds) as this setting's type. Raises ValueError saying what would be right."""
    try:
        parsed = _PARSERS[row.kind](value)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{value!r} is not {row.allowed}") from None
    if row.choices and parsed not in row.choices:
        raise ValueError(f"{value!r} is not {row.allowed}{_suggestion(str(parsed), row.choices)}")
    if row.low is not None and not row.low <= parsed <= row.high:
        raise ValueError(f"{value!r} is not {row.allowed}")
    return parsed


def _parse_int(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _parse_bytes(value: Any) -> int:
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
    "bytes": _parse_bytes,
    "bool": _parse_bool,
    "str": _parse_str,
}


def _section(name: str, given: Mapping[str, _Given], mistakes: list[str], faulty: set[str]) -> Any:
    values = {}
    for row in SETTINGS:
        if row.section != name or row.flag not in given:
            continue
        value, source = given[row.flag]
        try:
            values[row.key] = parse(row, value)
        except ValueError as error:
            mistakes.append(f"{source}: {error}")
            faulty.add(row.key)
    return SECTIONS[name](**values)


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ------------------------------------------------------------------------------------------------------ environment


def _read_environment(environ: Mapping[str, str], given: dict[str, _Given], mistakes: list[str]) -> None:
    flags = {ENVIRONMENT_PREFIX + name.upper(): name for name in (*(row.flag for row in SETTINGS), *MODEL_FLAGS)}
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or _KUBERNETES.fullmatch(name):
            continue
        if name not in flags:
            mistakes.append(f"environment {name}: no such setting{_suggestion(name, flags)}")
        elif not (flags[name] == "port" and _KUBERNETES_PORT.fullmatch(value)):
            given[flags[name]] = _Given(value, f"environment {name}")


# ------------------------------------------------------------------------------------------------------------- file

_ModelMaker = Callable[[Batching], Model | None]


def _read_file(path: str, given: dict[str, _Given], mistakes: list[str]) -> list[_ModelMaker]:
    """Put the file's values into `given`; the models wait for the [batching] section that they start from."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        data = tomllib.loads(text)
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror}")
        return []
    except ValueError as error:
        mistakes.append(f"{path}: not a TOML file: {error}")
        return []
    lines = _lines_of_keys(text)
    models = data.pop("models", [])
    for section, table in data.items():
        rows = {row.key: row for row in SETTINGS if row.section == section}
        if not rows:
            place = f"{path}:{lines.get((section, '', 0), lines.get(('', section, 0), 1))}"
            mistakes.append(f"{place}: [{section}]: no such section{_suggestion(section, (*SECTIONS, 'models'))}")
        elif not isinstance(table, dict):
            mistakes.append(f"{path}: {section} must be a table: [{section}]")
        else:
            for key, value in table.items():
                source = f"{path}:{lines.get((section, key, 0), 1)}: [{section}] {key}"
                if key in rows:
                    given[rows[key].flag] = _Given(value, source)
                else:
                    mistakes.append(f"{source}: no such setting{_misplaced(key, rows)}")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        mistakes.append(f"{path}: models must be tables: [[models]]")
        return []
    return [_model_maker(path, index, model, lines, mistakes) for index, model in enumerate(models)]


def _misplaced(key: str, rows: Mapping[str, Setting]) -> str:
    for row in SETTINGS:
        if row.key == key:
            return f"; it belongs into [{row.section}]"
    return _suggestion(key, rows)


def _lines_of_keys(text: str) -> dict[tuple[str, str, int], int]:
    """Line numbers by (section, key, which table of an array of tables); key '' is the heading. For messages only:
    it reads line by line and knows nothing of multi-line values."""
    lines: dict[tuple[str, str, int], int] = {}
    section, index, seen = "", 0, dict[str, int]()
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := re.match(r"\s*\[\[?\s*([\w.\-]+)\s*\]", line):
            section = heading[1]
            if line.lstrip().startswith("[["):
                index = seen[section] = seen.get(section, -1) + 1
            elif not section.startswith("models."):
                index = 0
            lines.setdefault((section, "", index), number)
        elif pair := re.match(r"\s*[\"']?([\w\-]+)[\"']?\s*=", line):
            lines.setdefault((section, pair[1], index), number)
    return lines


def _model_maker(
    path: str, index: int, data: dict[str, Any], lines: dict[tuple[str, str, int], int], mistakes: list[str]
) -> _ModelMaker:
    def place(key: str, section: str = "models") -> str:
        line = lines.get((section, key, index), lines.get(("models", "", index), 1))
        return f"{path}:{line}: [[models]] {key}"

    before = len(mistakes)
    mistakes.extend(
        f"{place(key)}: no such setting{_suggestion(key, MODEL_KEYS)}" for key in data if key not in MODEL_KEYS
    )
    for key in ("name", "base_path"):
        if key not in data:
            mistakes.append(f"{place(key)} is missing: {MODEL_KEYS[key]}")
        elif not isinstance(data[key], str) or not data[key]:
            mistakes.append(f"{place(key)}: {data[key]!r} is not a text: {MODEL_KEYS[key]}")
    versions = _versions(data.get("versions", "latest"))
    if versions is None:
        mistakes.append(f"{place('versions')}: {data['versions']!r} is not {MODEL_KEYS['versions']}")
    overrides: dict[str, Any] = {}
    table = data.get("batching", {})
    if not isinstance(table, dict):
        mistakes.append(f"{place('batching')}: {table!r} is not a table")
        table = {}
    for key, value in table.items():
        try:
            overrides[key] = parse(_BATCHING_ROWS[key], value)
        except KeyError:
            hint = _suggestion(key, _BATCHING_ROWS)
            mistakes.append(f"{place(key, 'models.batching')}: no such setting of [batching]{hint}")
        except ValueError as error:
            mistakes.append(f"{place(key, 'models.batching')}: {error}")
    sound = len(mistakes) == before

    def make(batching: Batching) -> Model | None:
        if not sound or versions is None:
            return None
        return Model(
            data["name"], absolute(data["base_path"]), versions, dataclasses.replace(batching, **overrides)
        )

    return make


def _versions(value: Any) -> Versions | None:
    if value in ("latest", "all"):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    sound = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value)
    return tuple(sorted(set(value))) if sound else None


def _single_model(given: Mapping[str, _Given], batching: Batching, mistakes: list[str]) -> Model | None:
    """The model of --model_name and --model_base_path (or their names in the environment), None without them."""
    name = given.get("model_name")
    base_path = given.get("model_base_path")
    if base_path is None or not base_path.value:
        if name is not None and name.source != "default":
            mistakes.append(f"{name.source}: names the model of --model_base_path, which is missing")
        return None
    return Model(name.value if name and name.value else "default", absolute(base_path.value), batching=batching)


def absolute(base_path: str) -> str:
    """A base path made absolute; one with a scheme (`gs://`) is left as it is, for the check that refuses it."""
    base_path = base_path.removeprefix("file://")
    return base_path if "://" in base_path else os.path.abspath(os.path.expanduser(base_path))
