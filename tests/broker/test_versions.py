"""5.4: the catalog's states: each test is a short story; and every way that the table has."""

from __future__ import annotations

import itertools

import pytest

from ringserve.broker.messages import Code, Failure, ModelVersion, VersionInfo, VersionState
from ringserve.broker.versions import ENDED_MAX, MOVES, Versions, way

START, LOADING, AVAILABLE = VersionState.START, VersionState.LOADING, VersionState.AVAILABLE
UNLOADING, END = VersionState.UNLOADING, VersionState.END
BROKEN = Failure(Code.NOT_FOUND, "no saved_model.pb")
KEY = ModelVersion("m", 1)
STATES = [START, LOADING, AVAILABLE, UNLOADING, END]


def only(versions: Versions) -> VersionInfo:
    (info,) = versions.infos()
    return info


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STATES, STATES)))
def test_5_4_every_way_is_made_of_the_tables_moves(before: VersionState, after: VersionState) -> None:
    steps = way(before, after)
    assert (steps == []) == (before is after)
    for step, following in itertools.pairwise([before, *steps]):
        assert following in MOVES[step]


def test_5_4_a_version_comes_serves_and_goes() -> None:
    versions = Versions()
    for state in (START, LOADING, AVAILABLE, UNLOADING, END):
        assert versions.put(KEY, state)
        assert versions.state(KEY) is state
        assert not versions.put(KEY, state)


def test_4_5_a_failed_load_ends_with_its_error_and_stays_listed() -> None:
    versions = Versions()
    versions.put(KEY, LOADING)
    versions.put(KEY, END, BROKEN)
    assert only(versions) == VersionInfo("m", 1, END, Code.NOT_FOUND, "no saved_model.pb", b"", [])


def test_4_5_one_that_comes_again_begins_at_start() -> None:
    versions = Versions()
    versions.put(KEY, END, BROKEN)
    versions.put(KEY, START)
    assert only(versions)[2:5] == (START, Code.OK, "")
    assert way(END, AVAILABLE) == [START, LOADING, AVAILABLE]


def test_a_load_that_is_repeated_shows_the_last_error_meanwhile() -> None:
    versions = Versions()
    versions.put(KEY, LOADING, Failure(Code.UNAVAILABLE, "nobody there"), "load 2 comes soon")
    assert only(versions)[2:5] == (LOADING, Code.UNAVAILABLE, "nobody there")
    assert only(versions).notes == ["waits: load 2 comes soon"]
    versions.put(KEY, AVAILABLE)
    assert only(versions)[2:5] == (AVAILABLE, Code.OK, "")


def test_what_workers_say_of_it_is_told_while_it_serves() -> None:
    versions = Versions()
    versions.put(KEY, LOADING)
    versions.describe(KEY, b"defs", ["warmed up"])
    versions.put(KEY, AVAILABLE)
    assert only(versions) == VersionInfo("m", 1, AVAILABLE, 0, "", b"defs", ["warmed up"])
    versions.put(KEY, END)
    assert only(versions) == VersionInfo("m", 1, END, 0, "", b"", [])


def test_the_epoch_grows_with_what_can_be_seen_and_with_nothing_else() -> None:
    versions = Versions()
    seen = [versions.epoch]
    for action in (
        lambda: versions.put(KEY, LOADING),
        lambda: versions.put(KEY, LOADING),
        lambda: versions.describe(KEY, b"defs", []),
        lambda: versions.describe(KEY, b"defs", []),
        lambda: versions.put(KEY, LOADING, BROKEN),
        lambda: versions.put(KEY, AVAILABLE),
    ):
        action()
        seen.append(versions.epoch)
    assert [later > earlier for earlier, later in itertools.pairwise(seen)] == [True, False, True, False, True, True]


def test_requests_are_expected_for_what_serves_and_for_what_is_about_to_go() -> None:
    versions = Versions()
    for number, state in enumerate(STATES):
        versions.put(ModelVersion("m", number), state)
    assert [key.version for key in versions.expected()] == [STATES.index(AVAILABLE), STATES.index(UNLOADING)]


def test_those_that_ended_first_are_forgotten_when_there_are_too_many() -> None:
    versions = Versions()
    versions.put(ModelVersion("other", 0), END)
    versions.put(ModelVersion("m", 10_000), AVAILABLE)
    for number in range(ENDED_MAX + 5):
        versions.put(ModelVersion("m", number), LOADING)
        versions.put(ModelVersion("m", number), END)
    assert ModelVersion("m", 4) not in versions
    assert ModelVersion("m", 5) in versions
    assert ModelVersion("m", 10_000) in versions
    assert ModelVersion("other", 0) in versions


def test_nothing_is_known_of_a_version_never_seen() -> None:
    versions = Versions()
    versions.describe(KEY, b"defs", [])
    assert versions.infos() == []
    assert versions.state(KEY) is VersionState.UNKNOWN
