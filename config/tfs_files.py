"""The smaller files that `tensorflow_model_server` is given: monitoring, the session's threads, gRPC's arguments.

(The argument list is no file, but it is read as one: text in, settings out.)
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ringserve.config.config_protos import MonitoringConfig
from ringserve.config.protos import ConfigProto
from ringserve.config.schema import INT_MAX, Server
from ringserve.config.text_protos import invalid, parse_text, read_message


def read_metrics_path(path: str) -> str:
    """The REST path of the metrics page by a MonitoringConfig file, empty where it turns them off. Raises
    ModelConfigError."""
    prometheus = read_message(path, lambda text: parse_text(text, MonitoringConfig)).prometheus_config
    if not prometheus.enable:
        return ""
    # TF Serving matches the path as it is written, so one without a slash is never found.
    return "/" + prometheus.path.removeprefix("/") if prometheus.path else Server().metrics_path


class SessionConfig(NamedTuple):
    """intra, inter: threads, 0 where the file leaves them open. others: names of the fields that it sets besides."""

    intra: int
    inter: int
    others: tuple[str, ...]


def read_session_config(path: str) -> SessionConfig:
    """TensorFlow's ConfigProto in the text format. Raises ModelConfigError."""
    config: Any = read_message(path, lambda text: parse_text(text, ConfigProto))
    threads = ("intra_op_parallelism_threads", "inter_op_parallelism_threads")
    intra, inter = (max(0, getattr(config, name)) for name in threads)
    others = tuple(field.name for field, _ in config.ListFields() if field.name not in threads)
    return SessionConfig(intra, inter, others)


#: gRPC's channel arguments that have a setting here.
_ARGUMENTS: Final = {
    "grpc.max_connection_age_ms": "grpc_connection_age_ms_max",
    "grpc.max_receive_message_length": "message_bytes_max",
    "grpc.max_message_length": "message_bytes_max",
    "grpc.max_concurrent_streams": "concurrent_streams_max",
}


class ChannelArguments(NamedTuple):
    """settings: by flag. without_effect: names of the arguments that change nothing here."""

    settings: dict[str, int]
    without_effect: tuple[str, ...]


def parse_channel_arguments(text: str) -> ChannelArguments:
    """`key=value,key=value`. Raises ModelConfigError for an entry without `=`, and for a value of ours that is no
    number (gRPC itself would go on without it)."""
    settings: dict[str, int] = {}
    without_effect = []
    for entry in filter(None, text.split(",")):
        key, equals, value = entry.partition("=")
        if not equals:
            raise invalid(f"--grpc_channel_arguments: {entry!r} is not of the form name=value")
        if key not in _ARGUMENTS:
            without_effect.append(key)
            continue
        try:
            number = int(value)
        except ValueError:
            raise invalid(f"--grpc_channel_arguments: {key}: {value!r} is not a number") from None
        if number >= INT_MAX or number < 0:
            # gRPC's words for "no limit": -1, and the largest of its numbers.
            number = 0 if key == "grpc.max_connection_age_ms" else INT_MAX
        settings[_ARGUMENTS[key]] = number
    return ChannelArguments(settings, tuple(without_effect))
