"""Worker groups as configured: which models share workers, how many of these there are, and where they run."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: The group of the models that no other names; `[workers]` describes it.
DEFAULT: Final = "default"
REPLACE: Final = ("start_first", "stop_first")
_PATTERN = frozenset("*?[")
_WORKERS_MAX: Final = 1024


@dataclass(frozen=True)
class Group:
    """One group: [[groups]] of the file. workers, workers_max: its smallest and largest number; 0 = derive, as
    `GROUP_KEYS` says. threads_per_worker: 0 = as `[workers]` has it."""

    name: str
    models: tuple[str, ...] = ()
    devices: str = "cpu"
    workers: int = 0
    workers_max: int = 0
    threads_per_worker: int = 0
    replace: str = "start_first"
    memory_bytes_max: int = 0


#: Keys of [[groups]] and one line of each.
GROUP_KEYS: Final[dict[str, str]] = {
    "name": "what logs and metrics call the group",
    "models": 'names of models, or patterns of them such as "lang-*"; a name beats a pattern, the first pattern wins',
    "devices": "what its workers run on, as in [workers]",
    "workers": "worker processes, at least; 0 (the default): as many as its devices have room for",
    "workers_max": "and at most, under load; 0 (the default): the same number",
    "threads_per_worker": "TensorFlow's threads in one of them; 0 (the default): as in [workers]",
    "replace": '"start_first" (the default) or "stop_first", as `workers_replace` in [workers]',
    "memory_bytes_max": "bytes that its models and workers may take; 0 (the default): no limit of its own",
}


def group_of(model: str, groups: tuple[Group, ...]) -> str:
    """The name of the group whose workers serve this model."""
    for group in groups:
        if model in group.models:
            return group.name
    for group in groups:
        if any(is_pattern(name) and fnmatch.fnmatchcase(model, name) for name in group.models):
            return group.name
    return DEFAULT


def is_pattern(name: str) -> bool:
    """Whether an entry of `models` stands for many."""
    return not _PATTERN.isdisjoint(name)


def group_of_table(data: Mapping[str, Any]) -> tuple[Group | None, dict[str, str]]:
    """One [[groups]] table: the group, or None, and what is wrong with which key."""
    wrong: dict[str, str] = {}
    for key in ("name", "models"):
        if key not in data:
            wrong[key] = f"is missing: {GROUP_KEYS[key]}"
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in GROUP_KEYS:
            continue
        try:
            values[key] = _PARSERS.get(key, _count)(value)
        except (TypeError, ValueError):
            wrong[key] = f"{value!r} is not right: {GROUP_KEYS[key]}"
    return (None if wrong else Group(**values)), wrong


def mistakes_of_groups(groups: tuple[Group, ...]) -> list[str]:
    """What does not hold between them, and within each. `workers` and `workers_max` may be derived or not yet."""
    names = [group.name for group in groups]
    found = [f"two groups are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if DEFAULT in names:
        found.append(f"group {DEFAULT!r}: [workers] describes that one, which has the models that no group names")
    claims: dict[str, str] = {}
    for group in groups:
        for model in group.models:
            other = claims.setdefault(model, group.name)
            if other != group.name:
                found.append(f"groups {other!r} and {group.name!r} both name the model {model!r}")
        if 0 < group.workers_max < group.workers:
            text = f"group {group.name!r}: workers ({group.workers}) is above workers_max ({group.workers_max})"
            found.append(text)
    return found


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise TypeError
    return tuple(_name(item) for item in value)


def _replace(value: Any) -> str:
    if value not in REPLACE:
        raise ValueError
    return str(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _WORKERS_MAX:
        raise ValueError
    return value


def _bytes(value: Any) -> int:
    # Late: values.py needs the schema, which needs this file.
    from ringserve.config.values import parse_bytes

    count = parse_bytes(value)
    if count < 0:
        raise ValueError
    return count


_PARSERS: Final[dict[str, Any]] = {
    "name": _name,
    "models": _names,
    "devices": _name,
    "replace": _replace,
    "memory_bytes_max": _bytes,
}
