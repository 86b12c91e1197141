"""Model directories: which names are versions, and which of them are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.broker.repository import VersionDirectory, choose_versions, list_versions, version_of_name


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1),
        ("00000123", 123),
        (" 7 ", 7),
        ("+5", 5),
        ("0", 0),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("-1", None),
        ("1.5", None),
        ("latest", None),
        ("", None),
        ("1a", None),
        ("٣", None),
        ("1_0", None),
    ],
)
def test_version_names(name: str, version: int | None) -> None:
    assert version_of_name(name) == version


def test_versions_are_listed_in_order_and_other_names_are_skipped(tmp_path: Path) -> None:
    for name in ("10", "9", "00000011", "temp-12", "notes.txt"):
        (tmp_path / name).mkdir()
    assert [directory.version for directory in list_versions(str(tmp_path))] == [9, 10, 11]


def test_of_two_names_for_one_version_the_lexically_last_counts(tmp_path: Path) -> None:
    for name in ("1", "001"):
        (tmp_path / name).mkdir()
    assert list_versions(str(tmp_path)) == [VersionDirectory(1, str(tmp_path / "1"))]


def test_a_missing_base_path_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_versions(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("wanted", "versions"), [("latest", [3]), ("all", [1, 2, 3]), ((1, 3), [1, 3]), ((4,), []), ((2,), [2])]
)
def test_choice(wanted: str | tuple[int, ...], versions: list[int]) -> None:
    found = [VersionDirectory(number, f"/m/{number}") for number in (1, 2, 3)]
    assert [directory.version for directory in choose_versions(found, wanted)] == versions


def test_nothing_found_means_nothing_chosen() -> None:
    assert choose_versions([], "latest") == []
