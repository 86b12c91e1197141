"""From a load order to a model that is loaded and warm: which of a version's files is served, and how it is warmed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ringserve.broker.messages import LoadOrder, ModelOptions
from ringserve.config.schema import Batching, Lifecycle
from ringserve.workers import synthetic, tflite, warmup
from ringserve.workers.assigning import give_memory_back
from ringserve.workers.failures import LoadError
from ringserve.workers.interface import Model
from ringserve.workers.loading import Opened
from ringserve.workers.servable import Servable
from ringserve.workers.weights import Weights, WeightsError

log = logging.getLogger(__name__)

_NO_FILE = warmup.Replayed(-1, 0, [])


@dataclass(frozen=True)
class Opener:
    """Opens versions as the settings say. tags: of a SavedModel's graph. threads: what one op may use. clock: ns.

    weights: descriptors of the memory that holds versions' weights, by their weights_id; closed here, each when its
    version is loaded, and the rest by `close`, for they keep the memory alive.
    """

    tags: tuple[str, ...]
    threads: int
    batching: Batching
    lifecycle: Lifecycle
    clock: Callable[[], int]
    weights: dict[int, int] = field(default_factory=dict)

    def __call__(self, order: LoadOrder) -> Opened:
        """Load the ordered version and warm it up. Raises LoadError."""
        notes: list[str] = []
        started_ns = self.clock()
        model = self._load(order, notes)
        load_ns = self.clock() - started_ns
        try:
            replayed, note = self._warm_up(model, order)
        except LoadError:
            model.close()
            raise
        notes.append(note)
        log.debug("model %s version %d: %s", order.name, order.version, "; ".join(notes))
        return Opened(model, notes, load_ns, replayed.ns, replayed.records)

    def _load(self, order: LoadOrder, notes: list[str]) -> Model:
        path = Path(order.path)
        if self.lifecycle.prefer_tflite_model and tflite.model_file(path).is_file():
            if serves_tflite(path):
                notes.append("runs model.tflite")
                return tflite.TfliteModel.load(path, order.name, order.version, threads=self.threads)
            notes.append("runs the SavedModel beside its model.tflite: TFLite's interpreter is not installed")
            log.warning("model %s version %d %s", order.name, order.version, notes[-1])
        return self._load_saved_model(path, order, notes)

    def _load_saved_model(self, path: Path, order: LoadOrder, notes: list[str]) -> Model:
        """With the weights that all workers share, if there are any, else with its own."""
        try:
            weights = self._map(order)
            if weights is not None:
                model = Servable.load(
                    path, order.name, order.version, tags=self.tags, threads=self.threads, weights=weights
                )
                give_memory_back()
                self._warn_of_dependence(model, order)
                return model
        except Exception as error:
            # Sharing never costs the model: whatever is wrong with it itself comes up again.
            if not isinstance(error, LoadError):
                notes.append(f"its weights are private to this worker: {error}")
                log.warning("model %s version %d: %s", order.name, order.version, notes[-1], exc_info=error)
        weights = None
        model = Servable.load(path, order.name, order.version, tags=self.tags, threads=self.threads)
        self._warn_of_dependence(model, order)
        return model

    def _warn_of_dependence(self, model: Servable, order: LoadOrder) -> None:
        if self._options(order).assumes_independence:
            return
        for key, aliases in model.dependent.items():
            if aliases:
                log.warning(
                    "model %s version %d, signature %s: what %s says of a row depends on the other rows of its batch, "
                    'so its requests are run one by one (row_independence = "assumed" has them share batches)',
                    order.name, order.version, key, ", ".join(sorted(aliases)),
                )  # fmt: skip
        for key, aliases in model.doubtful.items():
            if aliases and not model.dependent.get(key):
                log.warning(
                    "model %s version %d, signature %s: %s may be as wide as the longest row of a batch needs, so its "
                    'requests are run one by one (row_independence = "assumed" has them share batches)',
                    order.name, order.version, key, ", ".join(sorted(aliases)),
                )  # fmt: skip

    def _map(self, order: LoadOrder) -> Weights | None:
        """The weights that are shared of this version, if any. Raises WeightsError."""
        if not order.weights_id:
            return None
        fd = self.weights.pop(order.weights_id, -1)
        if fd < 0:
            raise WeightsError("the pool has no copy of them")
        try:
            return Weights.map(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """All loads are over: close what none of them has needed."""
        while self.weights:
            os.close(self.weights.popitem()[1])

    def _options(self, order: LoadOrder) -> ModelOptions:
        if order.options:
            return ModelOptions(order.name, *order.options)
        return ModelOptions(order.name, self.batching.batch_rows_max, [], False, False, False)

    # ------------------------------------------------------------------------------------------------------ warm-up

    def _warm_up(self, model: Model, order: LoadOrder) -> tuple[warmup.Replayed, str]:
        """Warm the model up, and say how. Raises LoadError when its own warm-up file fails."""
        lifecycle, options = self.lifecycle, self._options(order)
        if not lifecycle.enable_model_warmup:
            return _NO_FILE, "not warmed up: enable_model_warmup is off"
        path = warmup.find_file(Path(order.path))
        if path is None:
            return _NO_FILE, self._try_out(model, options)
        iterations = max(lifecycle.num_request_iterations_for_warmup, 1)
        replayed = warmup.replay(model, path, iterations, options, self.clock)
        sizes = warmup.widen(replayed.lanes, warmup.batch_sizes(options), self.clock)
        return replayed, f"warmed up with {replayed.records} records from {path}{_listed(sizes)}"

    def _try_out(self, model: Model, options: ModelOptions) -> str:
        if not self.lifecycle.synthetic_warmup:
            return "not warmed up: it brings no warm-up file, and synthetic_warmup is off"
        lanes, reasons = synthetic.lanes(model)
        if not lanes:
            return f"not warmed up: {reasons or 'it has no signature'}"
        sizes = warmup.widen(lanes, warmup.batch_sizes(options), self.clock)
        if not sizes:
            return "not warmed up: no signature runs on zeros" + (f"; {reasons}" if reasons else "")
        return f"warmed up on zeros{_listed(sizes)}" + (f"; not warmed up: {reasons}" if reasons else "")


def serves_tflite(path: Path) -> bool:
    """Whether the version in `path` is served with TFLite where that is preferred."""
    return tflite.model_file(path).is_file() and (tflite.available() or not _has_saved_model(path))


def _has_saved_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def _listed(sizes: list[int]) -> str:
    """Batch sizes in words; 0 stands for what cannot be batched."""
    text = ", ".join(str(rows) for rows in sizes if rows)
    return f", batches of {text} rows" if text else ""
