"""From a side thread to the serving thread: a queue, and a descriptor that wakes the serving thread's poll."""

from __future__ import annotations

import os
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """`put` in any thread, `take` in one. `fd` is readable while something waits."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._items: list[T] = []
        self._lock = threading.Lock()

    def put(self, item: T) -> None:
        """Hand over; the taker's from now on."""
        # Both under the lock: a descriptor that is readable with nothing behind it would keep the taker spinning.
        with self._lock:
            self._items.append(item)
            os.eventfd_write(self.fd, 1)

    def take(self) -> list[T]:
        """All that waits, oldest first. Costs nothing while nothing does."""
        if not self._items:
            return []
        with self._lock:
            os.eventfd_read(self.fd)
            items, self._items = self._items, []
            return items
