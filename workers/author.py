"""An author: a process that loads one version, writes its weights into memory for all workers, reports, and exits.

It restores the variables as a worker would, so it finds the same failures, but it runs no init op and no signature.
What goes wrong while it *shares* what it has restored never costs the model: then each worker loads its own weights.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from ringserve.broker import wire
from ringserve.broker.messages import Author
from ringserve.config import process
from ringserve.config.schema import Settings
from ringserve.shm import dtype as dtypes
from ringserve.workers import assigning, device, loader, session, shared, signature
from ringserve.workers.graph import GraphIndex
from ringserve.workers.loading import NICENESS, failure_of_load
from ringserve.workers.opening import serves_tflite
from ringserve.workers.quiet import quiet
from ringserve.workers.weights import WeightsWriter

log = logging.getLogger(__name__)

#: Variables are read from TensorFlow this much at a time; a larger one by itself.
_READ_BYTES_MAX = 32 * 2**20


class Report(NamedTuple):
    """What the author tells the pool. Fields as in `Authored`."""

    error_code: int = 0
    error_text: str = ""
    bytes_shared: int = 0
    bytes_private: int = 0
    notes: Sequence[str] = ()


def run(settings: Settings, order: Author, weights_fd: int, report_fd: int, pool_fd: int) -> int:
    """Be an author, from the fork on. weights_fd: empty, to be filled and sealed. Returns the exit status."""
    process.begin(f"author-{order.weights_id}", settings.server.log_level, settings.server.log_format)
    process.end_sooner(process.AUTHOR_POINTS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the pool, which gets it too, ends its authors
    # Threads inherit these, so they come before TensorFlow starts its own.
    if order.gentle:
        _give_way()
    device.pin(order.cpus)
    _end_with(pool_fd)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    name, version, path = order.order.name, order.order.version, Path(order.order.path)
    if settings.lifecycle.prefer_tflite_model and serves_tflite(path):
        report = Report()
    else:
        tags = tuple(settings.workers.saved_model_tags.split(","))
        with quiet(settings.server.log_level):
            try:
                report = write_weights(path, name, tags, order.threads, weights_fd)
            except Exception as error:
                code, text = failure_of_load(error, name, version)
                report = Report(int(code), text)
    os.pwrite(report_fd, wire.pack_fields(report), 0)
    return process.Exit.OK


def write_weights(path: Path, name: str, tags: Sequence[str], threads: int, fd: int) -> Report:
    """Load the version in `path` and fill `fd` with its weights where they can be shared. Raises LoadError."""
    meta_graph = loader.read_meta_graph(path, tags)
    fingerprint = shared.fingerprint(meta_graph)  # before the import, which changes it
    graph = loader.import_graph(meta_graph, name)
    index = GraphIndex(meta_graph.graph_def)
    survey = source = None
    try:
        source = _Variables(graph)
        survey = shared.Survey(meta_graph, index, source.takes_references)
        source.add_reads(survey.variables)
    except Exception:
        log.exception("model %s: its variables cannot be told apart", name)
    live_session = _restored(graph, meta_graph, index, path, threads)
    if survey is None or source is None:
        return Report(notes=[_FAILED])
    try:
        source.session = live_session
        entries = signature.signatures_of(meta_graph).values()
        changes_state = any(index.traits(e.outputs.values(), e.inputs.values()).changes_state for e in entries)
        return _share(survey, source, fingerprint, changes_state, fd)
    except Exception as error:
        log.exception("model %s: its weights are not shared", name)
        return Report(notes=[f"{_FAILED}: {type(error).__name__}: {error}"])


def _restored(graph: Any, meta_graph: Any, index: GraphIndex, path: Path, threads: int) -> Any:
    """A session with the variables' values, run as a worker would, so that it fails in the same words."""
    executor = session.SINGLE_THREADED
    if index.traits([meta_graph.saver_def.restore_op_name]).needs_ordinary_executor:
        executor = session.ORDINARY
    live_session = session.open_session(graph, executor, threads)
    try:
        loader.restore(live_session, meta_graph, index, path)
    except tf.errors.UnimplementedError:
        live_session = session.open_session(graph, session.ORDINARY, threads)
        loader.restore(live_session, meta_graph, index, path)
    return live_session


_FAILED = "its weights are private to each worker: they could not be shared"


def _share(survey: shared.Survey, source: _Variables, fingerprint: bytes, changes_state: bool, fd: int) -> Report:
    there = source.initialised(survey.variables)
    constants = survey.constants()
    if not there and not constants:
        return Report(notes=["it has no weights to share"])
    if changes_state:
        nbytes = source.bytes_of(there)
        return Report(bytes_private=nbytes, notes=["its weights are private: it changes them while serving"])
    shared_there = [each for each in there if not each.why_not]
    plan = shared.Plan(
        [each.node for each in shared_there],
        [each.node for each in shared_there if each.reference],
        [node.name for node in constants],
        survey.restores({each.node for each in shared_there}),
        fingerprint,
    )
    if plan.references:
        _try_out(survey.meta_graph, plan)
    writer = WeightsWriter(fd)
    numeric_bytes = private_bytes = 0
    for variable, array in source.values(shared_there):
        entry = writer.add(variable.node, variable.dtype, array)
        if variable.dtype == dtypes.STRING:
            private_bytes += entry.nbytes
        else:
            numeric_bytes += entry.nbytes
    for node in constants:
        array = shared.constant_value(node)
        numeric_bytes += writer.add(node.name, node.attr["value"].tensor.dtype, array).nbytes
    for variable in there:
        if variable.why_not:
            log.debug("variable %s stays private: it %s", variable.node, variable.why_not)
    private_bytes += source.bytes_of([each for each in there if each.why_not])
    if not numeric_bytes:
        reasons = [f"{each.node} {each.why_not}" for each in there if each.why_not]
        return Report(bytes_private=private_bytes, notes=[f"its weights are private: {_listed(reasons)}"])
    file_bytes = writer.finish(plan)
    return Report(0, "", file_bytes, private_bytes, [_note(numeric_bytes, there)])


