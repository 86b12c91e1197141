"""What is read off a graph before it runs; graphs are given as lines `name op inputs...`."""

from __future__ import annotations

from typing import Any

import pytest


def graph_of(*lines: str, functions: dict[str, list[str]] | None = None) -> Any:
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef()
    for line in lines:
        name, op, *inputs = line.split()
        node = graph.node.add(name=name, op=op)
        for entry in inputs:
            if entry.startswith("@"):
                node.attr["f"].func.name = entry[1:]
            elif entry.startswith("+"):
                node.attr["branches"].list.func.add(name=entry[1:])
            else:
                node.input.append(entry)
    for name, body in (functions or {}).items():
        function = graph.library.function.add()
        function.signature.name = name
        for line in body:
            inner, op, *inputs = line.split()
            node = function.node_def.add(name=inner, op=op)
            for entry in inputs:
                node.attr["f"].func.name = entry.removeprefix("@")
    return graph


def traits(graph: Any, *targets: str, stop: tuple[str, ...] = ()) -> tuple[bool, bool, bool]:
    from ringserve.workers.graph import GraphIndex

    found = GraphIndex(graph).traits(targets, stop)
    return found.needs_ordinary_executor, found.loops, found.changes_state


CHAIN = ("x Placeholder", "v VarHandleOp", "r ReadVariableOp v", "y Mul x:0 r:0")


def test_a_plain_graph(tf: Any) -> None:
    assert traits(graph_of(*CHAIN), "y:0") == (False, False, False)


def test_graphs_that_take_any_shape(tf: Any) -> None:
    from ringserve.workers.graph import GraphIndex

    functions = {"f": ["m Mul @none"], "g": ["m MatMul @none"]}
    calls = ("c PartitionedCall x @f", "d PartitionedCall x @g", "e f x", "m MatMul r r", "n Add x m ^d")
    index = GraphIndex(graph_of(*CHAIN, *calls, functions=functions))
    found = {name: index.traits([name], ["x:0"]).takes_any_shape for name in "ycdemn"}
    # m is not computed from the input, so its shape does not matter to it; d runs before n may.
    assert found == {"y": True, "c": True, "d": False, "e": True, "m": True, "n": False}


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        *((f"Stateful{what}", True) for what in ("Uniform", "UniformInt", "UniformFullInt", "StandardNormalV2")),
        *((f"Stateful{what}", True) for what in ("TruncatedNormal", "RandomBinomial")),
        ("RngSkip", True),
        ("RngReadAndSkip", True),
        ("StatefulPartitionedCall", False),
        ("StatelessRandomUniform", False),
        ("RandomUniform", False),
    ],
)
def test_random_generators_keep_their_state_in_a_variable(tf: Any, op: str, changes: bool) -> None:
    assert traits(graph_of("v VarHandleOp", f"y {op} v"), "y:0") == (False, False, changes)


@pytest.mark.parametrize("op", ["InplaceUpdate", "InplaceAdd", "InplaceSub"])
def test_ops_that_write_into_what_they_are_given(tf: Any, op: str) -> None:
    from ringserve.workers.graph import GraphIndex

    index = GraphIndex(graph_of("x Placeholder", "a Add x x", f"y {op} x"))
    assert [index.traits([name], ["x:0"]).writes_inputs for name in "ay"] == [False, True]


def test_only_what_is_fetched_counts(tf: Any) -> None:
    graph = graph_of(*CHAIN, "train ResourceApplyAdam v y", "s Switch y y", "loop While y")
    assert traits(graph, "y:0") == (False, False, False)
    assert traits(graph, "train") == (False, False, True)
    assert traits(graph, "s:1", "y:0") == (True, False, False)
    assert traits(graph, "loop:0") == (False, True, False)


def test_what_is_above_a_feed_does_not_run(tf: Any) -> None:
    graph = graph_of("d IteratorGetNext", "x Identity d", "y Neg x:0")
    assert traits(graph, "y:0") == (False, False, True)
    assert traits(graph, "y:0", stop=("x:0",)) == (False, False, False)


def test_control_inputs_count(tf: Any) -> None:
    assert traits(graph_of("v VarHandleOp", "a AssignAddVariableOp v", "y Const ^a"), "y:0") == (False, False, True)


def test_functions_are_searched_through(tf: Any) -> None:
    functions = {
        "outer": ["c PartitionedCall @inner"],
        "inner": ["w While @body"],
        "body": ["a AssignVariableOp @none"],
    }
    assert traits(graph_of("y StatefulPartitionedCall @outer", functions=functions), "y:0") == (False, True, True)
    assert traits(graph_of("y Case +inner +none", functions=functions), "y:0") == (False, True, True)
    recursive = {"f": ["c PartitionedCall @f", "m Merge @none"]}
    assert traits(graph_of("y PartitionedCall @f", functions=recursive), "y:0") == (True, False, False)
    by_name = graph_of("y inner", functions=functions)  # a function called as if it were an op
    assert traits(by_name, "y:0") == (False, True, True)


@pytest.mark.parametrize(
    ("op", "changing"),
    [
        ("Assign", True), ("AssignAdd", True), ("AssignSub", True), ("AssignVariableOp", True),
        ("AssignAddVariableOp", True), ("ResourceScatterUpdate", True), ("ResourceApplyGradientDescent", True),
        ("ScatterAdd", True), ("ScatterNdUpdate", True), ("ApplyAdam", True), ("SparseApplyAdagrad", True),
        ("CountUpTo", True), ("LookupTableInsertV2", True), ("LookupTableImportV2", True), ("QueueEnqueueV2", True),
        ("QueueDequeueV2", True), ("StackPushV2", True), ("Unstage", True), ("IteratorGetNext", True),
        ("StackPopV2", True), ("MapStage", True), ("Stage", True),
        ("ResourceCountUpTo", True), ("ResourceStridedSliceAssign", True), ("BarrierTakeMany", True),
        ("ReadVariableOp", False), ("ResourceGather", False), ("ResourceGatherNd", False), ("ScatterNd", False),
        ("TensorScatterUpdate", False), ("LookupTableFindV2", False), ("LookupTableSizeV2", False),
        ("RandomUniform", False), ("Assert", False), ("TensorListPushBack", False), ("StaticRegexReplace", False),
        ("IsVariableInitialized", False), ("VariableShape", False), ("ApproximateEqual", False),
        ("HashTableV2", False), ("StackV2", False), ("MutableHashTableV2", False),
    ],
)  # fmt: skip
def test_ops_that_change_the_model(tf: Any, op: str, changing: bool) -> None:
    assert traits(graph_of(f"y {op}"), "y:0") == (False, False, changing)
