"""Flags, environment and a TOML file become one `Settings`: a flag beats the environment, which beats the file.

All mistakes are gathered and reported together, each with where it stands and what would be right, so that a new
configuration is repaired in one round.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ringserve.config import limits
from ringserve.config.access import Access
from ringserve.config.groups import GROUP_KEYS, Group, group_of_table
from ringserve.config.keys_file import KeysError, Scopes, parse_anonymous, read_keys
from ringserve.config.schema import (
    MODEL_FLAGS,
    MODEL_KEYS,
    SECTIONS,
    Batching,
    Lifecycle,
    Model,
    Server,
    Settings,
    Versions,
)
from ringserve.config.table import ENVIRONMENT_PREFIX, SETTINGS, Setting
from ringserve.config.values import parse, parse_batching, parse_versions, suggestion

#: Names that look like ours and are none: Kubernetes gives every pod these for a Service called "ringserve".
_KUBERNETES = re.compile(r"RINGSERVE_(SERVICE_(HOST|PORT.*)|PORT_\d+_.*)")
_KUBERNETES_PORT = re.compile(r"(tcp|udp)://.*")
#: What the commands that call a server read (commands/console.py, predict.py); no settings of a server's own.
_OF_COMMANDS = frozenset(("RINGSERVE_URL", "RINGSERVE_GRPC"))


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
    groups: list[Group] = []
    models = [] if toml_path is None else _read_file(toml_path, given, groups, mistakes)
    if mistakes:
        faulty.add("models")
    _read_environment(environ, given, mistakes)
    for name, value in flags.items():
        given[name] = _Given(value, f"--{name}")
    sections: dict[str, Any] = {name: _section(name, given, mistakes, faulty) for name in SECTIONS}
    single = _single_model(given, sections["batching"], mistakes)
    if sections["lifecycle"].model_config_file:
        if models:
            mistakes.append("model_config_file and [[models]] both list models: give one of them")
        listed, sections["lifecycle"] = _models_of_file(sections["lifecycle"], sections["batching"], mistakes)
    elif single is not None:
        listed = (single,)
    else:
        listed = tuple(model for model in (make(sections["batching"]) for make in models) if model is not None)
    _check_tls(sections["server"], mistakes)
    sections["access"] = _check_access(sections["access"], mistakes)
    settings = Settings(models=listed, groups=tuple(groups), **sections)
    mistakes += [broken.text for broken in limits.mistakes(settings) if not faulty.intersection(broken.keys)]
    if mistakes:
        raise ConfigError(mistakes)
    return settings


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


# ------------------------------------------------------------------------------------------------------ environment


def _read_environment(environ: Mapping[str, str], given: dict[str, _Given], mistakes: list[str]) -> None:
    flags = {ENVIRONMENT_PREFIX + name.upper(): name for name in (*(row.flag for row in SETTINGS), *MODEL_FLAGS)}
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _OF_COMMANDS or _KUBERNETES.fullmatch(name):
            continue
        if name not in flags:
            mistakes.append(f"environment {name}: no such setting{suggestion(name, flags)}")
        elif not (flags[name] == "port" and _KUBERNETES_PORT.fullmatch(value)):
            given[flags[name]] = _Given(value, f"environment {name}")


# ------------------------------------------------------------------------------------------------------------- file

_ModelMaker = Callable[[Batching], Model | None]


def _read_file(
    path: str, given: dict[str, _Given], groups: list[Group], mistakes: list[str]
) -> list[_ModelMaker]:
    """Put the file's values into `given` and `groups`; models wait for the [batching] section that they start from."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        data = tomllib.loads(text)
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror}")
        return []
    except (ValueError, RecursionError) as error:
        mistakes.append(f"{path}: not a TOML file: {error}")
        return []
    lines = _lines_of_keys(text)
    models = data.pop("models", [])
    groups += _groups(path, data.pop("groups", []), lines, mistakes)
    for section, table in data.items():
        rows = {row.key: row for row in SETTINGS if row.section == section}
        if not rows:
            place = f"{path}:{lines.get((section, '', 0), lines.get(('', section, 0), 1))}"
            known = (*SECTIONS, "models", "groups")
            mistakes.append(f"{place}: [{section}]: no such section{suggestion(section, known)}")
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


def _groups(path: str, tables: Any, lines: dict[tuple[str, str, int], int], mistakes: list[str]) -> list[Group]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        mistakes.append(f"{path}: groups must be tables: [[groups]]")
        return []
    found = []
    for index, table in enumerate(tables):
        group, wrong = group_of_table(table)
        wrong |= {key: f"no such setting{suggestion(key, GROUP_KEYS)}" for key in table if key not in GROUP_KEYS}
        for key, text in wrong.items():
            line = lines.get(("groups", key, index), lines.get(("groups", "", index), 1))
            mistakes.append(f"{path}:{line}: [[groups]] {key}: {text}")
        if group is not None:
            found.append(group)
    return found


