"""What `tensorflow_model_server`'s flags and the files they name mean as settings of ours, checked in its order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from ringserve.config.cpus import usable_cpus
from ringserve.config.schema import INT_MAX, Batching, Settings
from ringserve.config.table import SETTINGS
from ringserve.tfs_flags import TFS_FLAGS, Parsed, Treatment, Value

_PARALLELISM: Final = (
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
)

#: Where TF Serving's defaults are not ours. The environment and our own flags may say otherwise.
_DEFAULTS: Final = {
    "rest_api_port": 0,
    "rest_admin": "off",
    "metrics_path": "",
    "enable_grpc_healthcheck_service": False,
    "model_name": "default",
}
_BATCHING_FLAGS: Final = {row.key: row.flag for row in SETTINGS if row.section == "batching"}


class StartFailure(Exception):
    """TF Serving would not start either, or we cannot do what was asked. `code`: the name of an error code.

    detail: a line for standard error, or empty.
    """

    def __init__(self, code: str, text: str, detail: str = "") -> None:
        super().__init__(f"{code}: {text}")
        self.detail = detail


class Plan(NamedTuple):
    """What to serve, and what was asked for and will not be done, a line each."""

    settings: Settings
    warnings: list[str]


def plan(parsed: Parsed, environ: Mapping[str, str]) -> Plan:
    """Settings and warnings for these flags. Raises StartFailure, in the order of TF Serving's own checks."""
    from ringserve.config.load import ConfigError, load_settings
    from ringserve.config.text_protos import CODE_NAMES, ModelConfigError

    warnings: list[str] = []
    try:
        _check_addresses(parsed, environ)
        _check_models(parsed)
        _check_batching_and_threads(parsed)
        _check_refused(parsed, warnings)
        defaults: dict[str, Any] = dict(_DEFAULTS)
        flags = _plain_flags(parsed)
        flags |= _ports(parsed, warnings)
        flags |= _batching(parsed, defaults, warnings)
        flags |= _threads(parsed, warnings)
        flags |= _monitoring(parsed, environ)
        flags |= _channel_arguments(parsed, warnings)
        if not parsed["enable_model_warmup"]:
            defaults["synthetic_warmup"] = False
        return Plan(load_settings(flags | parsed.extra, environ, None, defaults=defaults), warnings)
    except ModelConfigError as error:
        raise StartFailure(CODE_NAMES[error.code], error.text, error.detail) from error
    except ConfigError as error:
        raise StartFailure("INVALID_ARGUMENT", "; ".join(error.mistakes)) from error


# -------------------------------------------------------------------------------------------------------------- checks


def _invalid(text: str) -> NoReturn:
    raise StartFailure("INVALID_ARGUMENT", text)


