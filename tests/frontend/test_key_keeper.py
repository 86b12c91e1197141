"""A file of keys that changes while it is looked at."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ringserve.config.keys_file import Entry, KeysError, new_token, written
from ringserve.frontend.key_keeper import KeyKeeper
from ringserve.frontend.settled import read_settled

PERIOD_S = 0.01


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(PERIOD_S)  # polls, bounded above


def put(path: Path, text: str) -> None:
    """Replace a file at one stroke."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


class Told(list[list[str]]):
    """The names of each file's keys, as a keeper tells of them."""

    def use(self, entries: Sequence[Entry]) -> None:
        self.append([entry.name for entry in entries])


async def test_changes_are_told_and_what_is_wrong_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    told = Told()
    with pytest.raises(KeysError, match="No such file"):
        KeyKeeper(str(path), PERIOD_S, told.use)
    one, two = (written(name, new_token(), ["predict"]) for name in "ab")
    put(path, one)
    with caplog.at_level(logging.INFO):
        keeper = KeyKeeper(str(path), PERIOD_S, told.use)
        try:
            put(path, one + two)
            await until(lambda: told == [["a"], ["a", "b"]])
            put(path, "half a [[")
            await until(lambda: "go on being used" in caplog.text)
            path.unlink()
            await until(lambda: "No such file" in caplog.text)
            put(path, "")
            await until(lambda: told[-1] == [])
        finally:
            keeper.close()
    assert told == [["a"], ["a", "b"], []]
    assert caplog.text.count("not a TOML file") == 1
    assert "new: ['b']; gone: none" in caplog.text


async def test_a_pipe_in_place_of_the_file_keeps_nobody_from_later_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    told = Told()
    put(path, written("a", new_token(), ["predict"]))
    keeper = KeyKeeper(str(path), PERIOD_S, told.use)
    try:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        pipe.rename(path)
        await until(lambda: "not a regular file but a pipe; the keys that were there go on being used" in caplog.text)
        put(path, written("b", new_token(), ["predict"]))
        await until(lambda: len(told) > 1)
    finally:
        keeper.close()
    assert told == [["a"], ["b"]]


async def test_a_file_that_is_being_written_is_read_until_it_stays() -> None:
    readings = iter(["new, half", "", "new", "new", "never"])
    assert await read_settled(lambda: next(readings), "old", 0.001) == "new"
    assert await read_settled(lambda: "old", "old", 60.0) == "old"
