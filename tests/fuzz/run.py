"""One target under atheris, which is guided by what is reached: `python -m tests.fuzz.run TARGET CORPUS [-runs=N ...]`.

New inputs that reach something new are written to the first folder that is named; what fails is written beside it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from tests.fuzz.targets import TARGETS

_OURS = (
    *("ringserve.frontend", "ringserve.broker.wire", "ringserve.broker.control", "ringserve.shm"),
    *("ringserve.config", "ringserve.workers.weights"),
)


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    target = TARGETS[sys.argv[1]]
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS):
            for function in vars(module).values():
                if getattr(function, "__module__", None) == name and callable(function):
                    _instrument(atheris, function)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
    atheris.Fuzz()


def _instrument(atheris: Any, thing: Any) -> None:
    """A function, or the methods of a class; others are left as they are."""
    methods = vars(thing).values() if isinstance(thing, type) else [thing]
    for each in methods:
        method = getattr(each, "__func__", each)  # of a class method
        if type(method) is type(main):
            method.__code__ = atheris.instrument_func(method).__code__


if __name__ == "__main__":
    main()
