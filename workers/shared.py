"""Which of a model's variables workers can share, read off its graph, and whether the restore then has more to do.

Pure reading of protos; the author does it once for all workers and writes what it found (`Plan`) beside the weights.

A *resource* is what VarHandleOps of one container, name and device stand for. A *reference* is a variable of
TensorFlow 1 (VariableV2), which hands out its own buffer; where the part of the graph that serves only reads it, it can
be made a resource (`assigning.py`) and shared as well. So can a large constant of which only rows are taken: taking
rows is copying, and the same bits whether TensorFlow knows that it is constant or not (of a product that is not so).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Self

import numpy as np

from ringserve.shm import dtype as dtypes
from ringserve.workers import loader
from ringserve.workers.graph import GraphIndex, node_name

_HANDLE = "VarHandleOp"
#: Ops that copy rows of their first input.
_GATHER_OPS = frozenset({"Gather", "GatherV2", "GatherNd"})
_CONSTANT_BYTES_MIN = 1 << 20
_REFERENCE_OPS = frozenset({"Variable", "VariableV2"})
#: A VarHandleOp of this shared_name makes a new variable in each run.
_ANONYMOUS = b"cd2c89b7-88b7-44c8-ad83-06c2a9158347"

#: What a restore op may consist of and yet do nothing but assign what it has read to variables.
_RESTORE_OPS = frozenset(
    {
        *("RestoreV2", "Restore", "RestoreSlice", "AssignVariableOp", "Assign", "ReadVariableOp", "DisableCopyOnRead"),
        *("Const", "Placeholder", "PlaceholderWithDefault", "NoOp", "Identity", "IdentityN", "_Arg", "_Retval"),
        *("StringJoin", "ShardedFilename", "Reshape", "Pack", "Unpack", "Split", "SplitV", "Slice", "StridedSlice"),
        *("ConcatV2", "ExpandDims", "Squeeze", "Transpose", "Cast", "Shape", "Fill", "PartitionedCall"),
        *("StatefulPartitionedCall", "VarHandleOp", *_REFERENCE_OPS),
    }
)


class Plan(NamedTuple):
    """What is shared of a model, and what a worker does with it.

    variables: names of the nodes whose variables are assigned; each is the name of its value in the file, too.
    references: those of them that are to be made resources. constants: likewise, names of Const nodes and of values.
    restores: whether the restore op must run nevertheless, because it does more than to assign the variables.
    fingerprint: of the meta graph that this is about.
    """

    variables: list[str]
    references: list[str]
    constants: list[str]
    restores: bool
    fingerprint: bytes

    @classmethod
    def unpack(cls, fields: list[Any]) -> Self:
        """Of `about`, as a reader gets it. Raises TypeError."""
        return cls(*fields)


def fingerprint(meta_graph: Any) -> bytes:
    """Equal for equal meta graphs, within one version of the libraries."""
    return hashlib.blake2b(meta_graph.SerializeToString(deterministic=True), digest_size=16).digest()


class Variable(NamedTuple):
    """A variable that the served part of a graph uses. dtype: DataType number. why_not: why it cannot be shared.

    nbytes: as far as its node says; 0 when that is not known. restored: whether the restore op sees to its value.
    """

    node: str
    dtype: int
    reference: bool
    nbytes: int
    restored: bool
    why_not: str = ""


class Survey:
    """The variables of a model. takes_references: of an op's name, whether any of its inputs is a reference."""

    def __init__(self, meta_graph: Any, index: GraphIndex, takes_references: Callable[[str], bool]) -> None:
        self.meta_graph = meta_graph
        self._index = index
        self._takes_references = takes_references
        #: Names of tensors that clients or the loader name.
        self._named = _named_tensors(meta_graph)
        served = index.reached(self._named)
        bodies = index.bodies(served)
        if any(node.op == _HANDLE for node in bodies):
            served = list(meta_graph.graph_def.node)  # a function finds variables by name
        restore_op = meta_graph.saver_def.restore_op_name
        self._restored = index.reached([restore_op]) if restore_op else []
        self._restored_names = {node.name for node in self._restored}
        self._served = {node.name: node for node in served}
        self._by_identity: dict[tuple[Any, ...], list[Any]] = {}
        for node in served:
            if node.op == _HANDLE or node.op in _REFERENCE_OPS:
                self._by_identity.setdefault(_identity(node), []).append(node)
        self._why_nots = self._why_references_stay()
        #: In the order of the graph; one for each variable, however many nodes stand for it.
        self.variables = [self._variable(nodes) for nodes in self._by_identity.values()]

    def constants(self) -> list[Any]:
        """Large Const nodes of which the served part of the graph only takes rows."""
        readers: dict[str, list[tuple[Any, int]]] = {}
        for node in self._served.values():
            for position, name in enumerate(node.input):
                if not name.startswith("^"):
                    readers.setdefault(node_name(name), []).append((node, position))
        named = set(map(node_name, self._named))

        def only_rows(name: str) -> bool:
            return name not in named and all(
                (reader.op in _GATHER_OPS and position == 0) or (reader.op == "Identity" and only_rows(reader.name))
                for reader, position in readers.get(name, ())
            )

        large = [node for node in self._served.values() if node.op == "Const" and _is_large(node)]
        return [node for node in large if only_rows(node.name)]

    def _variable(self, nodes: list[Any]) -> Variable:
        node = nodes[0]
        number = int(node.attr["dtype"].type)
        why_not = next((self._why_nots[n.name] for n in nodes if n.name in self._why_nots), "")
        if number not in dtypes.DTYPES:
            why_not = f"is of type {dtypes.name_of(number)}"
        elif _bytes(node, "shared_name") == _ANONYMOUS:
            why_not = "is made anew in each run"
        elif len(nodes) > 1 and node.op != _HANDLE:
            why_not = "is a reference that several nodes hand out"
        restored = not self._restored_names.isdisjoint(n.name for n in nodes)
        return Variable(node.name, number, node.op != _HANDLE, _declared_bytes(node, number), restored, why_not)

    def _why_references_stay(self) -> dict[str, str]:
        """Of each reference that something may write, or that is named from outside: what keeps it as it is."""
        references = {node.name for node in self._served.values() if node.op in _REFERENCE_OPS}
        if not references:
            return {}
        found = {name: "is an input or output itself" for name in map(node_name, self._named) if name in references}
        restored = {node.name: node for node in self._restored if node.name not in self._served}
        used = _data_inputs([*self._served.values(), *restored.values()])
        for reader in [*self._served.values(), *restored.values()]:
            if not self._takes_references(reader.op):
                continue
            # What the restore assigns is rewritten, too, unless somebody goes on with what Assign hands out.
            plain = reader.name in restored and reader.op == "Assign" and reader.name not in used
            for position, name in enumerate(map(node_name, reader.input)):
                if name in references and not (plain and position == 0):
                    found[name] = f"is a reference, which {reader.name} ({reader.op}) takes"
        return found

    def restores(self, shared: Collection[str]) -> bool:
        """Whether the restore op does more than to assign these variables, and others that nothing served uses."""
        bodies = self._index.bodies(self._restored)
        if any(node.op == _HANDLE for node in bodies):
            return True
        if any(node.op not in _RESTORE_OPS and not self._index.is_function(node.op) for node in self._all(bodies)):
            return True
        used = {_identity(nodes[0]): nodes[0].name in shared for nodes in self._by_identity.values()}
        return any(
            not used.get(_identity(node), True)
            for node in self._restored
            if node.op == _HANDLE or node.op in _REFERENCE_OPS
        )

    def _all(self, bodies: list[Any]) -> Iterable[Any]:
        yield from self._restored
        yield from bodies


