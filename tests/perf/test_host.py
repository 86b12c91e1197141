"""Which Python, and how fast the host runs it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from perf import host, page


@pytest.mark.parametrize(
    ("maps", "kind"),
    [
        ("7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0\n", "libpython"),
        ("5500-5501 r-xp 00000000 08:01 12 /usr/bin/python3.11\n", "one binary"),
    ],
)
def test_the_build_is_told(maps: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "maps"
    file.write_text(maps)
    told = host.python_build(file, plain=False)
    assert told.startswith(f"{platform.python_version()} (")
    assert told.endswith(f", {kind})")
    assert host.python_build(file, plain=True).endswith(f", {kind}, no profile)")


def test_a_step_is_some_nanoseconds() -> None:
    """Not how many: only that it is one step's, not a loop's, and that it was measured at all."""
    assert 1 < host.step_ns() < 100_000


@pytest.mark.parametrize(
    ("spread", "words"),
    [
        ((70.0, 75.0), "A step of Python took 70.0 to 75.0 ns before and after."),
        ((70.0, 120.0), "A step of Python took 70.0 to 120 ns before and after: **the host changed its speed.**"),
    ],
)
def test_the_page_tells_the_hosts_speed(spread: tuple[float, float], words: str) -> None:
    figure = {"value": sum(spread) / 2, "unit": "ns", "spread": spread}
    told = page.source({
        "command": "-m perf.idle", "at": "2026-01-01T00:00Z", "revision": "abc", "machine": "one x2", "failures": 0,
        "figures": {host.STEP: figure},
    })  # fmt: skip
    assert words in told[0]
