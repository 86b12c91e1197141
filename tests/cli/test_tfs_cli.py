"""`tensorflow_model_server`: TF Serving's syntax, texts and exit statuses, and what becomes of each flag."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ringserve.config.schema import Settings
from ringserve.tfs_cli import EXIT_FAILED, run, settings_of, warnings_of
from ringserve.tfs_flags import TFS_FLAGS, Treatment, parse, usage

_ROOT = Path(__file__).resolve().parents[2]
_MODEL = "--model_base_path=/models/m"


class Started(Exception):
    """The server would run now, with these settings."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings


def _serve(settings: Settings) -> int:
    raise Started(settings)


def _settings(*arguments: str, environ: dict[str, str] | None = None) -> Settings:
    return settings_of(parse([_MODEL, *arguments]), environ or {})


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments), {}, _serve) == EXIT_FAILED
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("Failed to start server. Error: "))
    return line.removeprefix("Failed to start server. Error: ")


# ------------------------------------------------------------------------------------------------------------- syntax


def test_only_the_form_with_an_equals_sign_is_parsed() -> None:
    parsed = parse(["--port", "9000", "-port=9001", "--model_name=m", "--rest_api_port=1=2"])
    assert parsed["port"] == 8500
    assert parsed["model_name"] == "m"
    assert parsed.leftover == ["--port", "9000", "-port=9001"]
    assert parsed.errors == ["Couldn't interpret value 1=2 for flag rest_api_port."]


def test_two_dashes_end_the_flags_and_the_last_value_counts() -> None:
    parsed = parse(["--port=1", "--port=2", "--", "--port=3"])
    assert parsed["port"] == 2
    assert parsed.leftover == ["--port=3"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--enable_batching", True),
        ("--enable_batching=TRUE", True),
        ("--enable_batching=1", True),
        ("--enable_batching=False", False),
        ("--enable_batching=0", False),
        ("--port= 12", 12),
        ("--port=-1", -1),
        ("--port=+7", 7),
        ("--load_retry_interval_micros=9223372036854775807", 2**63 - 1),
        ("--per_process_gpu_memory_fraction=.5", 0.5),
        ("--per_process_gpu_memory_fraction=1e-1", 0.1),
        ("--model_name=", ""),
    ],
)
def test_values(argument: str, expected: object) -> None:
    parsed = parse([argument])
    assert not parsed.errors
    assert list(parsed.given.values()) == [expected]


@pytest.mark.parametrize(
    "argument",
    [
        "--enable_batching=yes",
        "--enable_batching=",
        "--port=",
        "--port=12 ",
        "--port=1.5",
        "--port=0x10",
        "--port=2147483648",
        "--load_retry_interval_micros=9223372036854775808",
        "--per_process_gpu_memory_fraction=half",
    ],
)
def test_values_that_end_the_start(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([_MODEL, argument], {}, _serve) == EXIT_FAILED
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: tensorflow_model_server\nFlags:\n")
    assert "Couldn't interpret value" in captured.err


def test_no_form_with_no() -> None:
    assert parse(["--noenable_batching"]).leftover == ["--noenable_batching"]


# ----------------------------------------------------------------------------------------------------------- the frame


def test_an_unknown_argument_is_printed_and_the_server_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Started):
        run([_MODEL, "--prot=1", "more"], {}, _serve)
    out = capsys.readouterr().out
    assert out.startswith("unknown argument: --prot=1\nusage: tensorflow_model_server\n")
    assert "more" not in out.splitlines()[0]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"], {}, _serve) == EXIT_FAILED
    out = capsys.readouterr().out
    assert out == usage()
    for name in TFS_FLAGS:
        assert f"\t--{name}=" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], {}, _serve) == 0
    server, library = capsys.readouterr().out.splitlines()
    assert server.startswith("TensorFlow ModelServer: ")
    assert library.startswith("TensorFlow Library: ")


def test_what_the_start_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Started):
        run([_MODEL, "--model_name=m"], {}, _serve)
    said = "Building single TensorFlow model file config:  model_name: m model_base_path: /models/m\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--port=0", _MODEL],
            "INVALID_ARGUMENT: At least one of server_options.grpc_port or server_options.grpc_socket_path must be "
            "set.",
        ),
        (
            [],
            "INVALID_ARGUMENT: Both server_options.model_base_path and server_options.model_config_file are empty!",
        ),
        (
            [_MODEL, "--use_alts_credentials", "--ssl_config_file=/x"],
            "INVALID_ARGUMENT: Either use_alts_credentials must be false or ssl_config_file must be empty.",
        ),
        (
            [_MODEL, "--batching_parameters_file=/x"],
            "INVALID_ARGUMENT: server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        (
            ["--model_base_path=models/m"],
            "INVALID_ARGUMENT: Expected model default to have an absolute path or URI; got base_path()=models/m",
        ),
        ([_MODEL, "--port=70000"], "INVALID_ARGUMENT: --port: 70000 is not a number from 0 to 65535"),
    ],
)
def test_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refusal(capsys, *arguments) == expected


