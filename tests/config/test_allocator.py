"""Goal: a frontend's allocator asks for large pages, unless the operator said otherwise; nobody else's does."""

from __future__ import annotations

import pytest

from ringserve.config.allocator import environment

NAME = "GLIBC_TUNABLES"


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({}, {NAME: "glibc.malloc.hugetlb=1"}),
        ({NAME: ""}, {NAME: "glibc.malloc.hugetlb=1"}),
        ({NAME: "glibc.malloc.check=3"}, {NAME: "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}),
        ({NAME: "glibc.malloc.hugetlb=0"}, {NAME: "glibc.malloc.hugetlb=0"}),
    ],
)
def test_large_pages_unless_somebody_chose(chosen: dict[str, str], told: dict[str, str]) -> None:
    given = {"PATH": "/bin", **chosen}
    assert environment("frontend-1", given) == {"PATH": "/bin", **told}
    for name in ("broker", "pool", "supervisor"):
        assert environment(name, given) == given
