"""What a process's C allocator is told before the process begins, which is the only time for it: large pages.

A message of 64 MB comes into memory that is fresh each time, 16,000 pages of 4 KB that the kernel hands out one by one
when they are first touched. In pages of 2 MB that is nothing: a frontend spent 193 ms of processor time on a request
and its answer of 64 MB each, 95 ms since (two cores, interleaved), for 2 to 5 MB more of memory when it is idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: glibc's own variable (2.35 and later know this one); other allocators ignore it.
_VARIABLE: Final = "GLIBC_TUNABLES"
_LARGE_PAGES: Final = "glibc.malloc.hugetlb"
#: Whose memory is messages. Workers are forks of one pool: a large page is copied whole for one byte that is written.
_OF_MESSAGES: Final = ("frontend",)


def environment(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment to start the process of that name (`frontend-0`) with; what the operator chose stays."""
    chosen = environ.get(_VARIABLE, "")
    if name.partition("-")[0] not in _OF_MESSAGES or _LARGE_PAGES in chosen:
        return dict(environ)
    return {**environ, _VARIABLE: ":".join(filter(None, (chosen, f"{_LARGE_PAGES}=1")))}
