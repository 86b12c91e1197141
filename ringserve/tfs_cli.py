"""The `tensorflow_model_server` command: TF Serving's flags, texts and exit statuses, ringserve's server.

Settings without a flag of TF Serving's come from the environment (RINGSERVE_WORKERS=4): a flag given here beats it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ringserve import __version__
from ringserve.config.schema import Settings
from ringserve.tfs_flags import TFS_FLAGS, Parsed, Treatment, parse, usage

#: TF Serving's main returns -1.
EXIT_FAILED = 255

_PARALLELISM = (
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
)


class StartFailure(Exception):
    """TF Serving would not start either, or we cannot do what was asked. `code`: the name of an error code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")


def main() -> NoReturn:
    """Run with this process's arguments and environment; never returns."""
    sys.exit(run(sys.argv[1:], os.environ, _serve))


def run(arguments: list[str], environ: Mapping[str, str], serve: Callable[[Settings], int]) -> int:
    """The command. Returns its exit status. serve: runs the server with these settings (tests put a stand-in here)."""
    parsed = parse(arguments)
    if parsed.errors:
        for error in parsed.errors:
            print(error, file=sys.stderr)
        print(usage(), end="")
        return EXIT_FAILED
    if parsed["version"]:
        print(f"TensorFlow ModelServer: {__version__}\nTensorFlow Library: {_tensorflow_version()}")
        return 0
    if parsed.leftover:
        if parsed.leftover[0] == "--help":
            print(usage(), end="")
            return EXIT_FAILED
        # TF Serving names the first one and runs on.
        print(f"unknown argument: {parsed.leftover[0]}\n{usage()}", end="", flush=True)
    try:
        settings = settings_of(parsed, environ)
        for warning in warnings_of(parsed):
            print(f"warning: {warning}", file=sys.stderr)
        for model in settings.models:
            print(
                f"Building single TensorFlow model file config:  model_name: {model.name} "
                f"model_base_path: {model.base_path}",
                file=sys.stderr,
            )
        return serve(settings)
    except StartFailure as failure:
        print(f"Failed to start server. Error: {failure}", flush=True)
        return EXIT_FAILED


def _serve(settings: Settings) -> int:
    from ringserve.supervisor import StartError
    from ringserve.supervisor import run as supervise

    try:
        return supervise(settings)
    except StartError as error:
        raise StartFailure("UNAVAILABLE", str(error)) from error


def _tensorflow_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tensorflow")
    except PackageNotFoundError:
        return "not installed"


def warnings_of(parsed: Parsed) -> list[str]:
    """A line for each given flag that is not supported."""
    found = [
        f"--{name}: {TFS_FLAGS[name].about}"
        for name, value in parsed.given.items()
        if TFS_FLAGS[name].treatment is Treatment.WARN and value != TFS_FLAGS[name].default
    ]
    if "enable_profiler" in parsed.given and parsed["enable_profiler"]:
        found.append(f"--enable_profiler: {TFS_FLAGS['enable_profiler'].about}")
    if _ports_clash(parsed):
        found.append("rest_api_port cannot be same as port. HTTP/REST API server is not started.")
    return found


def settings_of(parsed: Parsed, environ: Mapping[str, str]) -> Settings:
    """The settings that the flags ask for. Raises StartFailure, in the order of TF Serving's own checks."""
    _check(parsed)
    from ringserve.config.load import ConfigError, load_settings

    flags = {name: value for name, value in parsed.given.items() if name in _SETTING_OF}
    mapped: dict[str, Any] = {_SETTING_OF[name]: value for name, value in flags.items()}
    if _ports_clash(parsed):
        mapped["rest_api_port"] = 0
    for name in ("rest_timeout_ms", "rest_api_port"):
        if name in mapped:
            mapped[name] = max(0, mapped[name])
    threads = max(parsed.number(name) for name in _PARALLELISM)
    if threads > 0:
        mapped["threads_per_worker"] = threads
    mapped |= _batching(parsed)
    try:
        return load_settings(mapped, environ, None, defaults={"rest_api_port": 0, "model_name": "default"})
    except ConfigError as error:
        raise StartFailure("INVALID_ARGUMENT", "; ".join(error.mistakes)) from error


_SETTING_OF = {
    "port": "port",
    "rest_api_port": "rest_api_port",
    "rest_api_timeout_in_ms": "rest_timeout_ms",
    "model_name": "model_name",
    "model_base_path": "model_base_path",
    "saved_model_tags": "saved_model_tags",
    "enable_serialization_as_tensor_content": "enable_serialization_as_tensor_content",
}


def _batching(parsed: Parsed) -> dict[str, Any]:
    """enable_batching: TF Serving's default numbers when it is true; each request alone when it is false in so many
    words; and when nobody speaks of it, our own default, which joins only requests whose rows are independent by
    their signature."""
    if "enable_batching" not in parsed.given:
        return {}
    if not parsed["enable_batching"]:
        return {"batching_policy": "none"}
    return {"batching_policy": "timeout", "batch_rows_max": 1000, "batch_wait_us_max": 0}


def _ports_clash(parsed: Parsed) -> bool:
    return parsed["port"] == parsed["rest_api_port"] and parsed["rest_api_port"] != 0


def _check(parsed: Parsed) -> None:
    """The checks that TF Serving makes, with its texts, and ours for what we refuse."""

    def invalid(text: str) -> NoReturn:
        raise StartFailure("INVALID_ARGUMENT", text)

    if parsed["port"] == 0 and not parsed["grpc_socket_path"]:
        invalid("At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.")
    if parsed["use_alts_credentials"] and parsed["ssl_config_file"]:
        invalid("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    if not parsed["model_base_path"] and not parsed["model_config_file"]:
        invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    if parsed["batching_parameters_file"] and not parsed["enable_batching"]:
        invalid(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    if all(parsed.number(name) > 0 for name in _PARALLELISM):
        invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    for name, value in parsed.given.items():
        if TFS_FLAGS[name].treatment is Treatment.REFUSE and value != TFS_FLAGS[name].default:
            raise StartFailure("UNIMPLEMENTED", f"--{name}: {TFS_FLAGS[name].about}")
    base_path = parsed.text("model_base_path")
    if "://" not in base_path and not os.path.isabs(base_path):
        invalid(
            f"Expected model {parsed['model_name']} to have an absolute path or URI; got base_path()={base_path}"
        )
