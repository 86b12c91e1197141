"""The servers that are compared with: pinned, in environments of their own that see TensorFlow, ended whole, and what
cannot be installed is said. And requests of several rows or for other models, as perf/many.py and perf/large.py send.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perf import answers, compare_servers, environments, processes
from perf.answers import renamed, together
from perf.contestants import CONTESTANTS, Contestant
from perf.environments import InstallError
from perf.loadgen import Exchange, Figures, Spread
from perf.report import Report
from ringserve.config import protos

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
def test_versions_are_pinned_and_the_program_is_there(contestant: Contestant) -> None:
    assert contestant.requirements
    assert all("==" in each for each in contestant.requirements)
    assert contestant.tuning
    named = [word for word in contestant.arguments if word.startswith("perf.peers.")]
    assert len(named) == 1
    assert (ROOT / (named[0].partition(":")[0].replace(".", "/") + ".py")).exists()


def test_an_environment_sees_the_packages_here_behind_its_own(tmp_path: Path) -> None:
    environments.create(tmp_path / "one")
    python = tmp_path / "one" / "bin" / "python"
    (own,) = (tmp_path / "one").glob("lib/python*/site-packages")
    (own / "msgpack.py").write_text("version = 'own'\n")
    program = "import msgpack, orjson, sys; print(msgpack.version, orjson.__name__, sys.prefix)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.split() == ["own", "orjson", str(tmp_path / "one")]
    assert environments.installed_versions(python, ["orjson"])["orjson"]


def test_what_cannot_be_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(environments, "PERF", tmp_path)
    missing = Contestant("Nothing", (f"{tmp_path}/no-such-wheel.whl",), (), "")
    with pytest.raises(InstallError, match="no-such-wheel"):
        environments.python_of("nothing", missing.requirements)
    entry = compare_servers.Entry("Nothing", "")
    assert compare_servers.installed(missing, entry) is None
    compare_servers.tell([entry], Report())
    assert "Nothing: NOT MEASURED, not installed: " in capsys.readouterr().out


def test_failed_calls_of_others_are_recorded() -> None:
    """They do not end the program, so that the figures beside them must say it."""

    def entry(name: str, failed: int) -> compare_servers.Entry:
        figures = Figures(10, 1.0, 10.0, Spread(10, 1, 2, 3, 4, 5, 6, 7), Spread(), 1.0, 10, 1, failed)
        one = compare_servers.Entry(name, "tuned")
        for series in (*one.closed.values(), one.open):
            series.runs.append(figures)
            series.cpu_us.append({"server": 10.0, "generator": 1.0})
            series.others_cpus.append(0.0)
        one.ours_at_rate.runs.append(Figures(10, 1.0, 10.0, Spread(10, 1, 2, 3, 4, 5, 6, 7), Spread(), 1.0, 10, 1, 0))
        return one

    report = Report()
    compare_servers.tell([entry("ringserve, REST", 0), entry("Cheater", 5)], report)
    assert [report.figures[f"{name} failed"][0] for name in ("ringserve, REST", "Cheater")] == [0, 20]


def test_a_family_is_found_across_sessions() -> None:
    program = ("import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], "
               "stdin=subprocess.PIPE, start_new_session=True); print(child.pid, flush=True); "
               "child.wait()")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert {usage.pid for usage in processes.family(process.pid)} == {process.pid, child}
            assert {usage.pid for usage in processes.usages(process.pid)} == {process.pid}
        finally:
            os.kill(child, signal.SIGKILL)


def exchange(values: list[float], answer: list[float]) -> Exchange:
    request, response = protos.PredictRequest(), protos.PredictResponse()
    request.model_spec.name = response.model_spec.name = "mlp"
    for tensor, row in ((request.inputs["x"], values), (response.outputs["probabilities"], answer)):
        tensor.dtype = 1
        for size in (1, len(row)):
            tensor.tensor_shape.dim.add().size = size
        tensor.float_val.extend(row)
    return Exchange(request.SerializeToString(), response.SerializeToString())


def test_rows_of_several_requests_in_one() -> None:
    one, two = exchange([1.0, 2.0, 3.0], [0.5, 0.5]), exchange([4.0, 5.0, 6.0], [0.1, 0.9])
    both = together([one, two])
    request = protos.PredictRequest.FromString(both.request)
    tensor = request.inputs["x"]
    assert [dim.size for dim in tensor.tensor_shape.dim] == [2, 3]
    assert answers._values(tensor).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    answer = protos.PredictResponse.FromString(both.expected or b"").outputs["probabilities"]
    assert answers._values(answer).tolist() == pytest.approx([0.5, 0.5, 0.1, 0.9])


def test_the_same_request_for_another_model() -> None:
    other = renamed(exchange([1.0], [2.0]), "mlp-007")
    assert protos.PredictRequest.FromString(other.request).model_spec.name == "mlp-007"
    assert protos.PredictResponse.FromString(other.expected or b"").model_spec.name == "mlp-007"