def _try_out(meta_graph: Any, plan: shared.Plan) -> None:
    """Make the references resources as each worker will. Raises LoadError when TensorFlow does not take that graph."""
    changed = type(meta_graph)()
    changed.CopyFrom(meta_graph)
    assigning.make_resources(changed, plan)
    loader.import_graph(changed, "whose references are made resources")


def _note(numeric_bytes: int, there: Sequence[shared.Variable]) -> str:
    note = f"its weights ({_size(numeric_bytes)}) are shared by all workers"
    reasons = [f"{each.node} {each.why_not}" for each in there if each.why_not]
    if any(each.dtype == dtypes.STRING and not each.why_not for each in there):
        reasons.append("strings")
    return f"{note}; private to each: {_listed(reasons)}" if reasons else note


def _listed(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return ", ".join(reasons[:3]) + more if reasons else "strings only"


def _size(nbytes: int) -> str:
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= of:
            return f"{nbytes / of:.3g} {unit}" if nbytes < 100 * of else f"{nbytes // of} {unit}"
    return f"{nbytes} bytes"


class _Variables:
    """The variables of a restored model: made before the session, which `session` is to hold."""

    def __init__(self, graph: Any) -> None:
        self.session: Any = None
        self._graph = graph
        self._takers = {
            op.type for op in graph.get_operations() if op.op_def and any(arg.is_ref for arg in op.op_def.input_arg)
        }
        #: Of each variable's node: the tensor with its value; whether it has one, where that is not known; and the op
        #: that has TensorFlow give the value up once it is read.
        self._reads: dict[str, tuple[Any, Any, Any]] = {}

    def takes_references(self, op: str) -> bool:
        return op in self._takers

    def add_reads(self, variables: Sequence[shared.Variable]) -> None:
        """Put what reads them into the graph."""
        raw = tf.raw_ops
        with self._graph.as_default(), tf.name_scope("ringserve_author"):
            for variable in variables:
                if variable.dtype not in dtypes.DTYPES:
                    continue
                handle = self._graph.get_tensor_by_name(f"{variable.node}:0")
                there = free = None
                if variable.reference:
                    value = handle
                    if not variable.restored:
                        there = raw.IsVariableInitialized(ref=handle)
                else:
                    value = raw.ReadVariableOp(resource=handle, dtype=tf.as_dtype(variable.dtype))
                    with tf.control_dependencies([value]):
                        free = raw.DestroyResourceOp(resource=handle, ignore_lookup_error=True)
                    if not variable.restored:
                        there = raw.VarIsInitializedOp(resource=handle)
                self._reads[variable.node] = (value, there, free)

    def initialised(self, variables: Sequence[shared.Variable]) -> list[shared.Variable]:
        """Those that have a value."""
        variables = [each for each in variables if each.node in self._reads]
        there = {each.node: self._reads[each.node][1] for each in variables}
        asked = {node: flag for node, flag in there.items() if flag is not None}
        flags = session.run_all_here(self.session, asked, {}) if asked else {}
        return [each for each in variables if flags.get(each.node, True)]

    def bytes_of(self, variables: Sequence[shared.Variable]) -> int:
        """Of all of them; those whose nodes do not say are read for it."""
        unknown = [each for each in variables if not each.nbytes]
        return sum(each.nbytes for each in variables) + sum(int(array.nbytes) for _, array in self.values(unknown))

    def values(self, variables: Sequence[shared.Variable]) -> Iterator[tuple[shared.Variable, Any]]:
        """Each with its value, which TensorFlow then gives up: a variable can be read once."""
        for several in _in_portions(variables):
            reads = [self._reads[each.node] for each in several]
            frees = [free for _, _, free in reads if free is not None]
            arrays, _ = session.run_all_here(self.session, [[value for value, _, _ in reads], frees], {})
            arrays.reverse()
            for variable in several:
                yield variable, arrays.pop()


def _in_portions(variables: Sequence[shared.Variable]) -> Iterator[list[shared.Variable]]:
    """Several small ones together, as each run costs; one whose size its node does not tell alone."""
    portion: list[shared.Variable] = []
    nbytes = 0
    for variable in variables:
        if portion and (not variable.nbytes or nbytes + variable.nbytes > _READ_BYTES_MAX):
            yield portion
            portion, nbytes = [], 0
        portion.append(variable)
        nbytes += variable.nbytes or _READ_BYTES_MAX
    if portion:
        yield portion


def _give_way() -> None:
    """Run when nobody else wants to; where a sandbox forbids it, run as ever."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        log.warning("cannot give way to those that serve: %s", error)


def _end_with(pool_fd: int) -> None:
    """End this process when the pool is gone, wherever it is then: nobody would ever look at what it writes."""

    def watch() -> None:
        os.read(pool_fd, 1)
        os._exit(process.Exit.OK)

    threading.Thread(target=watch, name="pool", daemon=True).start()
