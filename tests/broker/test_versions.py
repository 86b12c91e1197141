"""The catalog's states: each test is a short story of what workers say."""

from __future__ import annotations

import itertools

from ringserve.broker.messages import Code, Failure, ModelVersion, VersionInfo, VersionState
from ringserve.broker.versions import Versions

OK = Failure(Code.OK, "")
BROKEN = Failure(Code.NOT_FOUND, "no saved_model.pb")
KEY = ModelVersion("m", 1)


def only(versions: Versions) -> VersionInfo:
    (info,) = versions.catalog().versions
    return info


def wanted_one() -> Versions:
    versions = Versions()
    versions.want("m", 1, "/m/1")
    return versions


def test_wanted_is_loading_until_a_worker_takes_batches() -> None:
    versions = wanted_one()
    assert only(versions).state == VersionState.LOADING
    versions.loaded(KEY, OK, b"defs")
    assert only(versions).state == VersionState.LOADING
    versions.ready(frozenset({("m", 1)}))
    assert only(versions) == VersionInfo("m", 1, VersionState.AVAILABLE, 0, "", b"defs", [])


def test_a_failed_load_ends_with_its_error() -> None:
    versions = wanted_one()
    versions.loaded(KEY, BROKEN, b"")
    assert only(versions) == VersionInfo("m", 1, VersionState.END, Code.NOT_FOUND, "no saved_model.pb", b"", [])


def test_a_failure_in_one_worker_does_not_take_a_served_version_down() -> None:
    versions = wanted_one()
    versions.loaded(KEY, OK, b"defs")
    versions.ready(frozenset({("m", 1)}))
    versions.loaded(KEY, BROKEN, b"")
    assert only(versions).state == VersionState.AVAILABLE


def test_a_version_that_failed_first_is_served_once_a_worker_has_it() -> None:
    versions = wanted_one()
    versions.loaded(KEY, BROKEN, b"")
    versions.loaded(KEY, OK, b"defs")
    versions.ready(frozenset({("m", 1)}))
    assert only(versions) == VersionInfo("m", 1, VersionState.AVAILABLE, 0, "", b"defs", [])


def test_the_epoch_grows_with_what_can_be_seen_and_with_nothing_else() -> None:
    versions = wanted_one()
    seen = [versions.epoch]
    versions.want("m", 1, "/m/1")
    seen.append(versions.epoch)
    versions.loaded(KEY, OK, b"defs")
    seen.append(versions.epoch)
    versions.loaded(KEY, OK, b"defs")
    seen.append(versions.epoch)
    versions.ready(frozenset({("m", 1)}))
    seen.append(versions.epoch)
    versions.ready(frozenset({("m", 1)}))
    seen.append(versions.epoch)
    assert [later - earlier for earlier, later in itertools.pairwise(seen)] == [0, 1, 0, 1, 0]


def test_reports_about_unknown_versions_are_ignored() -> None:
    versions = Versions()
    versions.loaded(KEY, OK, b"")
    versions.ready(frozenset({("m", 1)}))
    assert versions.catalog().versions == []
