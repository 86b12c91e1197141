"""The `ringserve` command: its flags follow the schema, help is light, mistakes are all told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ringserve import __version__, supervisor
from ringserve.cli import main
from ringserve.config import reference
from ringserve.config.schema import MODEL_FLAGS, Settings
from ringserve.config.table import SETTINGS

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `serve` would run with."""
    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return 7

    monkeypatch.setattr(supervisor, "run", run)
    return seen


def _invoke(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, env=env)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model_name=m", "--model_base_path=/m", "--rest_api_port=5", "--pin=false"],
        ["--model-name", "m", "--model-base-path", "/m", "--rest-api-port", "5", "--pin", "no"],
    ],
)
def test_serve_passes_settings_and_exits_with_the_servers_status(arguments: list[str], served: list[Settings]) -> None:
    assert _invoke("serve", *arguments)[0] == 7
    (settings,) = served
    assert (settings.models[0].name, settings.models[0].base_path) == ("m", "/m")
    assert settings.server.rest_api_port == 5
    assert not settings.workers.pin


def test_a_bool_alone_is_true_even_before_another_flag(served: list[Settings]) -> None:
    _invoke("serve", "--enable-serialization-as-tensor-content", "--model_base_path=/m")
    assert served[0].server.enable_serialization_as_tensor_content


def test_serve_reads_file_and_environment(tmp_path: Path, served: list[Settings]) -> None:
    (tmp_path / "server.toml").write_text("[server]\nport = 1\nrest_api_port = 2\n")
    _invoke(
        "serve", f"--config={tmp_path}/server.toml", "--model_base_path=/m", env={"RINGSERVE_PORT": "3"}
    )
    assert (served[0].server.port, served[0].server.rest_api_port) == (3, 2)


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_all_mistakes_are_told(command: list[str]) -> None:
    status, output = _invoke(*command, "--port=x", "--workers=-1")
    assert status == 78
    assert "3 mistakes" in output
    assert "--port: 'x'" in output
    assert "--workers: '-1'" in output
    assert "no model to serve" in output


def test_an_unknown_flag_is_answered_with_the_nearest() -> None:
    status, output = _invoke("serve", "--prot=1")
    assert status == 2
    assert "--port" in output


def test_a_taken_port_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_settings: Settings) -> int:
        raise supervisor.StartError("port 1 is taken")

    monkeypatch.setattr(supervisor, "run", run)
    assert _invoke("serve", "--model_base_path=/m") == (1, "ringserve: port 1 is taken\n")


def test_help_names_every_flag_and_the_precedence() -> None:
    status, output = _invoke("serve", "--help")
    assert status == 0
    for name in [row.flag for row in SETTINGS] + list(MODEL_FLAGS) + ["config"]:
        assert f"--{name} " in output
    assert output.index("1. the flag") < output.index("2. the environment") < output.index("3. the file")


def test_processes_are_not_advertised() -> None:
    output = _invoke("--help")[1]
    assert "serve" in output
    assert "broker" not in output
    assert _invoke("broker", "--help")[0] == 0


def test_config_check_says_what_follows(tmp_path: Path) -> None:
    status, output = _invoke("config", "check", f"--model_base_path={tmp_path}/gone", "--workers=3", "--frontends=2")
    assert status == 0
    assert "warning: model 'default': base path" in output
    assert "3 workers and 2 frontends" in output
    assert "result rings         3 ×" in output


def test_config_check_reads_model_config_files(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text('model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" } }')
    status, output = _invoke("config", "check", f"--model_config_file={path}")
    assert status == 0
    assert "model m: latest of /m\n" in output
    path.write_text('model_config_list { config { name: "m" base_path: "/m" } }')
    status, output = _invoke("config", "check", f"--model_config_file={path}")
    assert status == 78
    assert "model_config_file: Illegal setting neither" in output


def test_a_server_that_ended_itself_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_settings: Settings) -> int:
        raise supervisor.ServerFailed("UNKNOWN: 1 servable(s) did not become available")

    monkeypatch.setattr(supervisor, "run", run)
    expected = "ringserve: UNKNOWN: 1 servable(s) did not become available\n"
    assert _invoke("serve", "--model_base_path=/m") == (69, expected)


def test_config_show_is_the_file() -> None:
    assert _invoke("config", "show") == (0, reference.server_toml())


def test_version() -> None:
    assert _invoke("--version") == (0, f"ringserve {__version__}\n")


@pytest.mark.parametrize("words", [["serve", "--help"], ["broker", "--help"], ["--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """What makes `--help` instant, without a clock: none of the run-time libraries is imported, and for one command
    none of the others."""
    unwanted = {"tensorflow", "numpy", "zmq", "grpc", "uvloop", "asyncio", "google"}
    if len(words) > 1:
        unwanted |= {f"ringserve.commands.{name}" for name in ("bench", "doctor", "models")}
    code = (
        "import sys\nfrom ringserve.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"heavy = {unwanted!r} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ringserve", "--version"], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ringserve {__version__}\n"
