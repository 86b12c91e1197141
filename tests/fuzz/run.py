"""One target under atheris, which is guided by what is reached: `python -m tests.fuzz.run TARGET CORPUS [-runs=N ...]`.

New inputs that reach something new are written to the first folder that is named; what fails is written beside it.

Without a target it runs many, one after the other, each in a process that is forked when all code is instrumented: it
reads lines of [file for the output, target, corpus ...] in JSON, and prints the exit status of each.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NoReturn

from tests.fuzz.targets import TARGETS

_OURS = (
    *("ringserve.frontend", "ringserve.broker.wire", "ringserve.broker.control", "ringserve.shm"),
    *("ringserve.config", "ringserve.workers.weights"),
)


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS):
            for function in vars(module).values():
                if getattr(function, "__module__", None) == name and callable(function):
                    _instrument(atheris, function)
    if len(sys.argv) > 1:
        _fuzz(atheris, sys.argv[1:])
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            _fuzz(atheris, arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _fuzz(atheris: Any, arguments: list[str]) -> NoReturn:
    atheris.Setup([sys.argv[0], *arguments[1:]], TARGETS[arguments[0]].run)
    atheris.Fuzz()
    os._exit(0)


def _instrument(atheris: Any, thing: Any) -> None:
    """A function, or the methods of a class; others are left as they are."""
    methods = vars(thing).values() if isinstance(thing, type) else [thing]
    for each in methods:
        method = getattr(each, "__func__", each)  # of a class method
        if type(method) is type(main):
            method.__code__ = atheris.instrument_func(method).__code__


if __name__ == "__main__":
    main()
