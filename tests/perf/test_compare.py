"""perf/compare.py: revisions are checked out and served by their own code, pairs change their order, what seems to have
moved is measured again, and the exit status says when something got worse. With made-up measurements."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from perf import compare, loadgen, models
from perf.compare import Plan, Side
from perf.loadgen import Figures, LoadError, Spread
from perf.series import Series
from perf.servers import ROOT, ServerError

in_a_repository = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git repository"
)


@in_a_repository
def test_a_revision_is_checked_out_and_gone_again() -> None:
    with compare.checked_out("HEAD") as side:
        assert (side.folder / "perf" / "loadgen.c").exists()
        assert side.folder != ROOT
        assert os.fspath(side.folder) in compare.git("worktree", "list")
    assert not side.folder.exists()
    assert os.fspath(side.folder) not in compare.git("worktree", "list")


@in_a_repository
def test_the_checkout_itself_is_a_revision() -> None:
    with compare.checked_out(".") as side:
        assert side.folder == ROOT
    assert ROOT.exists()


@in_a_repository
@pytest.mark.parametrize("revision", ["no-such-revision", "--help"])
def test_an_unknown_revision_is_told(revision: str) -> None:
    with pytest.raises(ServerError, match="rev-parse"), compare.checked_out(revision):
        pass


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="has no package of its own"):
        compare.check_import(tmp_path)


class Machine:
    """In place of servers: each side's rate, by set, and in which order they were measured."""

    def __init__(self, rates: dict[str, list[list[float]]]) -> None:
        self.rates = rates
        self.order: list[tuple[list[str], list[str]]] = []
        self.taken = dict.fromkeys(rates, 0)
        self.pairs_until_trouble = 1000

    def run_pair(self, sides: Sequence[Side], names: Sequence[str], plan: Plan, config: Path) -> None:
        self.order.append(([side.name for side in sides], list(names)))
        if len(self.order) > self.pairs_until_trouble:
            sides[0].runs.setdefault(names[0], []).append(Series())  # one window of the pair had been measured
            raise LoadError("no call was answered")
        for side in sides:
            which, pair = divmod(self.taken[side.name], plan.pairs)
            self.taken[side.name] += 1
            rate = self.rates[side.name][which][pair]
            for name in names:
                none = Spread()
                latency = Spread(count=1, p50=100.0, p99=200.0)
                figures = Figures(1000, 1.0, rate if name == "rate128" else 500.0, latency, none, 1.0, 1000, 128, 0)
                cpu = {"frontend": 10.0, "broker": 3.0, "worker": 30.0, "generator": 2.0}
                side.runs.setdefault(name, []).append(Series([figures], [cpu], [0.01], [0.0]))


def compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: list[list[float]], again: bool = True,
             pairs_until_trouble: int = 1000) -> tuple[int, dict[str, object], Machine]:  # fmt: skip
    """(exit status, the JSON, what was done) when `one` makes 1,000 a second and `two` these."""
    machine = Machine({"one": [[1000.0, 1010.0, 990.0, 1005.0, 995.0]] * 2, "two": after})
    machine.pairs_until_trouble = pairs_until_trouble
    monkeypatch.setattr(compare, "run_pair", machine.run_pair)
    monkeypatch.setattr(loadgen, "build", lambda: None)
    monkeypatch.setattr(models, "prepared", lambda *_: {})

    class CheckedOut:
        def __init__(self, revision: str) -> None:
            self.side = Side(revision, tmp_path)

        def __enter__(self) -> Side:
            return self.side

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(compare, "checked_out", CheckedOut)
    file = tmp_path / "out.json"
    options = argparse.Namespace(before="one", after="two", figure=["rate128", "latency1"], json=file)
    status: list[int] = []
    with nullcontext() if pairs_until_trouble == 1000 else pytest.raises(LoadError):
        assert compare.compare(options, Plan(5, 1, 0.0, 1.0, 0.01, again), status) == 0
    return max(status, default=0), json.loads(file.read_text()), machine


def verdicts(told: dict[str, object]) -> dict[str, str]:
    rows = told["figures"]
    assert isinstance(rows, list)
    return {f"{row['load']} {row['figure']}": row["verdict"] for row in rows}


def test_nothing_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told, machine = compared(monkeypatch, tmp_path, [[1001.0, 1000.0, 1000.0, 1000.0, 1000.0]])
    assert status == 0
    assert set(verdicts(told).values()) == {"no change seen"}
    assert [sides for sides, _ in machine.order] == [["one", "two"], ["two", "one"]] * 2 + [["one", "two"]]
    assert "0 of 20 runs had more than 0.1 beside them" in capsys.readouterr().out


def test_what_got_worse_is_measured_again_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = [900.0, 901.0, 899.0, 902.0, 900.0]
    status, told, machine = compared(monkeypatch, tmp_path, [slow, slow])
    assert status == 3
    assert verdicts(told)["rate128 rate"] == "worse"
    assert verdicts(told)["rate128 cpu broker"] == "no change seen"
    assert [names for _, names in machine.order] == [["rate128", "latency1"]] * 5 + [["rate128"]] * 5


def test_what_does_not_hold_the_second_time_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, told, _ = compared(monkeypatch, tmp_path, [[900.0] * 5, [1000.0] * 5])
    assert status == 0
    assert verdicts(told)["rate128 rate"] == "not confirmed"


def test_once_says_perhaps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, told, machine = compared(monkeypatch, tmp_path, [[1200.0] * 5], again=False)
    assert status == 0
    assert verdicts(told)["rate128 rate"] == "perhaps better"
    assert len(machine.order) == 5
    assert compared(monkeypatch, tmp_path, [[800.0] * 5], again=False)[0] == 3


@pytest.mark.parametrize(("pairs", "verdict"), [(3, "too few pairs"), (7, "perhaps worse")])
def test_whole_pairs_are_told_when_it_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: int, verdict: str
) -> None:
    _, told, machine = compared(monkeypatch, tmp_path, [[900.0] * 5] * 2, pairs_until_trouble=pairs)
    assert verdicts(told)["rate128 rate"] == verdict
    assert told["trouble"] == "no call was answered"
    assert len(machine.order) == pairs + 1
    shown = capsys.readouterr()
    assert "two against one: medians" in shown.out
    assert "BROKEN OFF" in shown.err


def test_nothing_is_told_where_no_pair_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # no JSON: `compared` reads it behind the LoadError
        compared(monkeypatch, tmp_path, [[900.0] * 5], pairs_until_trouble=0)


def test_a_window_without_an_answer_is_a_latency_of_its_length() -> None:
    answered = Figures(1000, 0.8, 1250.0, Spread(count=1000, p50=100.0), Spread(), 1.0, 1000, 1, 0)
    stalled = Figures(0, 0.8, 0.0, Spread(), Spread(), 0.0, 0, 1, 0)
    assert compare.value_of(Series([stalled]), "p50") == 800_000
    assert compare.value_of(Series([answered, stalled, answered]), "p50") == 100


def test_mistakes_in_the_command_line_are_named() -> None:
    command = [sys.executable, "-m", "perf.compare", "HEAD", ".", "--figure", "nothing"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "invalid choice: 'nothing'" in outcome.stderr
