"""Which models and versions may have time series: those of the catalog. All other names share one.

A client can name any model, and versions come and go for as long as the server runs; neither may make the metrics
grow without end.
"""

from __future__ import annotations

from typing import Final

from ringserve.broker.messages import VersionState
from ringserve.config.metric_family import Family
from ringserve.config.metric_file import Labels
from ringserve.config.metrics import UNKNOWN_MODEL
from ringserve.frontend.catalog import Catalog

_LIVE: Final = frozenset((VersionState.START, VersionState.LOADING, VersionState.AVAILABLE, VersionState.UNLOADING))


class MetricScope:
    """The catalog as far as metrics go. Without one everything is in scope."""

    def __init__(self, catalog: Catalog | None = None) -> None:
        self._catalog = catalog
        self._epoch = 0
        self._live: frozenset[tuple[str, str]] = frozenset()

    def label_of(self, model: str) -> str:
        """The label for a model as a client named it; "" when it named none."""
        return model if not model or self._catalog is None or (model, "") in self._live_now() else UNKNOWN_MODEL

    def is_gone(self, family: Family, labels: Labels) -> bool:
        """Whether these labels name a model, or a version of one, that the server has no more."""
        if self._catalog is None or not self._catalog.epoch:
            return False  # nothing is known yet
        model = version = ""
        for name, value in zip(family.labels, labels, strict=True):
            if name in ("model", "model_name"):
                model = value
            elif name == "version":
                version = value
        return model not in ("", UNKNOWN_MODEL) and (model, version) not in self._live_now()

    def shrank(self) -> bool:
        """Whether some model or version has gone since this was last asked. (A frontend that has just started knows
        of nobody who could have gone.)"""
        before, now = self._live, self._live_now()
        return now is not before and not before <= now

    def _live_now(self) -> frozenset[tuple[str, str]]:
        """(model, version) of all that is or will be served, and (model, "") of every model configured."""
        catalog = self._catalog
        if catalog is not None and catalog.epoch != self._epoch:
            self._epoch = catalog.epoch
            live = set()
            for model in catalog.names():
                live.add((model, ""))
                statuses = catalog.statuses(model)
                if isinstance(statuses, list):
                    live.update((model, str(status.version)) for status in statuses if status.state in _LIVE)
            self._live = frozenset(live)
        return self._live