def _identity(node: Any) -> tuple[Any, ...]:
    """Equal for nodes that stand for one variable."""
    # A reference without a name has its node's; handles without a name are all of one resource.
    is_handle = node.op == _HANDLE
    name = _bytes(node, "shared_name") or (b"" if is_handle else node.name.encode())
    return is_handle, _bytes(node, "container"), name, node.device


def _bytes(node: Any, name: str) -> bytes:
    """An attribute; looking up one that is missing would add it to the node."""
    return bytes(node.attr[name].s) if name in node.attr else b""


def _named_tensors(meta_graph: Any) -> list[str]:
    """Tensors that signatures, the loader, or the init op name: what must stay as it is."""
    names = [
        info.name
        for signature in meta_graph.signature_def.values()
        for infos in (signature.inputs, signature.outputs)
        for info in infos.values()
    ]
    names += loader.fed_tensors(meta_graph)
    names.append(loader.init_op_name(meta_graph))
    return [name for name in names if name]


def _data_inputs(nodes: Iterable[Any]) -> set[str]:
    """Names of the nodes whose outputs these take."""
    return {node_name(name) for node in nodes for name in node.input if not name.startswith("^")}


def _declared_bytes(node: Any, number: int) -> int:
    if "shape" not in node.attr:
        return 0
    shape = node.attr["shape"].shape
    count = 0 if shape.unknown_rank else 1
    for dim in shape.dim:
        count *= max(dim.size, 0)
    kind = dtypes.DTYPES.get(number)
    return count * kind.itemsize if kind is not None else 0


def _is_large(node: Any) -> bool:
    value = node.attr["value"].tensor
    kind = dtypes.DTYPES.get(value.dtype)
    return kind is not None and kind.numpy is not None and len(value.tensor_content) >= _CONSTANT_BYTES_MIN


def constant_value(node: Any) -> Any:
    """The array of a Const node that `Survey.constants` gave; it lies in the node."""
    value = node.attr["value"].tensor
    numpy = dtypes.dtype_of(value.dtype).numpy
    return np.frombuffer(value.tensor_content, numpy).reshape([dim.size for dim in value.tensor_shape.dim])


def needed_nodes(meta_graph: Any, index: GraphIndex, restores: bool) -> set[str]:
    """Names of all nodes that a worker may ever run."""
    targets = _named_tensors(meta_graph)
    if restores:
        targets.append(meta_graph.saver_def.restore_op_name)
    return {node.name for node in index.reached(targets)}
