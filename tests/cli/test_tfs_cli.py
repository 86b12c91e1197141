"""`tensorflow_model_server` as a command: spec 1.1 (syntax), 1.3 (refusals and their order), 1.4 (what it says)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ringserve import supervisor, tfs_cli
from ringserve.config.schema import Settings
from ringserve.config.table import SETTINGS
from ringserve.tfs_cli import EXIT_FAILED, run
from ringserve.tfs_flags import EXTRA_FLAGS, TFS_FLAGS, parse, usage

_ROOT = Path(__file__).resolve().parents[2]
_MODEL = "--model_base_path=/models/m"


class Started(Exception):
    """The server would run now, with these settings."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings


def _serve(settings: Settings) -> int:
    raise Started(settings)


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


def test_our_own_settings_are_flags_where_they_have_a_name_of_their_own() -> None:
    parsed = parse(["--require_all_models", "--workers=3", "--host", "--model_version_policy=all", "--pin=no"])
    assert parsed.extra == {"require_all_models": "true", "workers": "3", "model_version_policy": "all", "pin": "no"}
    assert parsed.leftover == ["--host"]
    assert not set(EXTRA_FLAGS) & set(TFS_FLAGS)
    assert {row.flag for row in SETTINGS} <= set(EXTRA_FLAGS) | set(TFS_FLAGS)


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
    for name in (*TFS_FLAGS, *EXTRA_FLAGS):
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


def test_1_4_a_model_config_file_is_no_single_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.config"
    path.write_text('model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" } }')
    with pytest.raises(Started) as started:
        run([_MODEL, f"--model_config_file={path}"], {}, _serve)
    assert [model.base_path for model in started.value.settings.models] == ["/m"]
    assert "Building single" not in capsys.readouterr().err


def test_5_8_an_empty_model_config_starts_a_server_without_models(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.touch()
    with pytest.raises(Started) as started:
        run([f"--model_config_file={path}"], {}, _serve)
    assert started.value.settings.models == ()


# ------------------------------------------------------------------------------------------------------------ refusals

_SPLIT = "enable_large_batch_splitting { value: true } max_enqueued_batches { value: 0 }"
_LIST = 'model_config_list { config { name: "m" base_path: "%s" %s } }'


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the arguments below name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "bad": "improper model config list: {}",
        "empty": "",
        "good": _LIST % ("/m", 'model_platform: "tensorflow"'),
        "relative": _LIST % ("m", 'model_platform: "tensorflow"'),
        "no_platform": _LIST % ("/m", ""),
        "logging": _LIST % ("/m", 'model_platform: "tensorflow" logging_config {}'),
        "threads": "num_batch_threads { value: 0 }",
        "allowed": "max_batch_size { value: 8 } allowed_batch_sizes: 1 allowed_batch_sizes: 4",
        "negative": "batch_timeout_micros { value: -1 }",
        "splitting": _SPLIT,
    }.items():
        (tmp_path / name).write_text(text)


