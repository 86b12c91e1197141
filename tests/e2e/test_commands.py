"""The commands that call a server, against a real one: models, predict, bench, top, doctor."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ringserve.cli import main
from tests.e2e.server import Server, wait_until


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--model_name", "half", "--model_base_path", str(models / "half"), "--workers", "1"]
    # A server takes no offence at what is meant for the commands.
    environment = {"RINGSERVE_URL": "http://elsewhere:1"}
    with Server(folder, *arguments, "--settle_ms", "0", environment=environment) as server:
        server.wait_available("half")
        yield server


@pytest.fixture
def call(server: Server) -> Any:
    def run(*arguments: object, input: bytes | None = None) -> Result:
        environment = {"RINGSERVE_URL": server.rest_url}
        return CliRunner().invoke(main, [*map(str, arguments)], env=environment, input=input)

    return run


@pytest.fixture
def call_json(call: Any) -> Any:
    def run(*arguments: object) -> Any:
        done = call(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


# ------------------------------------------------------------------------------------------------------------- models


def test_a_model_comes_is_labelled_and_goes(call: Any, call_json: Any, models: Path, tmp_path: Path) -> None:
    base = tmp_path / "other"
    shutil.copytree(models / "half", base)
    assert "other: version 1" in call("models", "add", "other", base, "--batching", "batch_rows_max=8").output
    assert {model["name"] for model in call_json("models", "list")} == {"half", "other"}
    config = json.loads(call("models", "export").stdout)["model_config_list"]["config"]
    assert [model.get("batching") for model in config] == [None, {"batch_rows_max": "8"}]

    shutil.copytree(base / "1", base / "2")
    assert call("models", "rescan").exit_code == 0
    wait_until(lambda: call_json("models", "status", "other")["serving"] == 2, "version 2")
    assert call_json("models", "label", "other", "stable=2", "canary=2") == {"stable": 2, "canary": 2}
    assert call_json("models", "label", "other", "--remove", "canary") == {"stable": 2}
    assert call_json("models", "label", "other", "new=2", "--replace") == {"new": 2}
    assert call("models", "label", "other").output == "new=2\n"
    assert json.loads(call("predict", "other", "[4.0]", "--label", "new").stdout)["predictions"] == [4.0]
    refused = call("models", "label", "other", "new=9")
    assert (refused.exit_code, "not currently available" in refused.output) == (1, True)
    assert call("models", "label", "other", "--remove", "gone").exit_code == 1

    assert call_json("models", "batching", "other", "batch_rows_max=4", "split=false")["split"] is False
    assert call("models", "batching", "other", "nonsense=4").exit_code == 1
    assert call("models", "remove", "other", "--yes").output == "other is removed\n"
    wait_until(lambda: call("models", "status", "other").exit_code == 1, "the model to be gone")


def test_export_and_reload(call: Any, call_json: Any, tmp_path: Path) -> None:
    exported = call("models", "export").stdout
    (tmp_path / "models.json").write_text(exported)
    assert call_json("models", "reload", tmp_path / "models.json") == ["half"]
    (tmp_path / "models.json").write_text("nonsense {")
    assert call("models", "reload", tmp_path / "models.json").exit_code == 1


def test_what_is_shown_on_a_terminal(call: Any) -> None:
    text = call("models", "list").output
    assert text.splitlines()[0].split() == ["MODEL", "SERVING", "VERSIONS", "LABELS"]
    assert text.splitlines()[1].split()[:5] == ["half", "version", "1", "1", "AVAILABLE"]
    assert call("models", "status", "half", "--version", 1, "--wait").exit_code == 0
    assert call("models", "status", "half", "--version", 77).exit_code == 1
    text = call("models", "status", "half", "--wait").output
    assert "inputs:  x float [?]" in text
    assert "__saved_model_init_op" not in text


def test_what_is_not_there(call: Any, tmp_path: Path) -> None:
    assert call("models", "status", "nothing").exit_code == 1
    done = call("models", "add", "nothing", tmp_path / "nowhere")
    assert (done.exit_code, "No such file or directory" in done.output) == (1, True)
    done = call("models", "list", "--url", "http://127.0.0.1:1")
    assert (done.exit_code, "nobody answers at http://127.0.0.1:1" in done.output) == (69, True)


def test_the_shell_completes_names_of_models(server: Server) -> None:
    words = {"COMP_WORDS": "ringserve models status ha", "COMP_CWORD": "3", "_RINGSERVE_COMPLETE": "bash_complete"}
    code = "import sys; sys.argv[0] = 'ringserve'; from ringserve.cli import main; main(prog_name='ringserve')"
    environment = {**os.environ, **words, "RINGSERVE_URL": server.rest_url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,half\n"


# ------------------------------------------------------------------------------------------------------------ predict


def _outputs(text: str) -> Any:
    answer = json.loads(text)
    return answer.get("predictions", answer.get("outputs"))


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_predict_from_everything(call: Any, server: Server, tmp_path: Path, way: str) -> None:
    over = ["--grpc", server.grpc_target] if way == "grpc" else []
    rows = np.array([1.0, 2.0])
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", x=rows)
    (tmp_path / "x.json").write_text('{"instances": [1.0, 2.0]}')
    expected = [2.5, 3.0]
    for given in ("[1.0, 2.0]", '{"inputs": [1.0, 2.0]}', *(tmp_path / f"x.{end}" for end in ("json", "npy", "npz"))):
        done = call("predict", "half", given, *over)
        assert done.exit_code == 0, done.output
        outputs = _outputs(done.stdout)
        assert (outputs["y"] if isinstance(outputs, dict) else outputs) == expected
    done = call("predict", "half", *over, "--output", tmp_path / "out.npz", input=b"[1.0, 2.0]")
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "out.npz") as archive:
        assert next(iter(archive.values())).tolist() == expected


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_predict_that_fails_says_how(call: Any, server: Server, tmp_path: Path, way: str) -> None:
    over = ["--grpc", server.grpc_target] if way == "grpc" else []
    np.save(tmp_path / "x.npy", np.array(["text"]))
    for arguments, status in (
        (("nothing", "[1.0]"), 1),
        (("half", "[1.0]", "--version", 77), 1),
        (("half", "[1.0]", "--signature", "gone"), 1),
        (("half", "[1.0"), 65),
        (("half", tmp_path / "x.npy"), 65),
        (("half", "[1.0]", "--version", 1, "--label", "a"), 2),
    ):
        done = call("predict", *arguments, *over)
        assert done.exit_code == status, done.output
        assert "[Errno" not in done.output
    nobody = ["--grpc", "127.0.0.1:1"] if way == "grpc" else ["--url", "http://127.0.0.1:1"]
    assert call("predict", "half", "[1.0]", *nobody).exit_code == 69


# --------------------------------------------------------------------------------------------------------- bench, top


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_bench_and_the_server_count_the_same(call: Any, server: Server, way: str) -> None:
    url = server.rest_url if way == "rest" else f"grpc://{server.grpc_target}"
    done = call("bench", url, "--model", "half", "--rate", 100, "--duration", 0.5, "--warm_up", 0, "--json")
    assert done.exit_code in (0, 3), done.output  # 3: this machine is busy, and bench says that it was late itself
    (result,) = json.loads(done.stdout)["results"]
    assert result["sent"] == result["answered"] > 20
    assert result["failures"] == {}


def test_top_sees_the_calls(call: Any, call_json: Any) -> None:
    call("predict", "half", "[1.0]")
    # A model that a test before this one has removed may still be on its way out.
    def one_worker() -> Any:
        seen = call_json("top", "--once", "--interval", 0.2)
        return seen if seen["workers"] == {"ready": 1} else None

    shown = wait_until(one_worker, "one worker")
    assert [model["model"] for model in shown["models"]] == ["half"]
    assert {process["name"] for process in shown["processes"]} >= {"broker", "frontend-0", "pool"}
    text = call("top", "--once", "--interval", 0.2).output
    assert "half" in text
    assert "\033" not in text
    assert call("top", "--url", "http://127.0.0.1:1").exit_code == 69


def test_top_on_a_terminal_gives_it_back(server: Server) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "ringserve", "top", "--interval", "0.1", "--url", server.rest_url]
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    try:
        while seen.count(b"PROCESS") < 3:
            seen += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        while chunk := _read(master):
            seen += chunk
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert seen.startswith(b"\033[?1049h\033[?25l")
    assert seen.rstrip().endswith(b"\033[?25h\033[?1049l")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other side is closed
        return b""


def test_doctor_knows_a_server_that_runs_from_other_programs(server: Server, models: Path) -> None:
    grpc, rest = (text.rpartition(":")[2] for text in (server.grpc_target, server.rest_url))
    words = ["doctor", "--json", "--model_base_path", str(models / "half"), "--port", grpc, "--rest_api_port"]
    for port, levels in ((rest, ["note"]), ("0", ["error"])):
        done = CliRunner().invoke(main, [*words, port])
        found = [finding for finding in json.loads(done.stdout)["findings"] if finding["subject"] == "ports"]
        assert [finding["level"] for finding in found] == levels
