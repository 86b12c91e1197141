"""Pure: names of versions. A model's labels change together or not at all.

A label of the configuration takes effect when its version is AVAILABLE for the first time, so a server may start with
labels; it then stays, whatever becomes of the version (a request is told that the version is not found, not that the
label is unknown), until the configuration says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ringserve.broker.messages import Code, Failure

#: Whether that version of that model can be asked for now.
IsAvailable = Callable[[str, int], bool]


class Labels:
    """label -> version, by model. allow_unavailable: a new label may point to a version that is not available, and
    takes effect at once."""

    def __init__(self, *, allow_unavailable: bool) -> None:
        self._allow_unavailable = allow_unavailable
        self._wanted: dict[str, dict[str, int]] = {}
        self._assigned: dict[str, dict[str, int]] = {}

    def of(self, model: str) -> dict[str, int]:
        """The model's labels as configured."""
        return dict(self._wanted.get(model, {}))

    def assigned(self) -> dict[str, dict[str, int]]:
        """All labels that are in effect."""
        return {model: dict(labels) for model, labels in self._assigned.items() if labels}

    def refusal(self, model: str, labels: Mapping[str, int], is_available: IsAvailable) -> Failure | None:
        """Why these must not become the model's labels; None when they may."""
        before = self._assigned.get(model, {})
        for label, version in labels.items():
            if is_available(model, version):
                continue
            if self._allow_unavailable and before.get(label, version) == version:
                continue
            text = (
                f"Request to assign label to version {version} of model {model}, "
                "which is not currently available for inference"
            )
            return Failure(Code.FAILED_PRECONDITION, text)
        return None

    def configure(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """These are all labels there shall be. One that is not in effect now takes effect with `available`."""
        self._wanted = {model: dict(theirs) for model, theirs in labels.items()}
        for model in list(self._assigned):
            wanted = self._wanted.get(model, {})
            self._assigned[model] = {
                label: version for label, version in self._assigned[model].items() if label in wanted
            }
        if self._allow_unavailable:
            for model, theirs in self._wanted.items():
                self._assigned.setdefault(model, {}).update(theirs)

    def settle(self, is_available: IsAvailable) -> bool:
        """Let the labels take effect whose versions are available. True when that changed anything."""
        changed = False
        for model, labels in self._wanted.items():
            assigned = self._assigned.setdefault(model, {})
            for label, version in labels.items():
                if assigned.get(label) != version and is_available(model, version):
                    assigned[label] = version
                    changed = True
        return changed
