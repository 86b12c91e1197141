"""`ringserve doctor`: where a server writes to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.commands.findings import Finding, Level
from ringserve.commands.places import place_findings
from ringserve.config.access_log import AccessLog
from ringserve.config.schema import Server, Settings

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to others")
SOMEBODY = 54_321


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may go into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def found(run_dir: object = "", access_log: object = "", uid: int | None = None) -> list[Finding]:
    settings = Settings(server=Server(run_dir=str(run_dir)), access_log=AccessLog(to=str(access_log)))
    uid = os.geteuid() if uid is None else uid
    return list(place_findings(settings, uid, frozenset((uid,)), f"user {uid}"))


def test_places_that_are_there_or_can_be_made(place: Path) -> None:
    (place / "here").mkdir()
    (place / "log").write_text("")
    assert found() == found(access_log="stderr") == []
    assert found(place / "here", place / "log") == []
    assert found(place / "a" / "b", place / "c") == []


def test_what_whoever_asks_may_not_look_at_is_a_note(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", closed)
    monkeypatch.setattr(Path, "exists", closed)
    findings = found(place / "here", place / "log")
    assert (findings[0].level, findings[0].subject) == (Level.NOTE, "run_dir")
    assert "cannot be looked at by you" in findings[0].what


def test_a_run_dir_that_is_no_folder_or_below_none(place: Path) -> None:
    (place / "file").write_text("")
    (finding,) = found(place / "file")
    assert (finding.level, finding.what) == (Level.ERROR, f"{place}/file is no folder")
    (finding,) = found(place / "file" / "below")
    assert finding.what == f"{place}/file/below cannot be made: Not a directory"


@ROOT_ONLY
def test_a_run_dir_of_somebody_else_or_where_he_may_not_write(place: Path) -> None:
    (place / "his").mkdir()
    os.chown(place / "his", SOMEBODY, SOMEBODY)
    assert found(place / "his", uid=SOMEBODY) == []
    (finding,) = found(place / "his")
    assert finding.what == f"{place}/his is not a folder of user 0, but of user {SOMEBODY}"
    (finding,) = found(place / "new", uid=SOMEBODY)
    assert finding.what == f"{place}/new cannot be made: {place} cannot be written by user {SOMEBODY}"
    assert finding.fix == f"install -d -m 700 -o {SOMEBODY} {place}/new"


def test_an_access_log_without_its_folder(place: Path) -> None:
    (finding,) = found(access_log=place / "logs" / "access.log")
    assert finding.level == Level.WARNING
    assert finding.what == f"{place}/logs/access.log cannot be written: there is no folder {place}/logs"
    assert finding.fix == f"mkdir -p {place}/logs"


@ROOT_ONLY
def test_an_access_log_where_he_may_not_write_or_go(place: Path) -> None:
    (finding,) = found(access_log=place / "access.log", uid=SOMEBODY)
    assert finding.what == f"{place}/access.log cannot be written: {place} cannot be written by user {SOMEBODY}"
    (place / "access.log").write_text("")
    (finding,) = found(access_log=place / "access.log", uid=SOMEBODY)
    assert f"{place}/access.log cannot be written by user {SOMEBODY}" in finding.what
    os.chown(place / "access.log", SOMEBODY, SOMEBODY)
    assert found(access_log=place / "access.log", uid=SOMEBODY) == []
    place.chmod(0o700)
    (finding,) = found(access_log=place / "access.log", uid=SOMEBODY)
    assert finding.fix == f"chmod o+x {place}"
