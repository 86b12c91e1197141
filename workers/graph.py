"""What a graph is made of, read off its GraphDef before anything runs: what decides how it must be run.

Pure reading of protos; everything reachable from the tensors that will be fetched counts, with the bodies of the
functions called on the way. Nodes that only training used do not count.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

#: Control flow of TensorFlow 1, and variables handed out by reference: the single-threaded executor refuses both.
_ORDINARY_EXECUTOR_OPS = frozenset(
    {
        *("Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond"),
        *("RefSwitch", "RefMerge", "RefEnter", "RefExit", "RefNextIteration", "RefSelect", "RefIdentity"),
        *("Variable", "VariableV2", "TemporaryVariable", "DestroyTemporaryVariable", "AutoReloadVariable"),
    }
)

#: What is run depends on a value, which is one for all rows, or on a switch that says "training".
_BRANCH_OPS = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "Switch", "RefSwitch"})
#: What there is in the branches of a check (the first), one of which fails and the other does nothing.
_CHECK, _CHECKING_OPS = "Assert", frozenset({"Assert", "Const", "Identity", "NoOp"})

_LOOP_OPS = frozenset({"While", "StatelessWhile", "For", "NextIteration", "RefNextIteration"})

# Ops that change something which a later run sees. Random ops keep a state too, but no request relies on it; those of
# tf.random.Generator keep it in a variable, of which two workers would have the same, and give the same numbers twice.
_CHANGING_OPS = re.compile(
    r"(Ref)?Assign|Assign(Add|Sub)?(VariableOp)?$|Resource(Scatter|StridedSlice|Apply|SparseApply|Accumulator|CountUpTo)|"
    r"Scatter(Nd)?(Update|Add|Sub|Mul|Div|Min|Max)$|(Sparse)?Apply[A-Z]|CountUpTo|LookupTable(Insert|Import|Remove)|"
    r"Queue|Stack(Push|Pop)|Barrier|(Un)?[Ss]tage|(Ordered)?Map(Un)?[Ss]tage|Iterator(GetNext|FromString)|"
    r"(Eager)?PyFunc|AccumulatorApply|Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)|Rng(ReadAnd)?Skip"
)
# Ops that write into what they are given.
_IN_PLACE_OPS = frozenset({"InplaceUpdate", "InplaceAdd", "InplaceSub"})
# Ops that take an array of any rank. A graph of nothing else is run on shapes that its signature does not allow, as
# TF Serving does (its own tests send [3] where [-1, 1] stands); elsewhere a kernel may end the process over a rank
# that it never expects (oneDNN's convolution does).
_ANY_SHAPE_OPS = frozenset(
    {
        *("Placeholder", "PlaceholderWithDefault", "Const", "NoOp", "Identity", "IdentityN", "_Arg", "_Retval"),
        *("VarHandleOp", "ReadVariableOp", "Variable", "VariableV2", "PartitionedCall", "StatefulPartitionedCall"),
        *("Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Maximum", "Minimum", "Neg", "Abs", "Square", "Sqrt", "Exp"),
        *("Log", "Sigmoid", "Tanh", "Relu", "Cast", "StopGradient"),
    }
)
_VARIABLE_OPS = frozenset({"Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"})


@dataclass(frozen=True)
class Traits:
    """Of what runs for some tensors.

    needs_ordinary_executor, takes_any_shape: see above. loops: a run may take any time. changes_state: a later run may
    answer differently. writes_inputs: a run may write into what it is fed. branches: what runs may depend on values.
    """

    needs_ordinary_executor: bool
    loops: bool
    changes_state: bool
    takes_any_shape: bool
    writes_inputs: bool
    branches: bool


class GraphIndex:
    """A meta graph's nodes by name and functions by name."""

    def __init__(self, graph_def: Any) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._functions = {function.signature.name: function for function in graph_def.library.function}

    def has_variables(self) -> bool:
        return any(node.op in _VARIABLE_OPS for node in self._nodes.values())

    def traits(self, targets: Iterable[str], stop: Collection[str] = ()) -> Traits:
        """Of what runs when `targets` (tensor or node names) are fetched and the tensors `stop` are fed."""
        fed = {node_name(name) for name in stop}
        nodes = self.reached(targets, fed)
        ops = self._ops(nodes)
        return Traits(
            needs_ordinary_executor=not ops.isdisjoint(_ORDINARY_EXECUTOR_OPS),
            loops=not ops.isdisjoint(_LOOP_OPS),
            changes_state=any(_CHANGING_OPS.match(op) for op in ops),
            takes_any_shape=self._ops(_computed_from(fed, nodes)) <= _ANY_SHAPE_OPS | self._functions.keys(),
            writes_inputs=not ops.isdisjoint(_IN_PLACE_OPS),
            branches=any(map(self._branches, [*nodes, *self.bodies(nodes)])),
        )

    def _branches(self, node: Any) -> bool:
        if node.op not in _BRANCH_OPS:
            return False
        within = {each.op for each in self.bodies([node])}
        return _CHECK not in within or not within <= _CHECKING_OPS

    def reached(self, targets: Iterable[str], stop: Collection[str] = ()) -> list[Any]:
        """The nodes that run when `targets` (tensor or node names) are fetched and the nodes `stop` are fed."""
        nodes = []
        waiting = [node_name(name) for name in targets]
        seen = {*waiting, *stop}
        while waiting:
            node = self._nodes.get(waiting.pop())
            if node is None or node.name in stop:
                continue
            nodes.append(node)
            for name in map(node_name, node.input):
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return nodes

    def _ops(self, nodes: Iterable[Any]) -> set[str]:
        """The nodes' ops, and all ops of the functions that they call or hold as attributes."""
        called = list(nodes)
        return {node.op for node in called} | {node.op for node in self.bodies(called)}

    def bodies(self, nodes: Iterable[Any]) -> list[Any]:
        """The nodes of all functions that these nodes, and those functions, call or hold as attributes."""
        found: list[Any] = []
        seen: set[str] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            names = [node.op]
            for value in node.attr.values():
                names.append(value.func.name)
                names.extend(function.name for function in value.list.func)
            for name in names:
                function = self._functions.get(name)
                if function is not None and name not in seen:
                    seen.add(name)
                    found.extend(function.node_def)
                    waiting.extend(function.node_def)
        return found

    def is_function(self, op: str) -> bool:
        """Whether an op's name is that of a function of this graph."""
        return op in self._functions


def _computed_from(fed: set[str], nodes: Iterable[Any]) -> list[Any]:
    """Those of the nodes that are computed from what the nodes `fed` are fed with."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            if not name.startswith("^"):
                readers.setdefault(node_name(name), []).append(node)
    found: dict[str, Any] = {}
    waiting = list(fed)
    while waiting:
        for node in readers.get(waiting.pop(), ()):
            if node.name not in found:
                found[node.name] = node
                waiting.append(node.name)
    return list(found.values())


def node_name(name: str) -> str:
    """`^node` or `node:1` -> `node`."""
    return name.removeprefix("^").partition(":")[0]
