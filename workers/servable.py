"""A loaded SavedModel version: its signatures, and plans that run them. The one file that opens SavedModels.

Importing this file imports TensorFlow and does nothing else to it, so that a process which only imported it can fork
workers; `Servable.load` is for the worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ringserve.broker.messages import Code, InputSpec, LaneSpec
from ringserve.shm import dtype as dtypes
from ringserve.workers import loader, probe, session, signature
from ringserve.workers.assigning import Assigner
from ringserve.workers.failures import LoadError, RunFailure, clean, failure_of, failure_of_undecodable
from ringserve.workers.graph import GraphIndex, Traits
from ringserve.workers.interface import Independence
from ringserve.workers.weights import Weights

__all__ = ["LoadError", "Plan", "RunFailure", "Servable"]

#: Calls made per servable beside one for each whole signature: each other selection of outputs gets its own, and a
#: client may ask for any. None is ever released: with the single-threaded executor, kernels of functional control
#: flow (If, While) outlive the call that made them and then fail another call ("Handle: 0 not found").
_CALLS_MAX = 64


class Plan:
    """How the requests of one lane are run. Kept by the executor; several lanes may share the call below it."""

    __slots__ = (
        "_call",
        "_copies_feeds",
        "_plain",
        "_wiring",
        "changes_state",
        "independence",
        "output_dtypes",
        "per_row",
        "spec",
    )

    def __init__(
        self,
        spec: LaneSpec,
        wiring: signature.Wiring,
        call: session.Call | None,
        output_dtypes: tuple[int, ...],
        traits: Traits,
        per_row: bool,
        independence: Independence,
    ) -> None:
        self.spec = spec
        #: TensorFlow's DataType number of each output, in the lane's order.
        self.output_dtypes = output_dtypes
        #: False: the model was seen to give outputs that do not have one row for each row put in.
        self.per_row = per_row
        #: Whether a run may change what later runs answer. Such a lane's requests are run one by one, each once.
        self.changes_state = traits.changes_state
        self.independence = independence
        self._wiring = wiring
        self._call = call
        #: A variable that is assigned takes over the buffer of what it is assigned: it must not be a ring's. Nor may an
        #: op write there, which is mapped read-only.
        self._copies_feeds = traits.changes_state or traits.writes_inputs
        self._plain = (
            not wiring.same
            and not self._copies_feeds
            and wiring.feed_of == tuple(range(len(spec.inputs)))
            and wiring.sources == tuple(range(len(wiring.fetches)))
        )

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        """`feeds` in the lane's input order -> arrays in its output order. Raises RunFailure.

        The arrays may share memory with the feeds and with each other: copy what must live longer than the feeds.
        """
        try:
            outputs = self._call(*feeds) if self._plain and self._call is not None else self._run_wired(feeds)
        except tf.errors.OpError as error:
            failure = failure_of(error)
            # The traceback holds the feeds; while it lives their ring cannot be unmapped.
            raise RunFailure(failure.code, failure.text) from None
        except MemoryError:
            raise RunFailure(Code.RESOURCE_EXHAUSTED, "Out of memory while the model ran.") from None
        except UnicodeDecodeError as error:
            failure = failure_of_undecodable(error)
            raise RunFailure(failure.code, failure.text) from None
        except (TypeError, ValueError, RuntimeError) as error:
            # TensorFlow's binding refuses an array in these ways. It costs the request, not the worker.
            raise RunFailure(Code.INTERNAL, clean(str(error))) from None
        # An output of rank 0 comes back bare: a numpy scalar, or bytes.
        return [
            output if isinstance(output, np.ndarray) else np.array(output, object if type(output) is bytes else None)
            for output in outputs
        ]

    def _run_wired(self, feeds: Sequence[Any]) -> list[Any]:
        wiring = self._wiring
        for first, second in wiring.same:
            if not np.array_equal(feeds[first], feeds[second]):
                a, b = self.spec.inputs[first].alias, self.spec.inputs[second].alias
                raise RunFailure(
                    Code.INVALID_ARGUMENT, f'Inputs "{a}" and "{b}" are the same tensor of the model and must be equal.'
                )
        if self._copies_feeds:
            feeds = [np.array(feed) for feed in feeds]
        fetched = self._call(*(feeds[i] for i in wiring.feed_of)) if self._call is not None else []
        return [fetched[source] if source >= 0 else feeds[-1 - source] for source in wiring.sources]


class Servable:
    """One loaded model version, an `interface.Model`. One thread at a time uses it."""

    def __init__(
        self,
        name: str,
        version: int,
        meta_graph: Any,
        graph: Any,
        live_session: Any,
        executor: str,
        index: GraphIndex,
    ) -> None:
        """Use `load`."""
        self.name = name
        self.version = version
        #: Serialized tensorflow.serving.SignatureDefMap.
        self.signature_defs = signature.published(meta_graph)
        #: `session.SINGLE_THREADED` or `session.ORDINARY`.
        self.executor = executor
        self.signatures = signature.signatures_of(meta_graph)
        #: Of each signature: whether its runs may change variables or other state of the model.
        self.traits: dict[str, Traits] = {
            key: index.traits(s.outputs.values(), s.inputs.values()) for key, s in self.signatures.items()
        }
        self._graph = graph
        self._session = live_session
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], session.Call] = {}
        self._calls_max = _CALLS_MAX + len(self.signatures)
        #: Signatures seen to give outputs that do not follow the rows put in: the aliases of those outputs.
        self.not_per_row: dict[str, frozenset[str]] = {}
        #: Likewise those of which a row's depend on the other rows.
        self.dependent: dict[str, frozenset[str]] = {}
        #: Likewise those that were seen not to.
        self._independent: dict[str, frozenset[str]] = {}
        #: Those that may be as wide as the longest of a batch's rows, which the runs at load could not rule out.
        self.doubtful: dict[str, frozenset[str]] = {}

    @property
    def changes_state(self) -> bool:
        """Whether any signature's run may change what later runs answer: such a model must not have two copies."""
        return any(traits.changes_state for traits in self.traits.values())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        name: str,
        version: int,
        *,
        tags: Sequence[str] = ("serve",),
        threads: int = 1,
        probes: bool = True,
        weights: Weights | None = None,
    ) -> Servable:
        """Load the SavedModel in the directory `path`. `threads`: what one op may use. Raises LoadError.

        weights: its variables' values, in memory that others map too; without, they are read from the files.
        WeightsError: these are not this model's.

        Every signature is prepared for running here, and (with `probes`) run once on zeros where that is harmless,
        so that no request pays for it.
        """
        meta_graph = loader.read_meta_graph(Path(path), tags)
        assigner = Assigner(meta_graph, weights) if weights is not None else None
        graph = loader.import_graph(meta_graph, name)
        index = GraphIndex(meta_graph.graph_def)
        dense = [s for s in signature.signatures_of(meta_graph).values() if s.is_dense()]
        targets = loader.load_targets(meta_graph) + [t for s in dense for t in s.outputs.values()]
        executors = [session.SINGLE_THREADED, session.ORDINARY]
        traits = index.traits(targets)
        if traits.needs_ordinary_executor:
            executors.remove(session.SINGLE_THREADED)
        for executor in executors:
            # The ordinary executor's loops are no ops by themselves, and nothing folds them.
            fold_loops = executor == session.ORDINARY or not traits.loops
            live_session = session.open_session(graph, executor, threads, fold_loops=fold_loops)
            if executor == session.SINGLE_THREADED and session.has_gpu(live_session):
                live_session.close()  # a graph over two devices needs the executor that can wait for the other half
                continue
            try:
                loader.restore(live_session, meta_graph, index, path)
                if assigner is not None:
                    assigner.run(live_session)
                loader.initialise(live_session, meta_graph, path)
                servable = cls(name, version, meta_graph, graph, live_session, executor, index)
                servable._prepare(probes)
            except tf.errors.UnimplementedError as error:
                live_session.close()
                if not loader.is_executor_refusal(error):
                    raise
                continue
            except Exception:
                live_session.close()
                raise
            return servable
        raise LoadError(Code.INTERNAL, f"No executor of TensorFlow {tf.__version__} can run model {name}.")

    def _prepare(self, probes: bool) -> None:
        """Make each signature's call, and run it on zeros. Raises UnimplementedError when the executor cannot."""
        for key, entry in self.signatures.items():
            if not entry.is_dense():
                continue
            wiring = signature.wire(entry, tuple(entry.inputs), tuple(entry.outputs))
            try:
                self._call(wiring)
            except tf.errors.OpError as error:
                if loader.is_executor_refusal(error):
                    raise
                continue  # a signature that names what is not there fails when it is asked for, as in TF Serving
            wide = self._as_wide_as_values(entry)
            if probes and not self.why_not_try(key):
                probed = probe.try_rows(self, entry)
                self.not_per_row[key] = probed.not_per_row
                self.dependent[key] = probed.dependent
                wide -= probed.shown if probed.widely else frozenset()
                # Of branches it may have seen one only.
                self._independent[key] = frozenset() if self.traits[key].branches else probed.shown - wide
            self.doubtful[key] = wide

    def plan(self, spec: LaneSpec) -> Plan:
        """How to run this lane. Raises RunFailure for a lane that the model cannot run."""
        wiring = signature.wire_lane(self.signatures, spec)
        try:
            self._check_inputs(spec)
            wiring, call = self._wired_call(spec, wiring)
            output_dtypes = tuple(self._dtype(self.signatures[spec.signature].outputs[a]) for a in spec.outputs)
        except tf.errors.OpError as error:
            failure = failure_of(error)
            raise RunFailure(failure.code, failure.text) from None
        except (KeyError, ValueError) as error:
            raise RunFailure(Code.INVALID_ARGUMENT, str(error).strip("\"'")) from None
        per_row = not spec.batchable or self.not_per_row.get(spec.signature, frozenset()).isdisjoint(spec.outputs)
        independence = self._independence(spec)
        return Plan(spec, wiring, call, output_dtypes, self.traits[spec.signature], per_row, independence)

    def _independence(self, spec: LaneSpec) -> Independence:
        if not self.dependent.get(spec.signature, frozenset()).isdisjoint(spec.outputs):
            return Independence.REFUTED
        if not self.doubtful.get(spec.signature, frozenset()).isdisjoint(spec.outputs):
            return Independence.DOUBTFUL
        shown = self._independent.get(spec.signature, frozenset())
        return Independence.SHOWN if shown.issuperset(spec.outputs) else Independence.UNKNOWN

    def _as_wide_as_values(self, entry: signature.Signature) -> frozenset[str]:
        """Outputs with an axis of unknown size, where no input has one that it could come from: tokens of a text,
        say, or a mask of lengths. They are as wide as the longest row of the batch needs."""
        try:
            inputs = [self.shape(tensor_name) for tensor_name in entry.inputs.values()]
            if not all(shape and shape[0] is None and None not in shape[1:] for shape in inputs):
                return frozenset()
            shapes = {alias: self.shape(tensor_name) for alias, tensor_name in entry.outputs.items()}
        except (KeyError, ValueError):
            return frozenset()
        return frozenset(alias for alias, shape in shapes.items() if shape and None in shape[1:])

    def why_not_try(self, signature: str) -> str:
        """Why this signature must not be run on made-up values, in words; empty when that is harmless."""
        traits = self.traits[signature]
        if not self.signatures[signature].is_dense():
            return "sparse or composite tensors"
        return "changes the model" if traits.changes_state else "may loop for long" if traits.loops else ""

    def _call(self, wiring: signature.Wiring) -> session.Call | None:
        if not wiring.fetches:
            return None
        key = (wiring.feeds, wiring.fetches)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = session.make_call(self._session, wiring.feeds, wiring.fetches)
        return call

    def _wired_call(self, spec: LaneSpec, wiring: signature.Wiring) -> tuple[signature.Wiring, session.Call | None]:
        """A call for the lane: its own, or when there are too many the whole signature's, of which it takes a part."""
        if not wiring.fetches or (wiring.feeds, wiring.fetches) in self._calls or len(self._calls) < self._calls_max:
            return wiring, self._call(wiring)
        entry = self.signatures[spec.signature]
        whole = signature.wire(entry, tuple(i.alias for i in spec.inputs), tuple(entry.outputs))
        keys = [key for key in self._calls if set(whole.fetches) <= set(key[1])]
        by_feed = {frozenset(key[0]): key for key in keys}
        found = by_feed.get(frozenset(whole.feeds))
        if found is None:
            text = f"Too many different selections of inputs of signature {spec.signature} have been asked for."
            raise RunFailure(Code.RESOURCE_EXHAUSTED, text)
        feeds, fetches = found
        return signature.rewire(wiring, feeds, fetches), self._calls[found]

    def _check_inputs(self, spec: LaneSpec) -> None:
        """A kernel that meets a type or rank that it was not built for may end the process: no such lane may run."""
        for position, given in enumerate(spec.inputs):
            tensor_name = self.signatures[spec.signature].inputs[given.alias]
            declared = self.shape(tensor_name)
            shape = (None, *given.shape) if spec.batchable else given.shape
            if not _compatible(shape, declared) and not self.traits[spec.signature].takes_any_shape:
                text = f'Input "{given.alias}" must have shape {_shape_text(declared or ())}, not {_shape_text(shape)}.'
                raise RunFailure(Code.INVALID_ARGUMENT, text)
            expected = self._dtype(tensor_name)
            if given.dtype != expected:
                wanted, got = dtypes.name_of(expected), dtypes.name_of(given.dtype)
                text = f'Expects arg[{position}] to be {wanted} but {got} is provided (input "{given.alias}").'
                raise RunFailure(Code.INVALID_ARGUMENT, text)

    def _dtype(self, tensor_name: str) -> int:
        return int(self._graph.get_tensor_by_name(tensor_name).dtype.base_dtype.as_datatype_enum)

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """The shape that the graph knows of a tensor; None for an unknown rank. Raises KeyError, ValueError."""
        shape = self._graph.get_tensor_by_name(tensor_name).shape
        return None if shape.rank is None else tuple(shape.as_list())

    def input_spec(self, entry: signature.Signature, alias: str, shape: tuple[int, ...]) -> InputSpec:
        """An input of this shape and of the type that the graph expects. Raises KeyError, ValueError."""
        return InputSpec(alias, self._dtype(entry.inputs[alias]), shape)

    def close(self) -> None:
        """Free the model. Plans made from it must not be run any more."""
        self._calls.clear()
        self._session.close()


def _compatible(shape: tuple[int | None, ...], declared: tuple[int | None, ...] | None) -> bool:
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        a is None or a == -1 or b is None or a == b for a, b in zip(shape, declared, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"
