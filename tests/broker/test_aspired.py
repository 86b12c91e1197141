"""5.1, 5.3: which names are versions, and which of them a policy asks for."""

from __future__ import annotations

import pytest

from ringserve.broker.aspired import Policy, VersionDirectory, choose, names_of_versions, version_of_name


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
def test_5_1_version_names(name: str, version: int | None) -> None:
    assert version_of_name(name) == version


def test_5_1_versions_ascend_and_other_names_are_skipped() -> None:
    assert names_of_versions(["10", "9", "00000011", "temp-12", "notes.txt"]) == {9: "9", 10: "10", 11: "00000011"}


def test_5_1_of_two_names_for_one_version_the_lexically_last_counts() -> None:
    assert names_of_versions(["1", "001"]) == {1: "1"}


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("latest", [3]),
        ("latest:2", [2, 3]),
        ("latest:9", [1, 2, 3]),
        ("all", [1, 2, 3]),
        ((1, 3), [1, 3]),
        ((4,), []),
        ((2, 4), [2]),
        ((), []),
    ],
)
def test_5_3_policies(policy: Policy, versions: list[int]) -> None:
    found = [VersionDirectory(number, f"/m/{number}") for number in (1, 2, 3)]
    assert [directory.version for directory in choose(found, policy)] == versions


@pytest.mark.parametrize("policy", ["latest", "latest:2", "all", (1,)])
def test_nothing_found_means_nothing_chosen(policy: Policy) -> None:
    assert choose([], policy) == []