def test_three_parallelism_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")]
    assert _refusal(capsys, _MODEL, *flags).startswith(
        "INVALID_ARGUMENT: Either configure server_options.tensorflow_session_parallelism or ("
    )


# ------------------------------------------------------------------------------------------------ what becomes of them


def test_defaults_are_tf_servings() -> None:
    settings = _settings()
    assert settings.server.port == 8500
    assert settings.server.rest_api_port == 0
    assert settings.models[0].name == "default"
    assert settings.models[0].base_path == "/models/m"


def test_mapped_flags() -> None:
    settings = _settings(
        "--port=1", "--rest_api_port=2", "--rest_api_timeout_in_ms=-5", "--saved_model_tags=serve,gpu",
        "--enable_serialization_as_tensor_content", "--tensorflow_intra_op_parallelism=3", "--model_name=n",
    )  # fmt: skip
    assert (settings.server.port, settings.server.rest_api_port, settings.server.rest_timeout_ms) == (1, 2, 0)
    assert settings.workers.saved_model_tags == "serve,gpu"
    assert settings.server.enable_serialization_as_tensor_content
    assert settings.workers.threads_per_worker == 3
    assert settings.models[0].name == "n"


@pytest.mark.parametrize(
    ("arguments", "policy", "rows"),
    [([], "adaptive", 128), (["--enable_batching"], "timeout", 1000), (["--enable_batching=false"], "none", 128)],
)
def test_batching(arguments: list[str], policy: str, rows: int) -> None:
    batching = _settings(*arguments).models[0].batching
    assert (batching.policy, batching.batch_rows_max) == (policy, rows)


def test_the_environment_sets_what_flags_do_not() -> None:
    environ = {"RINGSERVE_WORKERS": "3", "RINGSERVE_REST_API_PORT": "5", "RINGSERVE_PORT": "6"}
    settings = _settings("--port=7", environ=environ)
    assert (settings.workers.workers, settings.server.rest_api_port, settings.server.port) == (3, 5, 7)


def test_equal_ports_turn_rest_off_with_a_word() -> None:
    arguments = [_MODEL, "--port=5", "--rest_api_port=5"]
    assert _settings(*arguments).server.rest_api_port == 0
    (warning,) = warnings_of(parse(arguments))
    assert "HTTP/REST API server is not started" in warning


def test_a_negative_rest_port_is_no_rest_port() -> None:
    assert _settings("--rest_api_port=-1").server.rest_api_port == 0


def _other_value(name: str) -> str:
    flag = TFS_FLAGS[name]
    return {"bool": str(not flag.default).lower(), "string": "/x", "float": "0.25"}.get(flag.kind, "3")


@pytest.mark.parametrize("name", TFS_FLAGS)
def test_every_flag_is_treated_as_its_row_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = TFS_FLAGS[name]
    arguments = [_MODEL, f"--{name}={_other_value(name)}"]
    needed = ["--enable_batching"] if name == "batching_parameters_file" else []
    if name == "version":
        return
    if flag.treatment is Treatment.REFUSE:
        assert _refusal(capsys, *arguments) == f"UNIMPLEMENTED: --{name}: {flag.about}"
        return
    with pytest.raises(Started) as started:
        run(arguments + needed, {}, _serve)
    changed = started.value.settings != _settings(*needed)
    assert (flag.treatment is Treatment.MAP) == changed
    warned = f"warning: --{name}: {flag.about}\n" in capsys.readouterr().err
    assert warned == (flag.treatment is Treatment.WARN)


@pytest.mark.parametrize("name", TFS_FLAGS)
def test_a_default_spelt_out_is_neither_warned_of_nor_refused(name: str) -> None:
    flag = TFS_FLAGS[name]
    if flag.default != "" and name not in ("version", "enable_profiler"):
        parsed = parse([_MODEL, f"--{name}={str(flag.default).lower()}"])
        assert warnings_of(parsed) == []
        settings_of(parsed, {})


def test_a_profiler_asked_for_is_warned_of() -> None:
    assert warnings_of(parse(["--enable_profiler"])) == ["--enable_profiler: there is no profiler service"]


def test_the_command_itself_exits_with_255() -> None:
    code = "from ringserve.tfs_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert done.stdout.startswith("Failed to start server. Error: INVALID_ARGUMENT: Both")
