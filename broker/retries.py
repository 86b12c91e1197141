"""Pure: loads that failed: which are tried again, when, and which are over.

An error that lies in the files will come again, so such a load is over at once, until its directory changes (which
makes another `Order` of it, or ends with `forget`). Any other may be bad luck: memory, a file server, a killed process.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringserve.broker.messages import Code, Failure
from ringserve.broker.orders import Order

_IN_THE_FILES = frozenset(
    {Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.DATA_LOSS, Code.UNIMPLEMENTED}
)
_FIRST_WAIT_NS = 1_000_000_000


@dataclass
class Attempts:
    """How loading went so far. failed_count: loads that failed. retry_ns: when the next one may begin; 0 = over."""

    failure: Failure
    failed_count: int
    retry_ns: int

    @property
    def over(self) -> bool:
        return self.retry_ns == 0


class Retries:
    """By order. retries_max: loads after the first one that failed. wait_ns_max: longest pause between two."""

    def __init__(self, retries_max: int, wait_ns_max: int) -> None:
        self._retries_max = retries_max
        self._wait_ns_max = wait_ns_max
        self._attempts: dict[Order, Attempts] = {}

    def failed(self, order: Order, failure: Failure, now_ns: int, *, final: bool = False) -> Attempts:
        """A load failed. final: it is over, whatever the code says."""
        attempts = self._attempts.setdefault(order, Attempts(failure, 0, 0))
        attempts.failure = failure
        attempts.failed_count += 1
        if final or failure.code in _IN_THE_FILES or attempts.failed_count > self._retries_max:
            attempts.retry_ns = 0
        else:
            doublings = min(attempts.failed_count - 1, 40)
            attempts.retry_ns = max(now_ns + min(_FIRST_WAIT_NS << doublings, self._wait_ns_max), 1)
        return attempts

    def of(self, order: Order) -> Attempts | None:
        """How it went; None when it never failed, or has succeeded since."""
        return self._attempts.get(order)

    def may_load(self, order: Order, now_ns: int) -> bool:
        attempts = self._attempts.get(order)
        return attempts is None or 0 < attempts.retry_ns <= now_ns

    def forget(self, order: Order) -> None:
        """It loaded, it changed, or nobody wants it: the next load is a first one."""
        self._attempts.pop(order, None)

    def keep_only(self, name: str, orders: set[Order]) -> None:
        """Forget all others of this model."""
        for order in [order for order in self._attempts if order.name == name and order not in orders]:
            del self._attempts[order]

    def wake_ns(self, now_ns: int) -> int:
        """When the next one may be tried again; 0 = none is waited for."""
        later = [attempts.retry_ns for attempts in self._attempts.values() if attempts.retry_ns > now_ns]
        return min(later, default=0)
