"""Looks at real directories: what is found, and what is made of file systems that change or refuse meanwhile."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from ringserve.broker.aspired import Listing, Policy
from ringserve.broker.repository import ENTRIES_MAX, scan, snapshot
from ringserve.broker.stability import FileInfo, missing

WALL_NS = 5_000_000_000_000_000_000


def look(base: Path, policy: Policy = "latest", known: dict[int, int] | None = None) -> Listing:
    return scan("m", str(base), policy, known or {}, wall_clock=lambda: WALL_NS)


def model(directory: Path) -> Path:
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    (directory / "variables" / "variables.index").write_bytes(b"i")
    (directory / "variables" / "variables.data-00000-of-00001").write_bytes(b"data")
    return directory


def test_versions_are_found_and_only_the_wanted_one_is_looked_into(tmp_path: Path) -> None:
    for name in ("1", "00000002", "notes"):
        model(tmp_path / name)
    listing = look(tmp_path)
    assert [(found.version, found.path) for found in listing.found] == [
        (1, str(tmp_path / "1")),
        (2, str(tmp_path / "00000002")),
    ]
    assert list(listing.snapshots) == [2]
    assert (listing.error, listing.missing) == ("", False)


def test_a_known_directory_is_not_looked_into_unless_it_is_another(tmp_path: Path) -> None:
    model(tmp_path / "1")
    inode = look(tmp_path).found[0].inode
    assert look(tmp_path, known={1: inode}).snapshots == {}
    assert list(look(tmp_path, known={1: inode + 1}).snapshots) == [1]


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_missing_base_path_is_said_to_be_missing(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    if kind == "file":
        base.write_text("")
    listing = look(base)
    assert listing.missing
    assert listing.error.startswith(f"NOT_FOUND: {base}; ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_base_path_that_may_not_be_read_is_an_error_and_not_missing(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o000)
    listing = look(tmp_path / "base")
    assert listing.error
    assert not listing.missing


def test_a_snapshot_has_all_files_with_sizes_and_times(tmp_path: Path) -> None:
    directory = model(tmp_path / "1")
    for path in (directory / "saved_model.pb", directory / "variables" / "variables.index"):
        os.utime(path, ns=(7, 7))
    seen = snapshot(str(directory), lambda: WALL_NS)
    assert FileInfo("saved_model.pb", 5, 7) in seen.files
    assert FileInfo("variables", -1, 0) in seen.files
    assert missing(seen.files) == ""
    assert seen.taken_ns == WALL_NS
    # The times of files may be set at will, their ctime not: it is now.
    assert seen.changed_ns >= os.stat(directory).st_ctime_ns > 7


def test_a_linked_file_counts_with_the_size_of_what_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"123456")
    directory = tmp_path / "1"
    directory.mkdir()
    (directory / "saved_model.pb").symlink_to(tmp_path / "blob")
    (directory / "dangling").symlink_to(tmp_path / "nowhere")
    files = snapshot(str(directory), lambda: 0).files
    assert [(file.path, file.size_bytes) for file in files] == [("saved_model.pb", 6)]


def test_a_directory_that_is_gone_when_it_is_looked_into_is_empty(tmp_path: Path) -> None:
    assert snapshot(str(tmp_path / "nowhere"), lambda: WALL_NS).files == ()


def test_6_6_what_a_version_says_about_batching_or_what_is_wrong_with_it(tmp_path: Path) -> None:
    for name in ("1", "2"):
        model(tmp_path / name)

    def read(path: str) -> object:
        if path.endswith("2"):
            raise ValueError("Invalid protobuf file")
        return "parameters"

    listing = scan("m", str(tmp_path), "all", {}, wall_clock=lambda: 0, read_batching=read)
    assert listing.batching == {1: ("parameters", ""), 2: (None, "Invalid protobuf file")}


def test_a_directory_made_anew_is_another_even_with_the_same_inode(tmp_path: Path) -> None:
    """File systems give the number of a removed directory to the next one."""
    base = tmp_path / "base"
    seen = set()
    for _ in range(20):
        (base / "1").mkdir(parents=True)
        (base / "1" / "saved_model.pb").write_bytes(b"x")
        (found,) = look(base).found
        seen.add(found.inode)
        (base / "1" / "more").write_bytes(b"what changes in it does not make it another")
        assert look(base).found == (found,)
        shutil.rmtree(base)
    assert len(seen) == 20


def test_what_goes_while_it_is_looked_at_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is removed between the listing and the look inside, and its files one by one."""
    directory = model(tmp_path / "1")
    real_stat = os.stat

    def stat(path: str, **options: object) -> os.stat_result:
        about = real_stat(path)
        shutil.rmtree(directory, ignore_errors=True)
        return about

    monkeypatch.setattr(os, "stat", stat)
    listing = look(tmp_path)
    assert [found.version for found in listing.found] == [1]
    assert listing.snapshots[1].files == ()


def test_a_crowd_in_a_base_path_is_not_kept(tmp_path: Path) -> None:
    """Only what may be a version is: a base path may be somebody's folder of a million files."""
    for number in range(20_000):
        os.close(os.open(tmp_path / f"request-{number:060d}.log", os.O_CREAT))
    model(tmp_path / "1")
    tracemalloc.start()
    listing = look(tmp_path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found.version for found in listing.found] == [1]
    assert peak_bytes < 1_000_000


def test_a_crowd_in_a_version_is_looked_at_in_part(tmp_path: Path) -> None:
    directory = model(tmp_path / "1")
    for number in range(ENTRIES_MAX + 1_000):
        os.close(os.open(directory / f"{number:06d}", os.O_CREAT))
    assert ENTRIES_MAX <= len(snapshot(str(directory), lambda: 0).files) <= 2 * ENTRIES_MAX


def test_circles_are_gone_through_once(tmp_path: Path) -> None:
    directory = model(tmp_path / "1")
    for name in ("a", "b"):
        (directory / name).symlink_to(directory)
    (directory / "variables" / "up").symlink_to(directory)
    (directory / "same").symlink_to(directory / "variables")  # no circle, but the same folder by two names
    paths = {file.path for file in snapshot(str(directory), lambda: 0).files}
    assert paths >= {"a", "b", "variables/variables.index", "same/variables.index"}
    assert len(paths) < 40
