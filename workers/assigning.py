"""A worker's side of shared weights: the graph is made ready before its import, and then each variable is assigned.

A variable that is assigned a fed array takes over its buffer, and TensorFlow takes an aligned array as it is: so the
variable *is* the view of the mapped file. It does not own that memory, hence an update makes a copy first, and a
violation would end the process: the mapping cannot be written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringserve.broker.messages import InputSpec
from ringserve.workers import gather, session, shared
from ringserve.workers.graph import GraphIndex, node_name
from ringserve.workers.weights import Weights, WeightsError

_PREFIX = "ringserve_weights"


class Assigner:
    """Gives one model its shared weights: make it before the graph is imported, run it after the restore."""

    def __init__(self, meta_graph: Any, weights: Weights) -> None:
        """Change `meta_graph` in place: nodes that assign, references made resources, no restore where it would do
        nothing else. Raises WeightsError when these are not the weights of this model."""
        plan = shared.Plan.unpack(weights.about)
        if plan.fingerprint != shared.fingerprint(meta_graph):
            raise WeightsError("the model's files are not those that the weights were read from")
        self._weights = weights
        if plan.references:
            make_resources(meta_graph, plan)
        if not plan.restores:
            meta_graph.saver_def.ClearField("restore_op_name")
        handles = {name: name for name in plan.variables} | _lift(meta_graph.graph_def, plan.constants)
        self._nodes = _add_assignments(meta_graph.graph_def, weights, handles)

    def run(self, live_session: Any) -> None:
        """Assign all. Raises tf.errors.OpError."""
        feeds = {f"{node}/value:0": self._fed(name) for name, node in self._nodes.items()}
        if feeds:
            session.run_all_here(live_session, [f"{node}/assign" for node in self._nodes.values()], feeds)

    def _fed(self, name: str) -> Any:
        """The array as TensorFlow wants to be fed it: views of quantized types are structures of one integer."""
        array = self._weights.array(name)
        wanted = feed_dtype(self._weights.entry(name).dtype)
        return array if wanted is None or array.dtype == wanted else array.view(wanted)


def feed_dtype(number: int) -> np.dtype[Any] | None:
    """The numpy type of a fed array of this DataType; None for strings."""
    return gather.layout_of(InputSpec("", number, ())).dtype


def _lift(graph_def: Any, names: Sequence[str]) -> dict[str, str]:
    """Turn these Const nodes into ReadVariableOps of new variables, whose handles are returned, by name."""
    nodes = {node.name: node for node in graph_def.node}
    taken, handles = set(nodes), {}
    for name in names:
        node = nodes.get(name)
        if node is None:
            raise WeightsError(f"the graph has no constant {name}")
        value = node.attr["value"].tensor
        number, shape = value.dtype, value.tensor_shape.SerializeToString()
        handle = handles[name] = _free_name(f"{name}/{_PREFIX}_handle", taken)
        variable = graph_def.node.add(name=handle, op="VarHandleOp", device=node.device)
        variable.attr["dtype"].type = number
        variable.attr["shape"].shape.ParseFromString(shape)
        variable.attr["shared_name"].s = f"{_PREFIX}/{name}".encode()
        node.op = "ReadVariableOp"
        node.attr.clear()
        node.attr["dtype"].type = number
        node.input[:] = [handle, *node.input]
    return handles


def _add_assignments(graph_def: Any, weights: Weights, handles: Mapping[str, str]) -> dict[str, str]:
    """Add a placeholder and an assignment for each value to its handle; the folder of these two nodes, by name."""
    nodes = {node.name: node for node in graph_def.node}
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in nodes):
        prefix += "_"
    added = {}
    for number, (name, handle) in enumerate(handles.items()):
        variable, entry = nodes.get(handle), weights.entry(name)
        if variable is None:
            raise WeightsError(f"the graph has no variable {name}")
        folder = added[name] = f"{prefix}/{number}"
        value = graph_def.node.add(name=f"{folder}/value", op="Placeholder")
        value.attr["dtype"].type = entry.dtype
        for size in entry.shape:
            value.attr["shape"].shape.dim.add(size=size)
        value.attr["shape"].shape.SetInParent()
        assign = graph_def.node.add(
            name=f"{folder}/assign", op="AssignVariableOp", input=[handle, value.name], device=variable.device
        )
        assign.attr["dtype"].type = entry.dtype
    return added


def make_resources(meta_graph: Any, plan: shared.Plan) -> None:
    """Turn VariableV2 into VarHandleOp, and each use of it into a ReadVariableOp's; leave out what no worker runs.

    What is left out may take references (initialisers, training), which would not fit any more.
    """
    graph_def = meta_graph.graph_def
    references = set(plan.references)
    needed = shared.needed_nodes(meta_graph, GraphIndex(graph_def), plan.restores) | set(plan.variables)
    kept = [node for node in graph_def.node if node.name in needed]
    names = {node.name for node in kept}
    reads = {name: _free_name(f"{name}/{_PREFIX}_read", names) for name in references}
    added = []
    for node in kept:
        if node.name in references:
            added.append(_make_resource(node, reads[node.name]))
            continue
        _forget_places(node, needed)
        if node.op == "Assign" and node_name(node.input[0]) in references:
            number = node.attr["T"].type
            node.op = "AssignVariableOp"
            node.attr.clear()
            node.attr["dtype"].type = number
            start = 1
        else:
            start = 0
        for position, name in enumerate(node.input):
            if position >= start and not name.startswith("^") and node_name(name) in references:
                node.input[position] = reads[node_name(name)]
    kept += added
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph_def.node[:]
    graph_def.node.extend(copies)


def _make_resource(node: Any, read_name: str) -> Any:
    """Turn a VariableV2 node into a VarHandleOp; returns the node that reads it."""
    attr = node.attr
    number, shape = attr["dtype"].type, attr["shape"].shape.SerializeToString()
    # The oldest op has a shape of no axes where it means any.
    is_any = node.op == "Variable" and not attr["shape"].shape.dim
    node.op = "VarHandleOp"
    node.attr.clear()
    node.attr["dtype"].type = number
    # Unlike VariableV2, whose name is its node's where it has no other.
    node.attr["shared_name"].s = f"{_PREFIX}/{node.name}".encode()
    node.attr["shape"].shape.ParseFromString(shape)
    if is_any:
        node.attr["shape"].shape.unknown_rank = True
    read = type(node)(name=read_name, op="ReadVariableOp", input=[node.name], device=node.device)
    read.attr["dtype"].type = number
    return read


def _forget_places(node: Any, needed: set[str]) -> None:
    """Drop wishes to be placed beside nodes that are left out: the import refuses them."""
    places = [place for place in node.attr["_class"].list.s if place.removeprefix(b"loc:@").decode() in needed]
    if places:
        node.attr["_class"].list.s[:] = places
    else:
        del node.attr["_class"]


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def give_memory_back() -> None:
    """After a load: what a restore read is replaced, the graph's bytes are parsed, and glibc would keep the pages."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
