"""Pure: the catalog's truth. Every model version that was ever seen, its state, and what the workers say of it.

A version goes START -> LOADING -> AVAILABLE -> UNLOADING -> END, or LOADING -> END with an error; one that comes again
begins again. END is remembered, as clients ask what became of a version. Who decides on a state is `lifecycle.py`;
here it is only made sure that every move is one of the table's.
"""

from __future__ import annotations

from typing import NamedTuple

from ringserve.broker.messages import Code, Failure, ModelVersion, VersionInfo, VersionState

#: state -> states it may move to; any other move is a bug.
MOVES: dict[VersionState, frozenset[VersionState]] = {
    VersionState.START: frozenset({VersionState.LOADING, VersionState.END}),
    VersionState.LOADING: frozenset({VersionState.AVAILABLE, VersionState.END, VersionState.START}),
    VersionState.AVAILABLE: frozenset({VersionState.UNLOADING}),
    VersionState.UNLOADING: frozenset({VersionState.END}),
    VersionState.END: frozenset({VersionState.START}),
}
#: Ended versions that are remembered of each model; the ones that ended first are forgotten beyond.
ENDED_MAX = 256

_NO_FAILURE = Failure(Code.OK, "")


def way(before: VersionState, after: VersionState) -> list[VersionState]:
    """The shortest way by the table's moves: from UNLOADING back to AVAILABLE it leads through END, START, LOADING."""
    ways: list[list[VersionState]] = [[before]]
    while ways[0][-1] is not after:
        first = ways.pop(0)
        ways += [[*first, state] for state in sorted(MOVES[first[-1]]) if state not in first]
    return ways[0][1:]


class _Version(NamedTuple):
    state: VersionState = VersionState.START
    failure: Failure = _NO_FAILURE
    waits: str = ""


class _About(NamedTuple):
    """What a worker that loaded a version says of it."""

    signature_defs: bytes = b""
    notes: tuple[str, ...] = ()


class Versions:
    """Model versions and their states. `epoch` grows with every visible change."""

    def __init__(self) -> None:
        self._versions: dict[ModelVersion, _Version] = {}
        self._about: dict[ModelVersion, _About] = {}
        self.epoch = 0

    def __contains__(self, key: ModelVersion) -> bool:
        return key in self._versions

    def known(self) -> list[ModelVersion]:
        """Every version that is remembered."""
        return list(self._versions)

    def state(self, key: ModelVersion) -> VersionState:
        """Its state; UNKNOWN for one never seen."""
        version = self._versions.get(key)
        return version.state if version is not None else VersionState.UNKNOWN

    def failure(self, key: ModelVersion) -> Failure:
        """The last error of its loads; code OK when there is none."""
        version = self._versions.get(key)
        return version.failure if version is not None else _NO_FAILURE

    def expected(self) -> list[ModelVersion]:
        """The versions that requests may still come for."""
        serving = (VersionState.AVAILABLE, VersionState.UNLOADING)
        return [key for key, version in self._versions.items() if version.state in serving]

    def put(self, key: ModelVersion, state: VersionState, failure: Failure = _NO_FAILURE, waits: str = "") -> bool:
        """Bring `key` into this state by the table's moves. True when it was in another. waits: why it is not loaded
        yet, in words."""
        before = self._versions.get(key)
        version = before or _Version()
        for step in way(version.state, state):
            version = version._replace(state=step)
            self.epoch += 1
        version = version._replace(failure=failure, waits=waits)
        if version != before:
            self._versions[key] = version
            self.epoch += 1
        if before is not None and before.state is state:
            return False
        if state is VersionState.END:
            self._about.pop(key, None)  # nobody asks for that any more, and it is large
            self._forget_oldest(key)
        return True

    def describe(self, key: ModelVersion, signature_defs: bytes, notes: list[str]) -> None:
        """A worker that loaded it says what it is; it may do so before anything else is known of the version."""
        about = _About(signature_defs, tuple(notes))
        if self._about.get(key) != about:
            self._about[key] = about
            self.epoch += 1

    def infos(self) -> list[VersionInfo]:
        """All of them, as the catalog carries them."""
        infos = []
        for key, (state, failure, waits) in self._versions.items():
            about = self._about.get(key, _About())
            notes = [*([f"waits: {waits}"] if waits else []), *about.notes]
            infos.append(VersionInfo(*key, int(state), int(failure.code), failure.text, about.signature_defs, notes))
        return infos

    def _forget_oldest(self, key: ModelVersion) -> None:
        self._versions[key] = self._versions.pop(key)  # the order of the book is the order of ends
        ended = [
            other
            for other, version in self._versions.items()
            if other.name == key.name and version.state is VersionState.END
        ]
        for other in ended[:-ENDED_MAX]:
            del self._versions[other]