def _check_addresses(parsed: Parsed, environ: Mapping[str, str]) -> None:
    if parsed["port"] == 0 and not parsed["grpc_socket_path"]:
        _invalid("At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.")
    if not 0 <= parsed.number("port") <= 65535:
        _invalid(f"--port: {parsed['port']} is not a number from 0 to 65535")
    if parsed["use_alts_credentials"] and parsed["ssl_config_file"]:
        _invalid("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    named = parsed["model_base_path"] or parsed["model_config_file"]
    if not named and not any(environ.get(f"RINGSERVE_{name}") for name in ("MODEL_BASE_PATH", "MODEL_CONFIG_FILE")):
        _invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")


def _check_models(parsed: Parsed) -> None:
    """Before all else that can fail, as a test may wait for these texts."""
    if path := parsed.text("model_config_file"):
        from ringserve.config.model_config import models_of, read_model_config

        models_of(read_model_config(path), Batching())
    elif (base_path := parsed.text("model_base_path")) and "://" not in base_path and not os.path.isabs(base_path):
        name = parsed["model_name"]
        _invalid(f"Expected model {name} to have an absolute path or URI; got base_path()={base_path}")


def _check_batching_and_threads(parsed: Parsed) -> None:
    if parsed["batching_parameters_file"] and not parsed["enable_batching"]:
        _invalid(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    if all(parsed.number(name) > 0 for name in _PARALLELISM):
        _invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )


def _check_refused(parsed: Parsed, warnings: list[str]) -> None:
    for name, value in parsed.given.items():
        flag = TFS_FLAGS[name]
        if value == flag.default:
            continue
        if flag.treatment is Treatment.REFUSE:
            raise StartFailure("UNIMPLEMENTED", f"--{name}: {flag.about}")
        if flag.treatment is Treatment.WARN:
            warnings.append(f"--{name}: {flag.about}")


# ------------------------------------------------------------------------------------------------------------- mapping


def _not_negative(value: Value) -> Value:
    return max(0, int(value))


def _pause_ms(micros: Value) -> Value:
    """Negative: no pause. Rounded up, so that a short pause stays one."""
    return min(INT_MAX, max(0, -(-int(micros) // 1000)))


def _unchanged(value: Value) -> Value:
    return value


#: Flags that need nothing but a name, and perhaps a bound: ours -> (TF Serving's, what becomes of the value).
_PLAIN: Final[dict[str, tuple[str, Callable[[Value], Value]]]] = {
    "grpc_socket_path": ("grpc_socket_path", _unchanged),
    "rest_timeout_ms": ("rest_api_timeout_in_ms", _not_negative),
    "rest_api_enable_cors_support": ("rest_api_enable_cors_support", _unchanged),
    "allow_version_labels_for_unavailable_models": ("allow_version_labels_for_unavailable_models", _unchanged),
    "model_config_file": ("model_config_file", _unchanged),
    "model_config_file_poll_wait_seconds": ("model_config_file_poll_wait_seconds", _not_negative),
    "model_name": ("model_name", _unchanged),
    "model_base_path": ("model_base_path", _unchanged),
    "max_num_load_retries": ("max_num_load_retries", _not_negative),
    "load_retry_ms_max": ("load_retry_interval_micros", _pause_ms),
    "file_system_poll_wait_seconds": ("file_system_poll_wait_seconds", lambda value: max(-1, int(value))),
    "per_process_gpu_memory_fraction": ("per_process_gpu_memory_fraction", _unchanged),
    "saved_model_tags": ("saved_model_tags", _unchanged),
    "ssl_config_file": ("ssl_config_file", _unchanged),
    "enable_model_warmup": ("enable_model_warmup", _unchanged),
    "num_request_iterations_for_warmup": ("num_request_iterations_for_warmup", _not_negative),
    "prefer_tflite_model": ("prefer_tflite_model", _unchanged),
    "enable_signature_method_name_check": ("enable_signature_method_name_check", _unchanged),
    "enable_profiler": ("enable_profiler", _unchanged),
    "enable_grpc_healthcheck_service": ("enable_grpc_healthcheck_service", _unchanged),
    "enable_serialization_as_tensor_content": ("enable_serialization_as_tensor_content", _unchanged),
}


def _plain_flags(parsed: Parsed) -> dict[str, Any]:
    return {
        ours: change(parsed.given[theirs]) for ours, (theirs, change) in _PLAIN.items() if theirs in parsed.given
    }


def _ports(parsed: Parsed, warnings: list[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if "port" in parsed.given:
        flags["port"] = parsed["port"] or -1  # their 0 is our -1: no port at all
    if "rest_api_port" in parsed.given:
        flags["rest_api_port"] = _not_negative(parsed["rest_api_port"])
    if parsed["port"] == parsed["rest_api_port"] and parsed["port"]:
        warnings.append("rest_api_port cannot be same as port. HTTP/REST API server is not started.")
        flags["rest_api_port"] = 0
    return flags


def _batching(parsed: Parsed, defaults: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """enable_batching: TF Serving's batching, by its file or its defaults, when it is true; each request alone when it
    is false in so many words; and when nobody speaks of it, our own default, which joins requests where the signature
    has rows, and no run at load showed that they depend on each other."""
    per_model = "enable_per_model_batching_parameters"
    if parsed[per_model] and not parsed["enable_batching"]:
        warnings.append(f"--{per_model}: without --enable_batching it has no effect")
    if "enable_batching" not in parsed.given:
        return {}
    if not parsed["enable_batching"]:
        return {"batching_policy": "none"}
    from ringserve.config.batching_params import changes_of, parse_batching_parameters, read_batching_parameters

    path = parsed.text("batching_parameters_file")
    parameters = read_batching_parameters(path) if path else parse_batching_parameters("")
    changes = {"batches_at_once_max": usable_cpus().count} | changes_of(parameters, Batching())
    # These two are bounds of ours, which TF Serving's numbers only must not meet: the environment may say otherwise.
    defaults |= {key: changes.pop(key) for key in ("queue_rows_max", "queue_requests_max")}
    flags = {_BATCHING_FLAGS[key]: value for key, value in changes.items()}
    return flags | ({per_model: True} if parsed[per_model] else {})


def _threads(parsed: Parsed, warnings: list[str]) -> dict[str, Any]:
    """The larger of the two pools, of those that are told; a flag beats the file."""
    both, intra, inter = (parsed.number(name) for name in _PARALLELISM)
    if path := parsed.text("tensorflow_session_config_file"):
        from ringserve.config.tfs_files import read_session_config

        session = read_session_config(path)
        if max(both, intra, inter) <= 0:
            intra, inter = session.intra, session.inter
        warnings += [f"--tensorflow_session_config_file: {name} has no effect" for name in session.others]
    threads = max(both, intra, inter)
    return {"threads_per_worker": threads} if threads > 0 else {}


def _monitoring(parsed: Parsed, environ: Mapping[str, str]) -> dict[str, Any]:
    """The file is read only if there will be a REST port, as in TF Serving."""
    path = parsed.text("monitoring_config_file")
    rest = parsed.number("rest_api_port") > 0
    if "rest_api_port" not in parsed.given:
        rest = environ.get("RINGSERVE_REST_API_PORT", "0") != "0"
    if not path or not rest:
        return {}
    from ringserve.config.tfs_files import read_metrics_path

    return {"metrics_path": read_metrics_path(path)}


def _channel_arguments(parsed: Parsed, warnings: list[str]) -> dict[str, Any]:
    text = parsed.text("grpc_channel_arguments")
    if not text:
        return {}
    from ringserve.config.tfs_files import parse_channel_arguments

    arguments = parse_channel_arguments(text)
    warnings += [f"--grpc_channel_arguments: {name} has no effect" for name in arguments.without_effect]
    return dict(arguments.settings)
