"""The real pool, its authors and its workers: weights lie in memory once, and are gone with their last user."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Authored, Code, Kill
from ringserve.workers.loading import NICENESS
from tests import variables
from tests.workers.broker_end import wait_for
from tests.workers.pool_end import PoolEnd, memory_of, order_of, users_of

MIB = 2**20
PathOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def lasting_pool() -> Iterator[PoolEnd]:
    with PoolEnd() as end:
        yield end


@pytest.fixture
def pool(lasting_pool: PoolEnd) -> Iterator[PoolEnd]:
    """One for all tests that leave it alive; without workers and weights."""
    yield lasting_pool
    lasting_pool.clear()


@pytest.fixture
def mortal_pool() -> Iterator[PoolEnd]:
    with PoolEnd() as end:
        yield end


@pytest.fixture(scope="module")
def dense(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MB of weights."""
    return variables.dense(tmp_path_factory.mktemp("dense") / "1")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that no other test, and no other run of the tests, uses: its memory is looked for by it."""
    return f"t{os.getpid()}_{abs(hash(request.node.name)) % 10**6}"


def gone(name: str) -> None:
    wait_for(lambda: not users_of(name) or None, f"the end of the memory of {name}, which {users_of(name)} have")


def test_every_further_worker_maps_what_is_there(pool: PoolEnd, dense: Path, name: str) -> None:
    empty, _ = pool.fork(index=0)
    own, _ = pool.fork(order_of(name, dense, 0), index=1)
    authored = pool.author(name, dense)
    number = authored.weights_id
    note = "its weights (65.5 MB) are shared by all workers"
    expected = Authored(number, name, 1, str(dense), 0, 0, "", authored.bytes_shared, 0, [note], authored.load_ns)
    assert authored == expected
    assert authored.load_ns > 0
    assert 65 * 10**6 < authored.bytes_shared < 67 * 10**6
    first, _ = pool.fork(order_of(name, dense, number), index=2)
    second, (loaded,) = pool.fork(order_of(name, dense, number), index=3)
    assert (loaded.error_text, loaded.changes_state) == ("", False)
    base = memory_of(empty)["RssAnon"]
    assert memory_of(own)["RssAnon"] - base > 60 * MIB
    for each in (first, second):
        used = memory_of(each)
        assert used["RssAnon"] - base < 30 * MIB  # TensorFlow's own, warm-up included
        assert used["RssShmem"] > 55 * MIB
    assert users_of(name) == {pool.process.pid, first, second}


def test_memory_is_gone_with_its_last_user(pool: PoolEnd, dense: Path, name: str) -> None:
    number = pool.author(name, dense).weights_id
    first, _ = pool.fork(order_of(name, dense, number), index=0)
    second, _ = pool.fork(order_of(name, dense, number), index=1)
    pool.forget(number, 9999)
    wait_for(lambda: users_of(name) == {first, second} or None, "the pool to forget")
    pool.channel.send(Kill(first))
    assert pool.ended(first).status == -signal.SIGKILL
    assert users_of(name) == {second}
    os.kill(second, signal.SIGTERM)
    assert pool.ended(second).status == 0
    assert not users_of(name)
    _, (loaded,) = pool.fork(order_of(name, dense, number), index=0)
    assert loaded.error_text == ""
    assert loaded.notes[0] == "its weights are private to this worker: the pool has no copy of them"


def test_weights_that_a_fallback_did_not_need_are_let_go(pool: PoolEnd, dense: Path, name: str) -> None:
    number = pool.author(name, dense).weights_id
    newer = order_of(name, dense, 0, version=2)
    _, loads = pool.fork(newer, order_of(name, dense, number, fallback=True))
    assert [loaded.version for loaded in loads] == [2]
    assert users_of(name) == {pool.process.pid}


def test_a_pool_that_is_killed_takes_the_memory_along(mortal_pool: PoolEnd, dense: Path, name: str) -> None:
    pool = mortal_pool
    pool.author(name, dense)
    pool.fork(order_of(name, dense, 1))
    pool.begin_author(name, dense)
    wait_for(lambda: len(users_of(name)) >= 3 or None, "an author")
    pool.process.kill()
    gone(name)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def stopped_author(pool: PoolEnd, name: str, path: Path) -> int:
    """An author that is in the middle of it."""
    before = children_of(pool.process.pid)
    pool.begin_author(name, path)
    (author,) = wait_for(lambda: children_of(pool.process.pid) - before or None, "an author")
    os.kill(author, signal.SIGSTOP)
    return author


def test_an_author_that_is_killed(pool: PoolEnd, dense: Path, name: str) -> None:
    author = stopped_author(pool, name, dense)
    os.kill(author, signal.SIGKILL)
    authored = pool.authored()
    assert (authored.status, authored.error_code, authored.bytes_shared) == (-signal.SIGKILL, 0, 0)
    gone(name)
    assert pool.author(name, dense).status == 0  # and the pool goes on


def test_an_author_gives_way_with_all_its_threads(pool: PoolEnd, dense: Path, name: str) -> None:
    """Stopped while it is looked at, which happens every two milliseconds of some hundreds."""
    author = stopped_author(pool, name, dense)

    def nice_threads() -> int | None:
        os.kill(author, signal.SIGSTOP)
        found = []
        for thread in Path(f"/proc/{author}/task").iterdir():
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[16]), int(fields[38])))
        # One waits for the pool's end, one works, and TensorFlow has started some.
        os.kill(author, signal.SIGCONT)
        return len(found) if len(found) > 2 and set(found) == {(NICENESS, os.SCHED_BATCH)} else None

    wait_for(nice_threads, "an author of low priority")
    assert pool.authored().bytes_shared > 0


def test_weights_that_are_forgotten_while_they_are_written(pool: PoolEnd, dense: Path, name: str) -> None:
    author = stopped_author(pool, name, dense)
    forgotten = pool.weights_id
    pool.forget(forgotten)
    wait_for(lambda: author not in children_of(pool.process.pid) or None, "the author's end")
    gone(name)
    assert pool.author(name, dense).weights_id == forgotten + 1  # and what was forgotten is not answered for


def test_a_lost_broker_ends_authors_and_a_new_one_hears_of_what_is_there(
    pool: PoolEnd, dense: Path, name: str, model_path: PathOf
) -> None:
    held = list(pool.held)
    authored = pool.author(name, dense)
    nothing = pool.author(f"{name}n", model_path("several"))
    assert nothing.bytes_shared == 0
    author = stopped_author(pool, f"{name}b", dense)
    pool.channel.close()
    state = pool.accept()
    assert state.weights == [*held, authored]
    wait_for(lambda: author not in children_of(pool.process.pid) or None, "the author's end")
    gone(f"{name}b")
    _, (loaded,) = pool.fork(order_of(name, dense, authored.weights_id))
    assert "private" not in loaded.notes[0]


def test_a_pool_that_stops_ends_its_authors(mortal_pool: PoolEnd, dense: Path, name: str) -> None:
    pool = mortal_pool
    stopped_author(pool, name, dense)
    pool.process.terminate()
    assert pool.process.wait(60) == 0
    gone(name)


def test_what_does_not_load_is_told_as_a_worker_would(pool: PoolEnd, dense: Path, name: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(dense, tmp_path / "1"))
    (path / "variables" / "variables.data-00000-of-00001").unlink()
    authored = pool.author(name, path)
    assert (authored.status, authored.error_code, authored.bytes_shared) == (0, Code.NOT_FOUND, 0)
    assert authored.error_text.startswith("Cannot restore the variables from ")
    _, (loaded,) = pool.fork(order_of(name, path, 0))
    assert (loaded.error_code, loaded.error_text) == (authored.error_code, authored.error_text)
    gone(name)


def test_a_model_that_changes_its_variables_keeps_them_to_itself(pool: PoolEnd, name: str, model_path: PathOf) -> None:
    authored = pool.author(name, model_path("counter"))
    assert (authored.bytes_shared, authored.bytes_private) == (0, 4)
    assert authored.notes == ["its weights are private: it changes them while serving"]
    gone(name)
