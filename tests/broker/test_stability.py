"""5.6: when a version's directory may be loaded; tensorflow/serving #1086: half-copied ones are not."""

from __future__ import annotations

import pytest

from ringserve.broker.stability import FileInfo, Snapshot, Watched, missing

S = 1_000_000_000
WALL_NS = 1_700_000_000 * S
SETTLE_NS, INCOMPLETE_NS = 2 * S, 30 * S
WHOLE = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")


def snapshot_of(*paths: str, age_ns: int = 0, size: int = 1) -> Snapshot:
    files = sorted(FileInfo(path, size, 0) for path in paths)
    return Snapshot(tuple(files), WALL_NS - age_ns, WALL_NS)


def judge(watched: Watched) -> tuple[bool, str, int]:
    return watched.judge(settle_ns=SETTLE_NS, incomplete_ns=INCOMPLETE_NS)


@pytest.mark.parametrize(
    ("paths", "lacking"),
    [
        (WHOLE, ""),
        (("saved_model.pbtxt",), ""),
        (("saved_model.pb",), ""),
        (("model.tflite",), ""),
        (("saved_model.pb", "assets/vocabulary.txt"), ""),
        ((), "it has no saved_model.pb"),
        (("variables/variables.index",), "it has no saved_model.pb"),
        (WHOLE[:2], "variables/variables.data is missing"),
        ((WHOLE[0], WHOLE[2]), "variables/variables.index is missing"),
        (
            (*WHOLE[:2], "variables/variables.data-00000-of-00002"),
            "variables/variables.data-00001-of-00002 is missing",
        ),
        (
            (*WHOLE[:2], "variables/variables.data-00000-of-00002", "variables/variables.data-00001-of-00002"),
            "",
        ),
        ((*WHOLE, "variables/.variables.index.Xy12Zz"), "variables/.variables.index.Xy12Zz is being written"),
        ((*WHOLE, "saved_model.pb.tmp"), "saved_model.pb.tmp is being written"),
        ((*WHOLE, "assets/data_.gstmp"), "assets/data_.gstmp is being written"),
        ((*WHOLE, "assets/template.txt", "assets/.hidden"), ""),
    ],
)
def test_complete_or_not(paths: tuple[str, ...], lacking: str) -> None:
    assert missing(snapshot_of(*paths).files) == lacking


def test_an_old_complete_directory_is_loaded_at_once() -> None:
    watched = Watched(trusted=True)
    assert watched.see(snapshot_of(*WHOLE, age_ns=3 * S), 100 * S)
    assert judge(watched) == (True, "", 0)


def test_a_fresh_one_is_loaded_when_nothing_has_changed_for_a_while() -> None:
    watched = Watched(trusted=True)
    watched.see(snapshot_of(*WHOLE, age_ns=S), 100 * S)
    assert judge(watched) == (False, "its directory has changed a moment ago", 101 * S)
    watched.see(snapshot_of(*WHOLE, age_ns=2 * S), 101 * S)
    assert judge(watched) == (True, "", 0)


def test_each_change_begins_the_wait_anew() -> None:
    watched = Watched(trusted=True)
    for second in range(5):
        assert watched.see(snapshot_of(*WHOLE, size=second), (100 + second) * S)
        assert not judge(watched)[0]
    assert not watched.see(snapshot_of(*WHOLE, size=4), 106 * S)
    assert judge(watched) == (True, "", 0)


def test_time_alone_changes_nothing_without_another_look() -> None:
    watched = Watched(trusted=False)
    watched.see(snapshot_of(*WHOLE), 100 * S)
    assert judge(watched)[2] == 102 * S
    assert not judge(watched)[0]


@pytest.mark.parametrize("age_ns", [60 * S, -60 * S])
def test_a_clock_that_goes_wrong_does_not_hurry_what_appears_while_we_look(age_ns: int) -> None:
    """A file server's clock may be an hour off: of a directory that was not there before, only what is seen counts."""
    watched = Watched(trusted=False)
    watched.see(snapshot_of(*WHOLE, age_ns=age_ns), 100 * S)
    assert judge(watched) == (False, "its directory has changed a moment ago", 102 * S)


def test_nor_does_it_delay_for_ever_what_was_there() -> None:
    watched = Watched(trusted=True)
    watched.see(snapshot_of(*WHOLE, age_ns=-3600 * S), 100 * S)
    assert judge(watched)[2] == 102 * S


def test_what_stays_incomplete_is_loaded_after_all_so_that_its_error_is_seen() -> None:
    watched = Watched(trusted=False)
    watched.see(snapshot_of(*WHOLE[:2]), 100 * S)
    assert judge(watched) == (False, "variables/variables.data is missing", 130 * S)
    watched.see(snapshot_of(*WHOLE[:2]), 130 * S)
    assert judge(watched) == (True, "variables/variables.data is missing", 0)


def test_an_old_incomplete_one_that_was_there_at_the_start_is_loaded_at_once() -> None:
    watched = Watched(trusted=True)
    watched.see(snapshot_of("checkpoint", age_ns=3600 * S), 100 * S)
    assert judge(watched) == (True, "it has no saved_model.pb", 0)
