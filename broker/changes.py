"""One change of the configuration, all or nothing.

    begin: the new models beside the old ones, nothing is given up ─▶ the new ones load ─▶ commit: exactly the new list
                                                                                       └▶ back: the old list

Nothing that serves is given up before it is known that all that is new serves, so a change that fails has cost nobody
anything. New is also what is there and is asked for from elsewhere, or in other versions: one of those that are asked
for must serve, and of those that serve already one is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ringserve.broker.labels import Labels
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import Code, Failure
from ringserve.broker.setup import plan_of
from ringserve.config.schema import Model

#: Other changes wait for this one. A load that takes half an hour has hung; this is time for four in a row.
_NS_MAX = 7_200_000_000_000


class Ended(NamedTuple):
    """How a change went: the failure, or code OK; and by model `OK` or why not."""

    failure: Failure
    models: dict[str, str]


class Change:
    """before, after: all models. checked: names of models whose labels must be possible. over: told when it is.

    looked: set it when the base paths have been looked at since it began.
    """

    def __init__(
        self,
        before: tuple[Model, ...],
        after: tuple[Model, ...],
        checked: Iterable[str],
        over: Callable[[Ended], None],
    ) -> None:
        self.before = before
        self.after = after
        self.over = over
        self.looked = False
        self._begun_ns = 0
        self._checked = frozenset(checked)
        known = {model.name: plan_of(model) for model in before}
        self._new = [model.name for model in after if model.name not in known]
        #: What was there is asked for other versions, or from elsewhere, and not for none.
        self._moved = [
            model.name
            for model in after
            if model.name in known and known[model.name] != plan_of(model) and model.versions != ()
        ]

        # Where one model is all that may fail its versions can change places in one step: held beside the new ones, the
        # old ones would be loaded once more, to be given up by another generation.
        labels = any(model.labels for model in after if model.name in self._checked)
        alone = len(self._moved) == 1 and not self._new and not labels
        self._alone = self._moved[0] if alone else ""

    def between(self) -> tuple[Model, ...]:
        """All models while the change goes on, each with the batching that counts meanwhile."""
        return (*self.before, *(model for model in self.after if model.name in self._new))

    def begin(self, lifecycle: Lifecycle, now_ns: int) -> None:
        """Let what is new be loaded."""
        self._begun_ns = now_ns
        after = {model.name: model for model in self.after}
        held = [
            plan_of(after.get(model.name, model), hold=model.name != self._alone, move=model.name == self._alone)
            for model in self.before
        ]
        fresh = [plan_of(model) for model in self.after if model.name in self._new]
        lifecycle.configure([*held, *fresh], now_ns)

    def progress(self, lifecycle: Lifecycle, labels: Labels, now_ns: int) -> Ended | None:
        """How it went; None while something still loads."""
        ended = self._progress(lifecycle, labels, now_ns)
        if ended is None and now_ns >= self._begun_ns + _NS_MAX:
            text = f"what this change asks for has neither loaded nor failed within {_NS_MAX // 60_000_000_000} minutes"
            return Ended(Failure(Code.DEADLINE_EXCEEDED, text), {})
        return ended

    def _progress(self, lifecycle: Lifecycle, labels: Labels, now_ns: int) -> Ended | None:
        if not self.looked:
            return None
        outcomes = {name: lifecycle.outcome(name, now_ns) for name in self._new}
        # With none of their versions to come, those that serve would go on, and the change would seem to be done.
        outcomes |= {name: lifecycle.outcome(name, now_ns, moved=True) for name in self._moved}
        if not all(outcome.settled for outcome in outcomes.values()):
            return None
        failed = {name: outcome.failures for name, outcome in outcomes.items() if outcome.failures}
        texts = {model.name: "OK" for model in self.after}
        if failed:
            texts |= {name: describe(failures[0][1]) for name, failures in failed.items()}
            return Ended(Failure(Code.UNKNOWN, unavailable("model(s)", failed)), texts)
        for model in self.after:
            if model.name not in self._checked:
                continue
            if any(lifecycle.may_come(model.name, version) for _, version in model.labels):
                return None
            refusal = labels.refusal(model.name, dict(model.labels), lifecycle.is_available)
            if refusal is not None:
                return Ended(refusal, texts | {model.name: describe(refusal)})
        return Ended(Failure(Code.OK, ""), texts)


def describe(failure: Failure) -> str:
    """`CODE: text`."""
    return f"{failure.code.name}: {failure.text}"


def unavailable(what: str, failed: dict[str, list[tuple[int | None, Failure]]]) -> str:
    """TF Serving's list of what did not become available. what: `model(s)` or `servable(s)`."""
    parts = []
    for name, failures in failed.items():
        for version, failure in failures:
            servable = f"{{name: {name}}}" if version is None else f"{{name: {name} version: {version}}}"
            parts.append(f"{{{servable} due to error: {describe(failure)}}}, ")
    return f"{len(failed)} {what} did not become available: {{{''.join(parts)}}}"
