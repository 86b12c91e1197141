"""Which Python this is, and how fast the host runs it just now.

Without both, figures of two hours cannot be compared: hosts of virtual machines have more than one speed, and an
interpreter that was compiled without profiles, as `./configure` does it, is slower by as much as many a change gains.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Final

from ringserve.commands.host import this_is_plain

#: The figure's name, in ns.
STEP: Final = "host, a step of Python"
_STEPS: Final = 50_000
_REPETITIONS: Final = 25


def python_build(maps: Path = Path("/proc/self/maps"), *, plain: bool | None = None) -> str:
    """`3.11.2 (GCC 12.2.0, one binary)`, or `libpython` where the interpreter is a shared library, and `no profile`
    where it was compiled without one. plain: that, if not as this interpreter says itself."""
    words = [" ".join(platform.python_compiler().split()[:2])]
    words.append("libpython" if "/libpython3" in maps.read_text() else "one binary")
    if this_is_plain() if plain is None else plain:
        words.append("no profile")
    return f"{platform.python_version()} ({', '.join(words)})"


def step_ns() -> float:
    """What one turn of a plain loop takes: a call, a tuple, a dictionary. The fastest of some, which others that just
    come or go do not change: 0.1 s in all."""
    taken = []
    for _ in range(_REPETITIONS):
        start_ns = time.perf_counter_ns()
        _loop()
        taken.append((time.perf_counter_ns() - start_ns) / _STEPS)
    return min(taken)


def _loop() -> dict[int, tuple[int, int]]:
    found = {}
    for number in range(_STEPS):
        found[number & 255] = _pair(number, number + 1)
    return found


def _pair(first: int, second: int) -> tuple[int, int]:
    return first, second
