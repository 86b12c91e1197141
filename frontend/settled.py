"""Files that somebody may be writing right now, read until two readings agree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

#: Between two readings. Whoever writes a file in place empties it first, and has written it long before this is over.
_PAUSE_S: Final = 0.2


async def read_settled(read: Callable[[], _T], known: _T, period_s: float) -> _T:
    """What `read` gives, twice in a row if it is not `known`. Raises what it raises.

    It runs in another thread, because a disk may take its time. period_s: how often the caller looks, which bounds the
    pause.
    """
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(None, read)
    while found != known:
        await asyncio.sleep(min(_PAUSE_S, period_s))
        again = await loop.run_in_executor(None, read)
        if again == found:
            break
        found = again
    return found
