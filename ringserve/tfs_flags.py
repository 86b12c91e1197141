"""Every flag of `tensorflow_model_server`: its type, default, and what becomes of it here; and how TF Serving parses.

Treatments: MAP, it becomes a setting; ACCEPT, it changes nothing that a client or operator could see here; WARN, it is
not supported and the server runs without it; REFUSE, running without it would be wrong, so the server does not.

Our own settings are flags here, too, under their own names, where TF Serving has none of that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ringserve.config.schema import MODEL_FLAGS
from ringserve.config.table import SETTINGS


class Treatment(Enum):
    """What a flag does when it is set to something other than its default."""

    MAP = "becomes a setting"
    ACCEPT = "accepted without effect"
    WARN = "accepted with a warning"
    REFUSE = "refused"


Value = bool | int | float | str


@dataclass(frozen=True)
class TfsFlag:
    """One flag. kind: TensorFlow's name of its type. about: the usage text; for WARN and REFUSE also the reason."""

    name: str
    kind: str
    default: Value
    treatment: Treatment
    about: str


MAP, ACCEPT, WARN, REFUSE = Treatment.MAP, Treatment.ACCEPT, Treatment.WARN, Treatment.REFUSE
_ASYNC = "no effect: requests wait on an event loop, not in threads, and none is refused for want of one"
_THREADS = "threads of one worker; the largest of these flags counts"
_XLA = "not supported: use the environment's TF_XLA_FLAGS"

TFS_FLAGS: Final[dict[str, TfsFlag]] = {
    flag.name: flag
    for flag in (
        TfsFlag("port", "int32", 8500, MAP, "TCP port for gRPC; 0: none, if there is a grpc_socket_path"),
        TfsFlag("grpc_socket_path", "string", "", MAP, "also listen on this UNIX socket for gRPC"),
        TfsFlag("rest_api_port", "int32", 0, MAP, "TCP port for HTTP/REST; 0: no REST and no metrics"),
        TfsFlag("rest_api_num_threads", "int32", 0, ACCEPT, _ASYNC),
        TfsFlag("rest_api_timeout_in_ms", "int32", 30000, MAP, "time limit of a REST request; 0 or less: none"),
        TfsFlag("rest_api_enable_cors_support", "bool", False, MAP, "CORS headers in REST answers"),
        TfsFlag(
            "enable_batching",
            "bool",
            False,
            MAP,
            "not given: join whatever waits when a worker is free; true: TF Serving's batching; false: never join",
        ),
        TfsFlag("batching_parameters_file", "string", "", MAP, "BatchingParameters, text format"),
        TfsFlag(
            "enable_per_model_batching_parameters",
            "bool",
            False,
            MAP,
            "with enable_batching: read batching_params.pbtxt of each version",
        ),
        TfsFlag(
            "allow_version_labels_for_unavailable_models",
            "bool",
            False,
            MAP,
            "a new label may point to a version that is not available",
        ),
        TfsFlag("model_config_file", "string", "", MAP, "ModelServerConfig, text format or JSON"),
        TfsFlag("model_config_file_poll_wait_seconds", "int32", 0, MAP, "how often it is read again; 0 or less: never"),
        TfsFlag("model_name", "string", "default", MAP, "name of the one model, without model_config_file"),
        TfsFlag("model_base_path", "string", "", MAP, "its base path"),
        TfsFlag("num_load_threads", "int32", 0, ACCEPT, "no effect: models load in workers, and stop nothing else"),
        TfsFlag("num_unload_threads", "int32", 0, ACCEPT, "no effect: models go with their workers"),
        TfsFlag("max_num_load_retries", "int32", 5, MAP, "how often a failed load is repeated"),
        TfsFlag(
            "load_retry_interval_micros", "int64", 60_000_000, MAP, "longest pause before that; the first are shorter"
        ),
        TfsFlag(
            "file_system_poll_wait_seconds",
            "int32",
            1,
            MAP,
            "how often the base paths are looked at; 0: once; negative: never, until asked to",
        ),
        TfsFlag("flush_filesystem_caches", "bool", True, ACCEPT, "no effect"),
        TfsFlag("tensorflow_session_parallelism", "int64", 0, MAP, _THREADS),
        TfsFlag("tensorflow_intra_op_parallelism", "int64", 0, MAP, _THREADS),
        TfsFlag("tensorflow_inter_op_parallelism", "int64", 0, MAP, _THREADS),
        TfsFlag(
            "tensorflow_session_config_file",
            "string",
            "",
            MAP,
            "ConfigProto, text format: its numbers of threads count where no flag gives them",
        ),
        TfsFlag(
            "per_process_gpu_memory_fraction",
            "float",
            0.0,
            MAP,
            "largest part of a GPU's memory that one worker takes, as it needs it; 0: no limit",
        ),
        TfsFlag("platform_config_file", "string", "", REFUSE, "other platforms than SavedModels are not supported"),
        TfsFlag("saved_model_tags", "string", "serve", MAP, "comma-separated tags of the graph to load"),
        TfsFlag("use_alts_credentials", "bool", False, REFUSE, "Google ALTS is not supported"),
        TfsFlag("ssl_config_file", "string", "", MAP, "SSLConfig, text format: TLS for gRPC"),
        TfsFlag(
            "grpc_channel_arguments",
            "string",
            "",
            MAP,
            "name=value,...: grpc.max_connection_age_ms, grpc.max_receive_message_length, grpc.max_concurrent_streams",
        ),
        TfsFlag("grpc_max_threads", "int32", 0, ACCEPT, _ASYNC),
        TfsFlag("enable_model_warmup", "bool", True, MAP, "warm models up before they serve"),
        TfsFlag("num_request_iterations_for_warmup", "int32", 0, MAP, "how often each warm-up record is run"),
        TfsFlag("version", "bool", False, MAP, "print the versions and exit"),
        TfsFlag("monitoring_config_file", "string", "", MAP, "MonitoringConfig, text format: the metrics page"),
        TfsFlag("remove_unused_fields_from_bundle_metagraph", "bool", True, ACCEPT, "no effect"),
        TfsFlag("prefer_tflite_model", "bool", False, MAP, "serve model.tflite where a version has one"),
        TfsFlag("num_tflite_pools", "int32", 0, ACCEPT, "no effect: each worker has an interpreter of its own"),
        TfsFlag(
            "num_tflite_interpreters_per_pool",
            "int32",
            1,
            WARN,
            "not supported: batches of TFLite models are made as for any model",
        ),
        TfsFlag("enable_signature_method_name_check", "bool", False, MAP, "refuse signatures made for another call"),
        TfsFlag("xla_cpu_compilation_enabled", "bool", False, WARN, _XLA),
        TfsFlag("xla_gpu_compilation_enabled", "bool", False, WARN, _XLA),
        TfsFlag("enable_profiler", "bool", True, MAP, "tensorflow.ProfilerService"),
        TfsFlag("thread_pool_factory_config_file", "string", "", WARN, "custom thread pools are not supported"),
        TfsFlag("mixed_precision", "string", "", WARN, "automatic mixed precision is not supported"),
        TfsFlag("skip_initialize_tpu", "bool", False, ACCEPT, "no effect: there is no TPU support"),
        TfsFlag("enable_grpc_healthcheck_service", "bool", False, MAP, "grpc.health.v1.Health"),
        TfsFlag("enable_serialization_as_tensor_content", "bool", False, MAP, "raw bytes in gRPC answers"),
    )
}

