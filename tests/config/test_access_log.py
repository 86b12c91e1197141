"""The section [access_log]: codes that are none, and a folder in place of a file, are said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.broker.messages import Code
from ringserve.config.access_log import CODES, AccessLog, codes_of, mistakes_of_access_log
from ringserve.config.load import ConfigError, load_settings


def test_the_codes_are_grpcs() -> None:
    assert set(CODES) == {code.name for code in Code} - {"OK"}


@pytest.mark.parametrize(
    ("failures", "codes"),
    [("all", CODES), ("none", ()), ("INTERNAL", ("INTERNAL",)), (" INTERNAL ,ABORTED,", ("INTERNAL", "ABORTED"))],
)
def test_failures(failures: str, codes: tuple[str, ...]) -> None:
    assert codes_of(failures) == codes


def test_a_code_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'BUSY' is no code; there are CANCELLED"):
        load_settings({"model_base_path": "/m", "access_log_failures": "INTERNAL,BUSY"}, {}, None)


def test_places(tmp_path: Path) -> None:
    assert mistakes_of_access_log(AccessLog()) == []
    assert mistakes_of_access_log(AccessLog(to="stderr")) == []
    assert mistakes_of_access_log(AccessLog(to=str(tmp_path / "access.log"))) == []
    (text,) = mistakes_of_access_log(AccessLog(to=str(tmp_path)))
    assert text == f"access_log: {tmp_path} is a folder"
