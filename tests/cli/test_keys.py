"""`ringserve keys`: tokens that are shown once, and the file that knows their hashes."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringserve.config.keys_file import Scopes, digest_of, read_keys

Invoke = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def invoke(path: Path) -> Invoke:
    from ringserve.cli import main

    return lambda *arguments: CliRunner().invoke(main, ["keys", *arguments], env={"RINGSERVE_KEYS_FILE": str(path)})


def token_of(done: Result) -> str:
    assert done.exit_code == 0, done.output
    return done.stdout.strip().splitlines()[-1]


def test_a_token_is_printed_and_its_hash_kept(invoke: Invoke, path: Path) -> None:
    path.write_text("# ours")  # without an end of line
    token = token_of(invoke("new", "a", "--scope", "predict:x*", "--scope", "status", "--rate", "2.5", "--burst", "9"))
    (entry,) = read_keys(str(path))
    assert entry == ("a", digest_of(token.encode()), "", Scopes(("x*",), True, False), 2.5, 9)
    assert token not in path.read_text()
    assert path.read_text().startswith("# ours\n")


def test_a_new_file_is_the_users_own(invoke: Invoke, path: Path) -> None:
    token_of(invoke("new", "a", "--scope", "predict"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("a", "--scope", "predict"), "two keys have the name 'a'"),
        (("b", "--scope", "everything"), "'everything' is no scope"),
        (("b", "--scope", "predict", "--burst", "3"), "burst without requests_per_s"),
        (("b\n", "--scope", "predict"), "cannot be printed"),
        (("b",), "Missing option '--scope'"),
        (("b", "--scope", "predict", "--rate", "0"), "Invalid value"),
    ],
)
def test_mistakes_change_nothing(invoke: Invoke, path: Path, arguments: tuple[str, ...], text: str) -> None:
    token_of(invoke("new", "a", "--scope", "predict"))
    before = path.read_text()
    done = invoke("new", *arguments)
    assert done.exit_code != 0
    assert text in done.output
    assert "rs_" not in done.output
    assert path.read_text() == before


def test_a_broken_file_is_left_alone(invoke: Invoke, path: Path) -> None:
    path.write_text("[[ke")
    for arguments in (("new", "a", "--scope", "predict"), ("list",)):
        done = invoke(*arguments)
        assert (done.exit_code, "not a TOML file" in done.output) == (1, True)
    assert path.read_text() == "[[ke"


def test_nowhere(invoke: Invoke, path: Path) -> None:
    done = invoke("new", "a", "--scope", "predict", "--file", str(path.parent / "no" / "where"))
    assert (done.exit_code, "No such file or directory" in done.output) == (1, True)


def test_two_at_once_lose_none(invoke: Invoke, path: Path) -> None:
    from click.testing import CliRunner

    from ringserve.keys import new

    def make(number: int) -> None:
        arguments = [f"k{number}", "--scope", "predict", "--file", str(path)]
        new.main(arguments, standalone_mode=False)

    with CliRunner().isolation():
        threads = [threading.Thread(target=make, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(entry.name for entry in read_keys(str(path))) == sorted(f"k{number}" for number in range(20))


def test_list(invoke: Invoke, path: Path) -> None:
    token_of(invoke("new", "a", "--scope", "predict:x*", "--scope", "admin", "--rate", "2"))
    with path.open("a") as file:
        file.write('[[keys]]\nname = "b"\ncertificate = "cn:c"\nscopes = ["status"]\n')
    assert invoke("list").stdout == "a  token  predict:x* status admin  2/s, burst 2\nb  cn:c  status\n"


def test_the_list_as_json(invoke: Invoke) -> None:
    token_of(invoke("new", "a", "--scope", "predict:x*", "--scope", "admin", "--rate", "2.5", "--burst", "9"))
    token_of(invoke("new", "b", "--scope", "status"))
    assert json.loads(invoke("list", "--json").stdout) == [
        {
            "name": "a",
            "certificate": None,
            "scopes": ["predict:x*", "status", "admin"],
            "requests_per_s": 2.5,
            "burst": 9,
        },
        {"name": "b", "certificate": None, "scopes": ["status"]},
    ]
