"""From named tensors to lanes: TF Serving's checks in its order and words, and which requests may share a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, Failure, InputSpec, LaneSpec
from ringserve.broker.wire import unpack_lane
from ringserve.config.protos import TensorProto
from ringserve.frontend.catalog import ServableView, SignatureView
from ringserve.frontend.lanes import LaneTable, Request, Tensor, find_signature
from ringserve.shm.dtype import DOUBLE, FLOAT, INT32, INT64, STRING
from tests.frontend.fakes import Specs, catalog_of, float_proto, signature_def, version_info


def servable_of(signature: Any, name: str = "serving_default") -> tuple[ServableView, SignatureView]:
    servable = catalog_of(version_info("m", 7, {name: signature})).resolve("m")
    assert isinstance(servable, ServableView)
    return servable, servable.signatures[name]


def floats(*shape: int) -> Tensor:
    return Tensor(FLOAT, shape, np.arange(int(np.prod(shape)), dtype="<f4").tobytes())


def bind(
    inputs: Specs,
    tensors: Mapping[str, Any],
    *,
    outputs: Specs | None = None,
    output_filter: Sequence[str] = (),
    **more: Any,
) -> Request | Failure:
    signature = signature_def(inputs, outputs or {"y": (FLOAT, [-1])}, **more)
    return LaneTable().bind(*servable_of(signature), tensors, output_filter)


def bound(*arguments: Any, **more: Any) -> Request:
    request = bind(*arguments, **more)
    assert isinstance(request, Request), request
    return request


def refused(*arguments: Any, **more: Any) -> str:
    failure = bind(*arguments, **more)
    assert isinstance(failure, Failure)
    assert failure.code == Code.INVALID_ARGUMENT
    return failure.text


# ----------------------------------------------------------------------------------------------------------- signature


def test_signature_is_found() -> None:
    servable, signature = servable_of(signature_def({}, {}, method_name="odd"))
    assert find_signature(servable, "") is signature
    assert find_signature(servable, "serving_default") is signature
    assert find_signature(servable, "s") == Failure(
        Code.FAILED_PRECONDITION, 'Serving signature key "s" not found.'
    )
    failure = find_signature(servable, "", check_method_name=True)
    assert failure == Failure(
        Code.INTERNAL,
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: odd",
    )


def test_default_signature_is_named_when_missing() -> None:
    servable, _ = servable_of(signature_def({}, {}), name="other")
    assert find_signature(servable, "") == Failure(
        Code.FAILED_PRECONDITION, 'Serving signature key "serving_default" not found.'
    )


# --------------------------------------------------------------------------------------------------------------- names

AB: Specs = {"a": (FLOAT, [-1]), "b": (FLOAT, [-1])}


def test_too_few_inputs() -> None:
    assert refused(AB, {"a": floats(1)}) == (
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}."
    )


def test_too_many_inputs() -> None:
    sent = {"a": floats(1), "z": floats(1), "b": floats(1), "y": floats(1)}
    assert refused(AB, sent) == (
        "input size does not match signature: 4!=2 len({a,b,y,z}) != len({a,b}). "
        "Sent extra: {y,z}. Missing but required: {}."
    )
    # more inputs than declared are refused even when there are defaults
    assert refused(AB, sent, defaults={"a": float_proto([1], [1])}).startswith("input size does not match")


def test_missing_input_without_default() -> None:
    assert refused(AB, {"a": floats(1), "z": floats(1)}) == (
        "Signature input alias: b(feed name: b:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {a,z}, or default input alias set: "
    )
    assert refused(AB, {"z": floats(1)}, defaults={"a": float_proto([1], [1])}) == (
        "Signature input alias: b(feed name: b:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {z}, or default input alias set: a"
    )


def test_surplus_name_where_a_default_fills_the_gap() -> None:
    assert refused(AB, {"a": floats(1), "z": floats(1)}, defaults={"b": float_proto([1], [1])}) == (
        "Inputs contains invalid name. Used request inputs: a, request input: a,z"
    )


def test_defaults_are_filled_in() -> None:
    request = bound(AB, {"a": floats(2)}, defaults={"b": float_proto([5, 6], [2])})
    assert [spec.alias for spec in request.lane.spec.inputs] == ["a", "b"]
    assert bytes(request.payloads[1]) == np.float32([5, 6]).tobytes()  # type: ignore[arg-type]
    assert request.rows == 2
    # a default of another number of rows than the request's keeps it from being batched
    request = bound(AB, {"a": floats(3)}, defaults={"b": float_proto([5, 6], [2])})
    assert not request.lane.spec.batchable
    assert request.rows == 1


def test_default_that_does_not_decode_is_reported_when_it_is_needed() -> None:
    bad = {"b": TensorProto(dtype=0)}
    assert refused(AB, {"a": floats(2)}, defaults=bad) == "tensor parsing error: b"
    assert bound(AB, {"a": floats(2), "b": floats(2)}, defaults=bad).rows == 2


def test_decoding_failure_is_reported_after_names_and_before_the_rest() -> None:
    broken = Failure(Code.INVALID_ARGUMENT, "tensor parsing error: a")
    assert refused(AB, {"a": broken, "b": floats(1)}, output_filter=["nope"]) == broken.text
    assert refused(AB, {"a": broken}).startswith("input size")


# ------------------------------------------------------------------------------------------------------- output filter

YZ: Specs = {"y": (FLOAT, [-1]), "z": (FLOAT, [-1])}


def test_output_filter() -> None:
    sent = {"a": floats(1), "b": floats(1)}
    assert bound(AB, sent, outputs=YZ).lane.spec.outputs == ("y", "z")
    assert bound(AB, sent, outputs=YZ, output_filter=["z"]).lane.spec.outputs == ("z",)
    assert bound(AB, sent, outputs=YZ, output_filter=["z", "y"]).lane.spec.outputs == ("y", "z")
    assert refused(AB, sent, outputs=YZ, output_filter=["y", "k"]) == (
        "output tensor alias not found in signature: k Outputs expected to be in the set {y,z}."
    )
    assert refused(AB, sent, outputs=YZ, output_filter=["y", "y"]) == "duplicate output tensor alias: y"


def test_only_wanted_outputs_decide_on_batching() -> None:
    outputs: Specs = {"y": (FLOAT, [-1]), "loss": (FLOAT, [])}
    sent = {"a": floats(1), "b": floats(1)}
    assert not bound(AB, sent, outputs=outputs).lane.spec.batchable
    assert bound(AB, sent, outputs=outputs, output_filter=["y"]).lane.spec.batchable


# ---------------------------------------------------------------------------------------------------- dtypes and shapes


def test_wrong_numeric_dtype_is_refused() -> None:
    sent = {"a": floats(1), "b": Tensor(INT32, (1,), b"\0\0\0\0")}
    assert refused(AB, sent) == "Expects arg[1] to be float but int32 is provided (input: b)"


def test_wrong_inner_dimension_is_refused() -> None:
    x: Specs = {"x": (FLOAT, [-1, 28, -1])}
    assert refused(x, {"x": floats(2, 27, 3)}) == (
        "input x has an incompatible shape: expected [-1,28,-1], got [2,27,3]"
    )
    assert bound(x, {"x": floats(2, 28, 3)}).lane.spec.inputs[0].shape == (28, 3)


@pytest.mark.parametrize(
    ("declared", "sent"),
    [
        ([-1, 1], (3,)),  # TF Serving's own suite sends these
        ([], (3,)),
        ([1], (3,)),
        ([-1], ()),
        ([-1], (2, 2)),
        (None, (3,)),
        (None, ()),
        ([2, 3], (2, 3)),
        ([-1], (0,)),
        ([-1, -1], (2, 0)),
    ],
)
def test_passed_on_but_alone(declared: list[int] | None, sent: tuple[int, ...]) -> None:
    request = bound({"x": (FLOAT, declared)}, {"x": floats(*sent)})
    assert request.lane.spec == LaneSpec(
        "m", 7, "serving_default", (InputSpec("x", FLOAT, sent),), ("y",), False
    )
    assert request.rows == 1
    assert request.lane.row_bytes == (4 * int(np.prod(sent)),)


@pytest.mark.parametrize("output", [None, [], [3]])
def test_outputs_without_a_row_axis_are_not_batched(output: list[int] | None) -> None:
    request = bound({"x": (FLOAT, [-1])}, {"x": floats(3)}, outputs={"y": (FLOAT, output)})
    assert not request.lane.spec.batchable


def test_strings_for_a_numeric_declaration_are_passed_on_alone() -> None:
    request = bound({"x": (FLOAT, [-1])}, {"x": Tensor(STRING, (2,), [b"a", b"b"])})
    assert request.lane.spec.inputs == (InputSpec("x", STRING, (2,)),)
    assert not request.lane.spec.batchable
    assert request.lane.row_bytes == (None,)
    assert not bound({"x": (STRING, [-1])}, {"x": floats(2)}).lane.spec.batchable


def test_batched_along_axis_0() -> None:
    inputs: Specs = {"x": (FLOAT, [-1, 2]), "s": (STRING, [-1]), "n": (INT64, [-1, -1])}
    sent = {
        "x": floats(3, 2),
        "s": Tensor(STRING, (3,), [b"a", b"", b"c"]),
        "n": Tensor(INT64, (3, 4), bytes(96)),
    }
    request = bound(inputs, sent)
    assert request.rows == 3
    assert request.lane.spec == LaneSpec(
        "m",
        7,
        "serving_default",
        (InputSpec("n", INT64, (4,)), InputSpec("s", STRING, ()), InputSpec("x", FLOAT, (2,))),
        ("y",),
        True,
    )
    assert request.lane.row_bytes == (32, None, 8)
    assert request.payloads == [sent["n"].data, sent["s"].data, sent["x"].data]
    assert unpack_lane(request.lane.key) == request.lane.spec


def test_inputs_of_different_row_counts_run_alone() -> None:
    request = bound(AB, {"a": floats(2), "b": floats(3)})
    assert not request.lane.spec.batchable
    assert [spec.shape for spec in request.lane.spec.inputs] == [(2,), (3,)]


def test_signature_without_inputs_runs_alone() -> None:
    request = bound({}, {}, outputs={"y": (FLOAT, [-1])})
    assert (request.rows, request.payloads, request.lane.spec.batchable) == (1, [], False)


# ------------------------------------------------------------------------------------------------------------ interning


def test_lanes_are_interned_and_bounded() -> None:
    table = LaneTable(lanes_max=2)
    servable, signature = servable_of(signature_def({"x": (FLOAT, [-1, -1])}, {"y": (FLOAT, [-1])}))

    def lane(width: int, rows: int = 1) -> Any:
        request = table.bind(servable, signature, {"x": floats(rows, width)})
        assert isinstance(request, Request)
        return request.lane

    first = lane(1)
    assert lane(1, rows=5) is first
    assert lane(2) is not first
    assert lane(1) is first
    lane(3)  # full: begins anew
    assert lane(1) is not first
    assert lane(1).key == first.key


def test_dtypes_make_different_lanes() -> None:
    a = bound({"x": (FLOAT, [-1])}, {"x": floats(2)}).lane.key
    b = bound({"x": (DOUBLE, [-1])}, {"x": Tensor(DOUBLE, (2,), bytes(16))}).lane.key
    assert a != b


def test_no_lane_is_made_of_what_only_equals_a_size() -> None:
    """It would be the lane of everybody who sends that shape; keys of lanes say True and 1 differently."""
    table = LaneTable()
    spec = LaneSpec("m", 7, "s", (InputSpec("x", FLOAT, (1, 2)),), ("y",), True)
    with pytest.raises(TypeError):
        table.intern(spec._replace(inputs=(InputSpec("x", FLOAT, (True, 2)),)))
    assert unpack_lane(table.intern(spec).key) == spec
