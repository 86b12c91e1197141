"""What becomes of each flag of `tensorflow_model_server`: spec 1.2, row by row; 6.1 (batching), 8.1 (metrics), 9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringserve.config import tls
from ringserve.config.cpus import usable_cpus
from ringserve.config.schema import Batching, Settings
from ringserve.config.table import SETTINGS
from ringserve.tfs_flags import TFS_FLAGS, Treatment, parse
from ringserve.tfs_settings import Plan, StartFailure, plan

_MODEL = "--model_base_path=/models/m"
_SECTIONS = {row.key: row.section for row in SETTINGS}


def _plan(*arguments: str, environ: dict[str, str] | None = None) -> Plan:
    return plan(parse([_MODEL, *arguments]), environ or {})


def _settings(*arguments: str, environ: dict[str, str] | None = None) -> Settings:
    return _plan(*arguments, environ=environ).settings


def _value(settings: Settings, key: str) -> Any:
    """A setting by its key, or the name or base path of the one model."""
    if key in _SECTIONS:
        return getattr(getattr(settings, _SECTIONS[key]), key)
    (model,) = settings.models
    return getattr(model, key)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the arguments below name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tls, "read_ssl_config", lambda path: None)
    for name, text in {
        "models": 'model_config_list { config { name: "n" base_path: "/n" model_platform: "tensorflow" } }',
        "batching": "max_batch_size { value: 32 } batch_timeout_micros { value: 9 } num_batch_threads { value: 3 }",
        "monitoring": 'prometheus_config { enable: true path: "/metrics" }',
        "session": "intra_op_parallelism_threads: 3 allow_soft_placement: true",
        "bad": "nonsense",
    }.items():
        (tmp_path / name).write_text(text)


def test_1_2_defaults_are_tf_servings() -> None:
    settings = _settings()
    expected = {
        "port": 8500,
        "rest_api_port": 0,
        "metrics_path": "",
        "rest_admin": "off",
        "enable_grpc_healthcheck_service": False,
        "enable_grpc_reflection": True,
        "rest_timeout_ms": 30_000,
        "file_system_poll_wait_seconds": 1,
        "max_num_load_retries": 5,
        "load_retry_ms_max": 60_000,
        "model_config_file_poll_wait_seconds": 0,
        "policy": "adaptive",
        "require_all_models": False,
        "name": "default",
        "base_path": "/models/m",
    }
    assert {key: _value(settings, key) for key in expected} == expected


_REST = "--rest_api_port=1"
_BATCHING = "--enable_batching"

#: Flag -> its arguments, and what they change: settings by key (none: nothing changes). A flag whose treatment is WARN
#: or REFUSE needs no more than an argument.
_ROWS: dict[str, list[tuple[list[str], dict[str, Any]]]] = {
    "port": [
        (["--port=7"], {"port": 7}),
        (["--port=0", "--grpc_socket_path=s"], {"port": -1, "grpc_socket_path": "s"}),
    ],
    "grpc_socket_path": [(["--grpc_socket_path=/tmp/s"], {"grpc_socket_path": "/tmp/s"})],
    "rest_api_port": [
        (["--rest_api_port=7"], {"rest_api_port": 7}),
        (["--rest_api_port=-1"], {}),
        (["--rest_api_port=8500"], {}),
    ],
    "rest_api_num_threads": [(["--rest_api_num_threads=1"], {})],
    "rest_api_timeout_in_ms": [
        (["--rest_api_timeout_in_ms=5"], {"rest_timeout_ms": 5}),
        (["--rest_api_timeout_in_ms=-5"], {"rest_timeout_ms": 0}),
    ],
    "rest_api_enable_cors_support": [(["--rest_api_enable_cors_support"], {"rest_api_enable_cors_support": True})],
    "enable_batching": [
        (["--enable_batching=false"], {"policy": "none"}),
        # The rest of 6.1's defaults: test_6_1_defaults.
    ],
    "batching_parameters_file": [],  # test_6_1_a_file
    "enable_per_model_batching_parameters": [],  # test_6_6_...
    "allow_version_labels_for_unavailable_models": [
        (["--allow_version_labels_for_unavailable_models"], {"allow_version_labels_for_unavailable_models": True})
    ],
    "model_config_file": [],  # test_a_model_config_file
    "model_config_file_poll_wait_seconds": [
        (["--model_config_file_poll_wait_seconds=4"], {"model_config_file_poll_wait_seconds": 4}),
        (["--model_config_file_poll_wait_seconds=-4"], {}),
    ],
    "model_name": [(["--model_name=n"], {"name": "n"})],
    "model_base_path": [(["--model_base_path=/x"], {"base_path": "/x"})],
    "num_load_threads": [(["--num_load_threads=4"], {})],
    "num_unload_threads": [(["--num_unload_threads=4"], {})],
    "max_num_load_retries": [
        (["--max_num_load_retries=0"], {"max_num_load_retries": 0}),
        (["--max_num_load_retries=-1"], {"max_num_load_retries": 0}),
    ],
    "load_retry_interval_micros": [
        (["--load_retry_interval_micros=2000000"], {"load_retry_ms_max": 2000}),
        (["--load_retry_interval_micros=1"], {"load_retry_ms_max": 1}),
        (["--load_retry_interval_micros=-1"], {"load_retry_ms_max": 0}),
        (["--load_retry_interval_micros=9223372036854775807"], {"load_retry_ms_max": 2**31 - 1}),
    ],
    "file_system_poll_wait_seconds": [
        (["--file_system_poll_wait_seconds=5"], {"file_system_poll_wait_seconds": 5}),
        (["--file_system_poll_wait_seconds=0"], {"file_system_poll_wait_seconds": 0}),
        (["--file_system_poll_wait_seconds=-7"], {"file_system_poll_wait_seconds": -1}),
    ],
    "flush_filesystem_caches": [(["--flush_filesystem_caches=false"], {})],
    "tensorflow_session_parallelism": [(["--tensorflow_session_parallelism=3"], {"threads_per_worker": 3})],
    "tensorflow_intra_op_parallelism": [
        (
            ["--tensorflow_intra_op_parallelism=3", "--tensorflow_inter_op_parallelism=2"],
            {"threads_per_worker": 3},
        )
    ],
    "tensorflow_inter_op_parallelism": [(["--tensorflow_inter_op_parallelism=3"], {"threads_per_worker": 3})],
    "tensorflow_session_config_file": [
        (["--tensorflow_session_config_file=session"], {"threads_per_worker": 3}),
        (
            ["--tensorflow_session_config_file=session", "--tensorflow_intra_op_parallelism=2"],
            {"threads_per_worker": 2},
        ),
    ],
    "per_process_gpu_memory_fraction": [
        (["--per_process_gpu_memory_fraction=.5"], {"per_process_gpu_memory_fraction": 0.5})
    ],
    "platform_config_file": [(["--platform_config_file=/x"], {})],
    "saved_model_tags": [(["--saved_model_tags=serve,gpu"], {"saved_model_tags": "serve,gpu"})],
    "use_alts_credentials": [(["--use_alts_credentials"], {})],
    "ssl_config_file": [(["--ssl_config_file=/ssl"], {"ssl_config_file": "/ssl"})],
    "grpc_channel_arguments": [
        (["--grpc_channel_arguments=grpc.max_connection_age_ms=2000"], {"grpc_connection_age_ms_max": 2000}),
        (
            ["--grpc_channel_arguments=grpc.max_receive_message_length=5000,grpc.max_concurrent_streams=7"],
            {"message_bytes_max": 5000, "concurrent_streams_max": 7},
        ),
    ],
    "grpc_max_threads": [(["--grpc_max_threads=1"], {})],
    "enable_model_warmup": [
        (["--enable_model_warmup=false"], {"enable_model_warmup": False, "synthetic_warmup": False})
    ],
    "num_request_iterations_for_warmup": [
        (["--num_request_iterations_for_warmup=3"], {"num_request_iterations_for_warmup": 3}),
        (["--num_request_iterations_for_warmup=-3"], {}),
    ],
    "version": [],  # test_tfs_cli.py
    "monitoring_config_file": [
        ([_REST, "--monitoring_config_file=monitoring"], {"rest_api_port": 1, "metrics_path": "/metrics"}),
        # Without a REST port the file is not even read.
        (["--monitoring_config_file=monitoring"], {}),
        (["--monitoring_config_file=bad"], {}),
    ],
    "remove_unused_fields_from_bundle_metagraph": [(["--remove_unused_fields_from_bundle_metagraph=false"], {})],
    "prefer_tflite_model": [(["--prefer_tflite_model"], {"prefer_tflite_model": True})],
    "num_tflite_pools": [(["--num_tflite_pools=3"], {})],
    "num_tflite_interpreters_per_pool": [(["--num_tflite_interpreters_per_pool=3"], {})],
    "enable_signature_method_name_check": [
        (["--enable_signature_method_name_check"], {"enable_signature_method_name_check": True})
    ],
    "xla_cpu_compilation_enabled": [(["--xla_cpu_compilation_enabled"], {})],
    "xla_gpu_compilation_enabled": [(["--xla_gpu_compilation_enabled"], {})],
    "enable_profiler": [(["--enable_profiler=false"], {"enable_profiler": False}), (["--enable_profiler"], {})],
    "thread_pool_factory_config_file": [(["--thread_pool_factory_config_file=/x"], {})],
    "mixed_precision": [(["--mixed_precision=bfloat16"], {})],
    "skip_initialize_tpu": [(["--skip_initialize_tpu"], {})],
    "enable_grpc_healthcheck_service": [
        (["--enable_grpc_healthcheck_service"], {"enable_grpc_healthcheck_service": True})
    ],
    "enable_serialization_as_tensor_content": [
        (["--enable_serialization_as_tensor_content"], {"enable_serialization_as_tensor_content": True})
    ],
}


def test_1_2_every_flag_has_its_rows() -> None:
    assert set(_ROWS) == set(TFS_FLAGS)


def _changes(before: Settings, after: Settings) -> dict[str, Any]:
    keys = [*_SECTIONS, "name", "base_path"]
    return {key: _value(after, key) for key in keys if _value(after, key) != _value(before, key)}


@pytest.mark.parametrize(
    ("name", "arguments", "changes"),
    [(name, *row) for name, rows in _ROWS.items() for row in rows],
    ids=[" ".join(arguments) for rows in _ROWS.values() for arguments, _ in rows],
)
def test_1_2_what_becomes_of_a_flag(name: str, arguments: list[str], changes: dict[str, Any]) -> None:
    flag = TFS_FLAGS[name]
    if flag.treatment is Treatment.REFUSE:
        with pytest.raises(StartFailure) as caught:
            _settings(*arguments)
        assert str(caught.value) == f"UNIMPLEMENTED: --{name}: {flag.about}"
        return
    settings, warnings = _plan(*arguments)
    assert _changes(_settings(), settings) == changes
    assert (f"--{name}: {flag.about}" in warnings) == (flag.treatment is Treatment.WARN)


@pytest.mark.parametrize("name", TFS_FLAGS)
def test_a_default_spelt_out_is_neither_warned_of_nor_refused(name: str) -> None:
    flag = TFS_FLAGS[name]
    if flag.default != "" and name != "version":
        argument = f"--{name}={str(flag.default).lower()}"
        # --enable_batching=false says more than silence: see DESIGN.md.
        expected = {"policy": "none"} if name == "enable_batching" else {}
        settings, warnings = _plan(argument)
        assert (_changes(_settings(), settings), warnings) == (expected, [])


# ------------------------------------------------------------------------------------------------------------ batching


def test_6_1_defaults() -> None:
    assert _settings(_BATCHING).batching == Batching(
        policy="timeout",
        batch_rows_max=1000,
        request_rows_max=1000,
        batch_wait_us_max=0,
        queue_batches_max=10,
        batches_at_once_max=usable_cpus().count,
        split=False,
        pad_with="first",
    )
    assert _settings(_BATCHING).models[0].batching == _settings(_BATCHING).batching


def test_6_1_a_file() -> None:
    batching = _settings(_BATCHING, "--batching_parameters_file=batching").models[0].batching
    assert (batching.batch_rows_max, batching.batch_wait_us_max, batching.batches_at_once_max) == (32, 9, 3)


def test_6_1_a_large_queue_is_not_cut_by_our_own_bounds(tmp_path: Path) -> None:
    (tmp_path / "batching").write_text("max_batch_size { value: 9000 } max_enqueued_batches { value: 100 }")
    arguments = (_BATCHING, "--batching_parameters_file=batching")
    assert _settings(*arguments).batching.queue_rows_max == 900_000
    environ = {"RINGSERVE_QUEUE_ROWS_MAX": "10000"}
    assert _settings(*arguments, environ=environ).batching.queue_rows_max == 10_000


def test_6_6_per_model_parameters_need_batching() -> None:
    flag = "--enable_per_model_batching_parameters"
    settings, warnings = _plan(_BATCHING, flag)
    assert settings.lifecycle.enable_per_model_batching_parameters
    assert warnings == []
    settings, warnings = _plan(flag)
    assert not settings.lifecycle.enable_per_model_batching_parameters
    assert warnings == [f"{flag}: without --enable_batching it has no effect"]


# -------------------------------------------------------------------------------------------------------------- others


def test_a_model_config_file(tmp_path: Path) -> None:
    settings = _settings("--model_config_file=models", "--model_name=default", _BATCHING)
    (model,) = settings.models
    assert (model.name, model.base_path, model.batching) == ("n", "/n", settings.batching)
    assert settings.lifecycle.model_config_file == f"{tmp_path}/models"


def test_what_has_no_effect_is_named() -> None:
    assert _plan("--tensorflow_session_config_file=session").warnings == [
        "--tensorflow_session_config_file: allow_soft_placement has no effect"
    ]
    assert _plan("--grpc_channel_arguments=grpc.keepalive_time_ms=5").warnings == [
        "--grpc_channel_arguments: grpc.keepalive_time_ms has no effect"
    ]


def test_equal_ports_turn_rest_off_with_a_word() -> None:
    settings, warnings = _plan("--port=5", "--rest_api_port=5")
    assert settings.server.rest_api_port == 0
    assert warnings == ["rest_api_port cannot be same as port. HTTP/REST API server is not started."]


def test_the_environment_sets_what_flags_do_not() -> None:
    environ = {"RINGSERVE_WORKERS": "3", "RINGSERVE_REST_API_PORT": "5", "RINGSERVE_PORT": "6"}
    settings = _settings("--port=7", environ=environ)
    assert (settings.workers.workers, settings.server.rest_api_port, settings.server.port) == (3, 5, 7)


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [("rest_admin=local", "rest_admin", "local"), ("metrics_path=/m", "metrics_path", "/m")],
)
def test_what_tf_serving_has_not_may_be_asked_for(flag: str, key: str, value: str) -> None:
    assert _value(_settings(f"--{flag}"), key) == value
    name, _, text = flag.partition("=")
    assert _value(_settings(environ={f"RINGSERVE_{name.upper()}": text}), key) == value


def test_our_own_flags_beat_the_environment() -> None:
    settings = _settings(
        "--require_all_models", "--host=127.0.0.1", "--workers=2", "--model_version_policy=latest:2",
        environ={"RINGSERVE_WORKERS": "3"},
    )  # fmt: skip
    assert (settings.lifecycle.require_all_models, settings.server.host) == (True, "127.0.0.1")
    assert (settings.workers.workers, settings.models[0].versions) == (2, "latest:2")


def test_8_1_metrics_with_the_rest_port_of_the_environment() -> None:
    environ = {"RINGSERVE_REST_API_PORT": "5"}
    assert _settings("--monitoring_config_file=monitoring", environ=environ).server.metrics_path == "/metrics"
