"""Pure: the catalog's truth. Which model versions exist, in which state, and what the workers say of them.

A version goes START -> LOADING -> AVAILABLE, or LOADING -> END with an error. It is AVAILABLE from the moment a worker
that loaded it takes batches, and stays so while workers are replaced: requests wait in their lanes meanwhile. An error
counts only while no worker has the version, so that one worker's bad luck does not take a served model down.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringserve.broker.messages import Catalog, Code, Failure, ModelVersion, VersionInfo, VersionState

#: state -> states it may move to; any other move is a bug.
_MOVES: dict[VersionState, frozenset[VersionState]] = {
    VersionState.START: frozenset({VersionState.LOADING}),
    VersionState.LOADING: frozenset({VersionState.AVAILABLE, VersionState.END}),
    VersionState.AVAILABLE: frozenset({VersionState.UNLOADING}),
    VersionState.UNLOADING: frozenset({VersionState.END}),
    VersionState.END: frozenset({VersionState.LOADING, VersionState.AVAILABLE}),
}


_NO_FAILURE = Failure(Code.OK, "")


@dataclass
class _Version:
    path: str
    state: VersionState = VersionState.START
    failure: Failure = _NO_FAILURE
    signature_defs: bytes = b""


class Versions:
    """The wanted model versions and their states. `epoch` grows with every visible change."""

    def __init__(self) -> None:
        self._versions: dict[ModelVersion, _Version] = {}
        self.epoch = 0

    def want(self, name: str, version: int, path: str) -> None:
        """Serve this version, which lies at `path`."""
        known = self._versions.setdefault(ModelVersion(name, version), _Version(path))
        if known.state is VersionState.START:
            self._move(known, VersionState.LOADING)

    def wanted(self) -> list[tuple[str, int, str]]:
        """(name, version, path) in the order in which they were asked for: what a worker is told to load."""
        return [(key.name, key.version, version.path) for key, version in self._versions.items()]

    def loaded(self, key: ModelVersion, failure: Failure, signature_defs: bytes) -> None:
        """A worker has tried to load `key`; `failure` has code OK when it succeeded."""
        version = self._versions.get(key)
        if version is None:
            return
        if failure.code is Code.OK:
            if version.signature_defs != signature_defs:
                version.signature_defs = signature_defs
                self.epoch += 1
        elif version.state is VersionState.LOADING:
            version.failure = failure
            self._move(version, VersionState.END)

    def ready(self, keys: frozenset[tuple[str, int]]) -> None:
        """A worker that loaded `keys` takes batches now."""
        for name, number in keys:
            version = self._versions.get(ModelVersion(name, number))
            if version is not None and version.state in (VersionState.LOADING, VersionState.END):
                version.failure = _NO_FAILURE
                self._move(version, VersionState.AVAILABLE)

    def catalog(self) -> Catalog:
        """The catalog as frontends get it."""
        return Catalog(
            [
                VersionInfo(
                    key.name,
                    key.version,
                    int(version.state),
                    int(version.failure.code),
                    version.failure.text,
                    version.signature_defs,
                    [],
                )
                for key, version in self._versions.items()
            ],
            sorted({key.name for key in self._versions}),
            {},
            [],
        )

    def _move(self, version: _Version, state: VersionState) -> None:
        if state not in _MOVES[version.state]:
            raise AssertionError(f"a version cannot go from {version.state.name} to {state.name}")
        version.state = state
        self.epoch += 1
