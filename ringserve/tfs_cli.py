"""The `tensorflow_model_server` command: TF Serving's flags, texts and exit statuses, ringserve's server.

Our own settings may be given as flags beside TF Serving's, and in the environment (RINGSERVE_WORKERS=4), which any flag
beats.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from ringserve import __version__
from ringserve.config.process import open_standard_descriptors
from ringserve.config.schema import Settings
from ringserve.tfs_flags import parse, usage
from ringserve.tfs_settings import StartFailure, plan

#: TF Serving's main returns -1.
EXIT_FAILED = 255


def main() -> NoReturn:
    """Run with this process's arguments and environment; never returns."""
    open_standard_descriptors()
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
        settings, warnings = plan(parsed, environ)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if not settings.lifecycle.model_config_file:
            for model in settings.models:
                print(
                    f"Building single TensorFlow model file config:  model_name: {model.name} "
                    f"model_base_path: {model.base_path}",
                    file=sys.stderr,
                )
        return serve(settings)
    except StartFailure as failure:
        if failure.detail:
            print(failure.detail, file=sys.stderr, flush=True)
        print(f"Failed to start server. Error: {failure}", flush=True)
        return EXIT_FAILED


def _serve(settings: Settings) -> int:
    from ringserve.supervisor import ServerFailed, StartError
    from ringserve.supervisor import run as supervise

    try:
        return supervise(settings)
    except StartError as error:
        raise StartFailure("UNAVAILABLE", str(error)) from error
    except ServerFailed as error:
        code, _, text = str(error).partition(": ")
        raise StartFailure(code, text) from error


def _tensorflow_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tensorflow")
    except PackageNotFoundError:
        return "not installed"
