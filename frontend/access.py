"""Who may ask for what: one decision for every request, made from what it shows and from the keys that hold now. Pure.

    admit     who is it, and has it asked too often?        -> Key or Refusal
    Key       what may it ask for?

A token that was seen before is found by one look into a table. Such a look compares hashes that are keyed by a secret
of this process, and then only equal texts; and the table of all keys is one of digests. So nobody learns from the time
that it takes how near to a right token a wrong one is.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Final, NamedTuple, Protocol

from ringserve.broker.messages import Code
from ringserve.config.keys_file import RATE_SLOTS, Entry, Scopes, digest_of

_NS_PER_S: Final = 1_000_000_000
_BEARER: Final = b"bearer "
#: What is remembered of what clients sent, at most; nothing that is longer.
_KNOWN_MAX: Final = 4_096
_MODELS_MAX: Final = 1_024
_REMEMBERED_MAX: Final = 1_024


class Refusal(NamedTuple):
    """Why a request is not served. reason: for counting. retry_after_s: 0 where waiting does not help."""

    code: Code
    text: str
    reason: str
    retry_after_s: int = 0


class Key:
    """One who may ask. is_status, is_admin: the scopes of these names. interval_ns: 0 without a limit of its rate."""

    __slots__ = ("_globs", "_models", "burst_ns", "digest", "interval_ns", "is_admin", "is_status", "name", "slot")

    def __init__(self, name: str, scopes: Scopes, digest: bytes = b"", rate: float = 0.0, burst: int = 1) -> None:
        self.name = name
        self.digest = digest
        self.is_status = scopes.status
        self.is_admin = scopes.admin
        self.interval_ns = max(1, round(_NS_PER_S / rate)) if rate else 0
        self.burst_ns = (burst - 1) * self.interval_ns
        self.slot = -1
        self._globs = tuple(re.compile(translate(glob)) for glob in scopes.predict)
        self._models: dict[str, bool] = {}

    def may_predict(self, model: str) -> bool:
        """Whether it may run this model."""
        may = self._models.get(model)
        if may is None:
            may = any(glob.fullmatch(model) for glob in self._globs)
            if len(self._models) >= _MODELS_MAX:
                self._models.clear()
            if len(model) <= _REMEMBERED_MAX:
                self._models[model] = may
        return may

    def may_look(self, model: str) -> bool:
        """Whether it may see this model's state and signatures: who may run it may, too."""
        return self.is_status or self.may_predict(model)

    def refused(self, what: str) -> Refusal:
        """The refusal of what its scopes do not have."""
        return Refusal(Code.PERMISSION_DENIED, f"the key {self.name} may not {what}", "scope")


_MISSING: Final = Refusal(
    Code.UNAUTHENTICATED, "no key was shown: send Authorization: Bearer TOKEN, or x-api-key: TOKEN", "missing"
)
_UNKNOWN: Final = Refusal(Code.UNAUTHENTICATED, "the key is not known", "unknown")


class Words(Protocol):
    """Numbers that are shared with other processes (`shm.words`), or a list of them."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Access:
    """The keys that hold now. One thread uses it.

    rates: RATE_SLOTS numbers, zero at first, which all processes that serve the same clients may share: each is when
    its key will have used up what it has asked for so far, by `clock_ns`. (Two processes that count at the very same
    moment may count one request too few; nothing worse.)
    anonymous: what may be asked without a key.
    """

    def __init__(
        self, rates: Words, clock_ns: Callable[[], int], anonymous: Scopes | None = None
    ) -> None:
        #: Is told who asks, if anybody wants to know.
        self.told: Callable[[str], None] | None = None
        self._rates = rates
        self._clock_ns = clock_ns
        self._anonymous = Key("(anonymous)", anonymous) if anonymous and any(anonymous) else None
        self._by_digest: dict[bytes, Key] = {}
        self._by_certificate: dict[str, Key] = {}
        self._known: dict[bytes, Key] = {}

    def use(self, entries: Iterable[Entry]) -> None:
        """These keys hold from now on, and no others."""
        by_digest, by_certificate = {}, {}
        taken: set[int] = set()
        for entry in sorted(entries):
            key = Key(entry.name, entry.scopes, entry.digest, entry.requests_per_s, entry.burst)
            if key.interval_ns:
                key.slot = _slot(entry.name, taken)
            if entry.digest:
                by_digest[entry.digest] = key
            else:
                by_certificate[entry.certificate] = key
        self._by_digest, self._by_certificate = by_digest, by_certificate
        self._known = {}

    def admit(self, shown: bytes | None, names: Sequence[str]) -> Key | Refusal:
        """Who asks. Counts the request. shown: the value of `authorization` or `x-api-key`; None without either.
        names: of the client's verified certificate (`dns:client.example`), which count only where nothing is shown."""
        if shown is not None:
            key = self._known.get(shown) or self._identified(shown)
            if key is None:
                return _UNKNOWN
        else:
            key = self._certified(names) or self._anonymous
            if key is None:
                return _MISSING
        if self.told is not None:
            self.told(key.name)
        return key if not key.interval_ns else self._counted(key)

    def _identified(self, shown: bytes) -> Key | None:
        token = shown[len(_BEARER) :] if shown[: len(_BEARER)].lower() == _BEARER else shown
        digest = digest_of(token.strip(b" "))
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        if len(shown) <= _REMEMBERED_MAX:
            self._known[shown] = key
        return key

    def _certified(self, names: Sequence[str]) -> Key | None:
        for name in names:
            key = self._by_certificate.get(name)
            if key is not None:
                return key
        return None

    def _counted(self, key: Key) -> Key | Refusal:
        """The leaky bucket as one number (GCRA): when all that was asked for is paid at the key's rate."""
        now_ns = self._clock_ns()
        paid_ns = max(self._rates[key.slot], now_ns)
        paid_ns_max = now_ns + key.burst_ns + key.interval_ns
        if paid_ns > paid_ns_max:  # it is of a time when the key had another rate
            paid_ns = self._rates[key.slot] = paid_ns_max
        wait_ns = paid_ns - now_ns - key.burst_ns
        if wait_ns > 0:
            text = f"the key {key.name} asks more often than it may"
            return Refusal(Code.RESOURCE_EXHAUSTED, text, "rate", -(-wait_ns // _NS_PER_S))
        self._rates[key.slot] = paid_ns + key.interval_ns
        return key


def _slot(name: str, taken: set[int]) -> int:
    """The same for all processes that read the same file."""
    slot = int.from_bytes(digest_of(name.encode())[:4], "little") % RATE_SLOTS
    while slot in taken:
        slot = (slot + 1) % RATE_SLOTS
    taken.add(slot)
    return slot