def _misplaced(key: str, rows: Mapping[str, Setting]) -> str:
    for row in SETTINGS:
        if row.key == key:
            return f"; it belongs into [{row.section}]"
    return suggestion(key, rows)


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
        f"{place(key)}: no such setting{suggestion(key, MODEL_KEYS)}" for key in data if key not in MODEL_KEYS
    )
    for key in ("name", "base_path"):
        if key not in data:
            mistakes.append(f"{place(key)} is missing: {MODEL_KEYS[key]}")
        elif not isinstance(data[key], str) or not data[key]:
            mistakes.append(f"{place(key)}: {data[key]!r} is not a text: {MODEL_KEYS[key]}")
    versions = parse_versions(data.get("versions", "latest"))
    if versions is None:
        mistakes.append(f"{place('versions')}: {data['versions']!r} is not {MODEL_KEYS['versions']}")
    labels = data.get("labels", {})
    if not isinstance(labels, dict) or not all(_is_version(version) for version in labels.values()):
        mistakes.append(f"{place('labels')}: {labels!r} is not {MODEL_KEYS['labels']}")
        labels = {}
    table = data.get("batching", {})
    if not isinstance(table, dict):
        mistakes.append(f"{place('batching')}: {table!r} is not a table")
        table = {}
    overrides, wrong = parse_batching(table)
    mistakes.extend(f"{place(key, 'models.batching')}: {text}" for key, text in wrong.items())
    sound = len(mistakes) == before

    def make(batching: Batching) -> Model | None:
        if not sound or versions is None:
            return None
        return Model(
            data["name"],
            absolute(data["base_path"]),
            versions,
            dataclasses.replace(batching, **overrides),
            tuple(sorted(labels.items())),
        )

    return make


def _is_version(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


# ------------------------------------------------------------------------------------------------------ other sources


def _single_model(given: Mapping[str, _Given], batching: Batching, mistakes: list[str]) -> Model | None:
    """The model of --model_name and --model_base_path (or their names in the environment), None without them."""
    name = given.get("model_name")
    base_path = given.get("model_base_path")
    policy = given.get("model_version_policy")
    if base_path is None or not base_path.value:
        # A model_config_file takes the place of this model, as in TF Serving, whose images always name one.
        if not (given["model_config_file"].value if "model_config_file" in given else ""):
            mistakes += [
                f"{about.source}: is about the model of --model_base_path, which is missing"
                for about in (name, policy)
                if about is not None and about.source != "default"
            ]
        return None
    versions: Versions = "latest"
    if policy is not None and policy.value:
        from ringserve.config.model_config import ModelConfigError, parse_version_policy

        try:
            versions = parse_version_policy(policy.value)
        except ModelConfigError as error:
            mistakes.append(f"{policy.source}: {policy.value!r} is not {MODEL_FLAGS['model_version_policy']}: {error}")
    return Model(name.value if name and name.value else "default", absolute(base_path.value), versions, batching)


def _models_of_file(
    lifecycle: Lifecycle, batching: Batching, mistakes: list[str]
) -> tuple[tuple[Model, ...], Lifecycle]:
    """The models of `model_config_file`, and its path made absolute: it is read again by another process."""
    # Late, as it loads protobuf, which other configurations do not need.
    from ringserve.config.model_config import ModelConfigError, models_of, read_model_config

    lifecycle = dataclasses.replace(lifecycle, model_config_file=os.path.abspath(lifecycle.model_config_file))
    try:
        return models_of(read_model_config(lifecycle.model_config_file), batching), lifecycle
    except ModelConfigError as error:
        mistakes.append(f"model_config_file: {': '.join(filter(None, (error.text, error.detail)))}")
        return (), lifecycle


def _check_access(access: Access, mistakes: list[str]) -> Access:
    """Its file made absolute, and found sound."""
    try:
        if parse_anonymous(access.anonymous) != Scopes() and not access.keys_file:
            mistakes.append("anonymous says what may be asked without a key, but there is no keys_file: all may be")
    except KeysError as error:
        mistakes.append(f"anonymous: {error}")
    if not access.keys_file:
        return access
    access = dataclasses.replace(access, keys_file=os.path.abspath(access.keys_file))
    try:
        read_keys(access.keys_file)
    except KeysError as error:
        mistakes.append(f"keys_file: {error}")
    return access


def _check_tls(server: Server, mistakes: list[str]) -> None:
    if server.ssl_config_file:
        from ringserve.config.tls import ModelConfigError, read_ssl_config

        try:
            read_ssl_config(server.ssl_config_file)
        except ModelConfigError as error:
            mistakes.append(f"ssl_config_file: {': '.join(filter(None, (error.text, error.detail)))}")
    if server.tls_cert_file and server.tls_key_file and (server.tls_client_verify == "none") == (
        not server.tls_client_ca_file
    ):
        from ringserve.config.tls import ModelConfigError, read_pem_files, source_of_files

        try:
            read_pem_files(source_of_files(server))
        except ModelConfigError as error:
            mistakes.append(error.text)


def absolute(base_path: str) -> str:
    """A base path made absolute; one with a scheme (`gs://`) is left as it is, for the check that refuses it."""
    base_path = base_path.removeprefix("file://")
    return base_path if "://" in base_path else os.path.abspath(os.path.expanduser(base_path))
