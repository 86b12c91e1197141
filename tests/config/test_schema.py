"""The table of settings: names, units, bounds; and that the files made from it are up to date."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ringserve.config import reference
from ringserve.config.load import load_settings
from ringserve.config.schema import MODEL_FLAGS
from ringserve.config.table import SETTINGS, Setting
from ringserve.config.values import parse
from ringserve.tfs_flags import TFS_FLAGS

_ROOT = Path(__file__).resolve().parents[2]

#: Numbers that count things; the name says which. All others end in their unit, but for TF Serving's own names.
_COUNTS = {
    "port",
    "rest_api_port",
    "admin_port",
    "metrics_port",
    "frontends",
    "workers",
    "threads_per_worker",
    "concurrent_streams_max",
    "connections_max",
    "connections_per_address_max",
    "start_failures_max",
    "workers_max",
    "queue_batches_max",
    "batches_at_once_max",
    "worker_niceness",
}
_UNIT = re.compile(r".*_(s|ms|us|bytes|rows|requests)(_max|_min)?")


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.flag)
def test_numbers_end_in_their_unit(row: Setting) -> None:
    if row.kind in ("int", "bytes") and row.key not in _COUNTS and row.key not in TFS_FLAGS:
        assert _UNIT.fullmatch(row.key)


def test_flags_are_unique_and_so_are_the_environments_names() -> None:
    flags = [row.flag for row in SETTINGS] + list(MODEL_FLAGS)
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.flag)
def test_each_default_is_allowed_and_explained(row: Setting) -> None:
    assert parse(row, row.default) == row.default
    assert parse(row, tomllib.loads(f"x = {row.default_text}")["x"]) == row.default
    assert len(row.why) > 10


def test_server_toml_is_up_to_date() -> None:
    text = (_ROOT / "config/server.toml").read_text()
    assert text == reference.server_toml(), "run python -m ringserve.config.reference"


def test_configuration_md_is_up_to_date() -> None:
    text = (_ROOT / "docs/configuration.md").read_text()
    assert text == reference.configuration_md(), "run python -m ringserve.config.reference"


def test_server_toml_with_its_comments_off_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    # `#key = value` is a setting, `# words` is not.
    path.write_text(re.sub(r"^#(?=[\w\[])", "", reference.server_toml(), flags=re.MULTILINE))
    settings = load_settings({}, {}, str(path))
    for row in SETTINGS:
        assert getattr(getattr(settings, row.section), row.key) == row.default
    assert [model.name for model in settings.models] == ["digits"]