#: Our own flags here: name -> (is it a bool, what it is about). Their values stay text.
EXTRA_FLAGS: Final[dict[str, tuple[bool, str]]] = {
    name: about
    for name, about in (
        *((row.flag, (row.kind == "bool", row.why)) for row in SETTINGS),
        *((name, (False, why)) for name, why in MODEL_FLAGS.items()),
    )
    if name not in TFS_FLAGS
}

_BITS: Final = {"int32": 31, "int64": 63}
_INTEGER: Final = re.compile(r"\s*[+-]?\d+", re.ASCII)
_FLOAT: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass
class Parsed:
    """given: TF Serving's flags that were set, by name. extra: our own, their values as text. leftover: arguments that
    are no flag. errors: values that no flag of their type takes; any of them ends the start."""

    given: dict[str, Value] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    leftover: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Value:
        return self.given.get(name, TFS_FLAGS[name].default)

    def text(self, name: str) -> str:
        return str(self[name])

    def number(self, name: str) -> int:
        return int(self[name])


def parse(arguments: list[str]) -> Parsed:
    """Parse as TensorFlow's command_line_flags does: only `--name=value`, and a bare `--name` for a bool; `--` ends the
    flags; the last of repeated flags counts; what is not understood is left over."""
    parsed = Parsed()
    for position, argument in enumerate(arguments):
        if argument == "--":
            parsed.leftover += arguments[position + 1 :]
            break
        name, equals, text = argument.removeprefix("--").partition("=")
        flag = TFS_FLAGS.get(name) if argument.startswith("--") else None
        if argument.startswith("--") and name in EXTRA_FLAGS and (equals or EXTRA_FLAGS[name][0]):
            parsed.extra[name] = text if equals else "true"
            continue
        if flag is None or (not equals and flag.kind != "bool"):
            parsed.leftover.append(argument)
            continue
        value = _value(flag.kind, text if equals else "true")
        if value is None:
            parsed.errors.append(f"Couldn't interpret value {text} for flag {name}.")
        else:
            parsed.given[name] = value
    return parsed


def _value(kind: str, text: str) -> Value | None:
    """`text` as that type, None when it is none. Leading blanks are allowed, trailing ones are not (C's scanf)."""
    if kind == "string":
        return text
    if kind == "bool":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if kind == "float":
        return float(text) if _FLOAT.fullmatch(text) else None
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    limit = 2 ** _BITS[kind]
    return value if -limit <= value < limit else None


def usage() -> str:
    """The usage text, in TensorFlow's form."""
    lines = ["usage: tensorflow_model_server", "Flags:"]
    for flag in TFS_FLAGS.values():
        default = f'"{flag.default}"' if flag.kind == "string" else str(flag.default).lower()
        lines.append(f"\t--{flag.name}={default}".ljust(34) + f"\t{flag.kind}\t{flag.about}")
    lines.append("Flags that TensorFlow Serving does not have:")
    lines += [f"\t--{name}=".ljust(34) + f"\t{about}" for name, (_, about) in EXTRA_FLAGS.items()]
    return "\n".join(lines) + "\n"
