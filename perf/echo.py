"""The bare C++ echo server (`echo.cc`): built when it is needed, where grpc++'s headers and a compiler are.

    python -m perf.echo PORT         builds it and becomes it

Debian: `apt-get install g++ libgrpc++-dev`. The compiler is `$CXX` or `c++`. What is measured against it does without
where it cannot be built, and says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.loadgen import PERF, Exchange, LoadError, fresh_folder
from perf.servers import PredictServer, free_ports

# The linker's option: what grpc++ itself needs is found by its own list, whose names differ by release.
FLAGS = ("-std=c++17", "-O2", "-Wl,--copy-dt-needed-entries", "-lgrpc++", "-lgrpc", "-lgpr")


def build() -> Path:
    """Its path. Raises LoadError with the compiler's words."""
    source = PERF / "echo.cc"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise LoadError("the echo server needs a C++ compiler")
    target = PERF / "build" / f"echo-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if target.exists():
        return target
    with fresh_folder(target.parent) as folder:
        fresh = folder / "echo"
        command = [compiler, str(source), "-o", str(fresh), *FLAGS]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise LoadError(f"no echo server (Debian: apt-get install g++ libgrpc++-dev): {outcome.stderr[-300:]}")
        fresh.rename(target)
    return target


def available() -> bool:
    """Whether there is one; why not is said on standard error."""
    try:
        build()
    except LoadError as error:
        print(f"NOT MEASURED: the bare C++ echo server: {error}", file=sys.stderr)
        return False
    return True


def exchanges(of: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """The same requests, each of which is its own answer, however long the model's would be. To be compared `exact`."""
    return tuple(Exchange(one.request, one.request) for one in of)


class Echo(PredictServer):
    leader = "server"

    def __init__(self) -> None:
        (port,) = free_ports(1)
        super().__init__(["perf.echo", str(port)], port)


if __name__ == "__main__":
    os.execv(build(), ["echo", sys.argv[1]])