_BATCHING = [_MODEL, "--enable_batching"]


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
        (["--model_config_file=bad"], "INVALID_ARGUMENT: Invalid protobuf file: 'bad'"),
        ([_MODEL, "--model_config_file=none"], "NOT_FOUND: none; No such file or directory"),
        (
            ["--model_config_file=relative"],
            "INVALID_ARGUMENT: Expected model m to have an absolute path or URI; got base_path()=m",
        ),
        (
            ["--model_config_file=no_platform"],
            "INVALID_ARGUMENT: Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        ),
        (["--model_config_file=logging"], "INVALID_ARGUMENT: No request-logger-creator provided."),
        (
            [_MODEL, "--batching_parameters_file=/x"],
            "INVALID_ARGUMENT: server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        # The model config is read before the batching flags are compared.
        (
            ["--model_config_file=bad", "--batching_parameters_file=/x", "--use_alts_credentials"],
            "INVALID_ARGUMENT: Invalid protobuf file: 'bad'",
        ),
        ([*_BATCHING, "--batching_parameters_file=none"], "NOT_FOUND: none; No such file or directory"),
        ([*_BATCHING, "--batching_parameters_file=bad"], "INVALID_ARGUMENT: Invalid protobuf file: 'bad'"),
        (
            [*_BATCHING, "--batching_parameters_file=threads"],
            "INVALID_ARGUMENT: num_batch_threads must be positive; was 0",
        ),
        (
            [*_BATCHING, "--batching_parameters_file=allowed"],
            "INVALID_ARGUMENT: Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            [*_BATCHING, "--batching_parameters_file=negative"],
            "INVALID_ARGUMENT: batch_timeout_micros must be non-negative; was -1",
        ),
        (
            [*_BATCHING, "--batching_parameters_file=splitting"],
            "INVALID_ARGUMENT: max_enqueued_batches must be positive; was 0",
        ),
        (
            ["--model_base_path=models/m"],
            "INVALID_ARGUMENT: Expected model default to have an absolute path or URI; got base_path()=models/m",
        ),
        ([_MODEL, "--port=70000"], "INVALID_ARGUMENT: --port: 70000 is not a number from 0 to 65535"),
        ([_MODEL, "--port=-1"], "INVALID_ARGUMENT: --port: -1 is not a number from 0 to 65535"),
        (
            [_MODEL, "--grpc_channel_arguments=a=1,b"],
            "INVALID_ARGUMENT: --grpc_channel_arguments: 'b' is not of the form name=value",
        ),
        (
            [_MODEL, "--rest_api_port=1", "--monitoring_config_file=bad"],
            "INVALID_ARGUMENT: Invalid protobuf file: 'bad'",
        ),
        ([_MODEL, "--tensorflow_session_config_file=bad"], "INVALID_ARGUMENT: Invalid protobuf file: 'bad'"),
        (
            [_MODEL, "--ssl_config_file=none"],
            "INVALID_ARGUMENT: ssl_config_file: none; No such file or directory",
        ),
        ([_MODEL, "--workers=many"], "INVALID_ARGUMENT: --workers: 'many' is not a number from 0 to 1024"),
        (
            ["--model_base_path=gs://b/m"],
            "INVALID_ARGUMENT: model 'default': base_path 'gs://b/m' is not a folder of this machine",
        ),
    ],
)
def test_1_3_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refusal(capsys, *arguments) == expected


def test_1_3_three_parallelism_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")]
    assert _refusal(capsys, _MODEL, *flags).startswith(
        "INVALID_ARGUMENT: Either configure server_options.tensorflow_session_parallelism or ("
    )


def test_1_3_standard_error_says_where_a_model_config_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--model_config_file=bad"], {}, _serve) == EXIT_FAILED
    assert capsys.readouterr().err.startswith(
        "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: Message type "
    )


def test_the_environment_may_name_the_models() -> None:
    for environ in ({"RINGSERVE_MODEL_BASE_PATH": "/models/m"}, {"RINGSERVE_MODEL_CONFIG_FILE": "good"}):
        with pytest.raises(Started) as started:
            run([], environ, _serve)
        assert len(started.value.settings.models) == 1


# ------------------------------------------------------------------------------------------------------ how it can end


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (supervisor.StartError("port 1 is taken"), "UNAVAILABLE: port 1 is taken"),
        (
            supervisor.ServerFailed("UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 1} ..."),
            "UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 1} ...",
        ),
    ],
)
def test_1_3_a_server_that_cannot_start(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def supervise(_settings: Settings) -> int:
        raise error

    monkeypatch.setattr(supervisor, "run", supervise)
    assert run([_MODEL], {}, tfs_cli._serve) == EXIT_FAILED
    assert capsys.readouterr().out == f"Failed to start server. Error: {expected}\n"


def test_the_command_itself_exits_with_255() -> None:
    code = "from ringserve.tfs_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert done.stdout.startswith("Failed to start server. Error: INVALID_ARGUMENT: Both")
