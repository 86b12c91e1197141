"""Monitoring (spec 8.1), the session's threads (1.2), gRPC's channel arguments (1.2, 9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.config.text_protos import ModelConfigError
from ringserve.config.tfs_files import (
    ChannelArguments,
    SessionConfig,
    parse_channel_arguments,
    read_metrics_path,
    read_session_config,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config: { enable: true, path: "/metrics" }', "/metrics"),
        ('prometheus_config { enable: true path: "metrics" }', "/metrics"),
        ('prometheus_config { path: "/metrics" }', ""),
        ("", ""),
    ],
)
def test_8_1_the_metrics_path(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "monitoring"
    path.write_text(text)
    assert read_metrics_path(str(path)) == expected


def test_8_1_a_monitoring_file_that_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "monitoring"
    path.write_text("prometheus { enable: true }")
    with pytest.raises(ModelConfigError, match="Invalid protobuf file"):
        read_metrics_path(str(path))


def test_1_2_the_sessions_threads(tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_text(
        "intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 2 gpu_options { allow_growth: true } "
        'graph_options { rewrite_options { optimizers: "function" } }'
    )
    assert read_session_config(str(path)) == SessionConfig(3, 2, ("gpu_options", "graph_options"))
    path.write_text("intra_op_parallelism_threads: -1")
    assert read_session_config(str(path)) == SessionConfig(0, 0, ())
    path.write_text("threads: 3")
    with pytest.raises(ModelConfigError) as caught:
        read_session_config(str(path))
    assert caught.value.detail.startswith("Error parsing text-format tensorflow.ConfigProto: 1:1: ")


@pytest.mark.parametrize(
    ("text", "settings", "without_effect"),
    [
        ("grpc.max_connection_age_ms=2000", {"grpc_connection_age_ms_max": 2000}, ()),
        ("grpc.max_connection_age_ms=2147483647", {"grpc_connection_age_ms_max": 0}, ()),
        (
            "grpc.max_receive_message_length=5000,grpc.max_concurrent_streams=8",
            {"message_bytes_max": 5000, "concurrent_streams_max": 8},
            (),
        ),
        ("grpc.max_receive_message_length=-1", {"message_bytes_max": 2147483647}, ()),
        ("grpc.keepalive_time_ms=10,x=y=z,", {}, ("grpc.keepalive_time_ms", "x")),
        ("", {}, ()),
    ],
)
def test_1_2_channel_arguments(text: str, settings: dict[str, int], without_effect: tuple[str, ...]) -> None:
    assert parse_channel_arguments(text) == ChannelArguments(settings, without_effect)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc.max_concurrent_streams", "'grpc.max_concurrent_streams' is not of the form name=value"),
        ("a=1,b", "'b' is not of the form name=value"),
        ("grpc.max_concurrent_streams=many", "grpc.max_concurrent_streams: 'many' is not a number"),
    ],
)
def test_1_2_channel_arguments_that_end_the_start(text: str, expected: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        parse_channel_arguments(text)
    assert caught.value.status == f"INVALID_ARGUMENT: --grpc_channel_arguments: {expected}"
