"""Execute -> Results and Done: outputs of every kind, full rings, frontends that leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, Execute, InputSpec, LaneSpec
from ringserve.shm import dtype as dtypes
from ringserve.workers.interface import Independence
from tests.exporters import RARE_DTYPES
from tests.workers.desk import Desk, lane, rows_of, words

Load = Callable[..., Any]
RANDOM = np.random.default_rng(11)


def test_lanes_that_cannot_run_answer_every_request(served: Load) -> None:
    servable = served("half")
    desk = Desk(servable)
    parts = [desk.part(rows_of(1.0)) for _ in range(3)]
    spec = lane(servable, rows_of(1.0), ["y"])
    for wrong, code in (
        (spec._replace(signature="gone"), Code.FAILED_PRECONDITION),
        (spec._replace(version=9), Code.UNAVAILABLE),
        (spec._replace(outputs=("z",)), Code.INVALID_ARGUMENT),
        (spec._replace(inputs=(InputSpec("x", 2, ()),)), Code.INVALID_ARGUMENT),
        (spec._replace(inputs=(InputSpec("x", 20, ()),)), Code.INVALID_ARGUMENT),
    ):
        for _ in range(2):  # the second time from memory
            answers, done = desk.run(wrong, parts)
            assert {answer[0] for answer in answers.values()} == {code}
            assert len(answers) == 3
            assert done.rows == 0


# --------------------------------------------------------------------------------- outputs that do not follow the rows


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("signature", ["serving_default", "mixed"])
def test_outputs_that_are_not_per_row(load: Load, signature: str, known: bool) -> None:
    """Each request gets what it would have got alone, whether the probe at load saw it coming or a trial does."""
    servable = load("not_per_row", probes=known)
    desk = Desk(servable)
    requests = [{"x": RANDOM.random((rows, 2), dtype=np.float32)} for rows in (1, 3, 2)]
    outputs = list(servable.signatures[signature].outputs)
    spec = lane(servable, requests[0], outputs, signature=signature)
    for _ in range(2):
        parts = [desk.part(request) for request in requests]
        answers, done = desk.run(spec, parts)
        plan = servable.plan(spec)
        for part, request in zip(parts, requests, strict=True):
            for answer, expected in zip(answers[part[1]], plan.run([request["x"]]), strict=True):
                assert answer.tolist() == expected.tolist()
        assert done.rows == 6


def test_requests_whose_rows_depend_on_each_other_share_no_batch(served: Load) -> None:
    servable = served("ranking")
    desk = Desk(servable)
    requests = [rows_of(*range(count)) for count in (1, 3, 2)]
    parts = [desk.part(request) for request in requests]
    spec = lane(servable, requests[0], ["p"])
    answers, _ = desk.run(spec, parts)
    plan = servable.plan(spec)
    assert plan.independence is Independence.REFUTED
    for part, request in zip(parts, requests, strict=True):
        assert answers[part[1]][0].tolist() == plan.run([request["x"]])[0].tolist()
    assert servable.plan(lane(servable, requests[0], ["y"], signature="own")).independence is Independence.SHOWN


def test_a_piece_of_a_split_request_cannot_be_answered_by_such_outputs(served: Load) -> None:
    servable = served("not_per_row")
    desk = Desk(servable)
    x = np.ones((4, 2), np.float32)
    answers, _ = desk.run(lane(servable, {"x": x}, ["total"]), [desk.part({"x": x}, row_start=2, rows=2)])
    assert [answer[0] for answer in answers.values()] == [Code.FAILED_PRECONDITION]


def test_a_model_that_changes_itself_runs_each_request_once(load: Load) -> None:
    servable = load("counter")
    desk = Desk(servable)
    delta = np.float32(2.0).reshape(())
    add = lane(servable, {"delta": delta}, ["output"], False, "add")
    answers, done = desk.run(add, [desk.part({"delta": delta}, False) for _ in range(3)])
    assert sorted(float(answer[0]) for answer in answers.values()) == [2.0, 4.0, 6.0]
    assert done.rows == 3
    desk.rows[99] = 1
    answers, _ = desk.run(lane(servable, {}, ["output"], False, "get"), [[1, 99, 1, 0]])
    assert answers[99][0] == 6.0


# ------------------------------------------------------------------------------------------------ whole, empty, scalar


def test_scalars_and_empty_tensors_through_the_rings(served: Load) -> None:
    scalar = served("scalar")
    inputs = {"x": np.float32(2.5).reshape(()), "n": np.int32(4).reshape(())}
    desk = Desk(scalar)
    answers, _ = desk.run(lane(scalar, inputs, ["y"], False), [desk.part(inputs, False)])
    (output,) = answers.popitem()[1]
    assert (output.shape, output.tolist()) == ((), 10.0)
    identities = served("identities")
    desk = Desk(identities)
    for array in (np.zeros((0, 3), np.float32), np.zeros((2, 0), np.int64), np.empty((0,), object)):
        name = {"f": "float32", "i": "int64", "O": "string"}[array.dtype.kind]
        answers, _ = desk.run(lane(identities, {"x": array}, ["y"], False, name), [desk.part({"x": array}, False)])
        (output,) = answers.popitem()[1]
        assert (output.dtype, output.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    "name", ["float32", "float64", "float16", "bfloat16", "int8", "uint16", "bool", "complex128", "string"]
)
def test_dtypes_through_the_rings(served: Load, tf: Any, name: str) -> None:
    servable = served("identities")
    desk = Desk(servable)
    requests = []
    for first in range(3):
        if name == "string":
            x = words(b"a\0" * first, b"", b"\xff", b"x" * 70).reshape(2, 2)
        else:
            x = (np.arange(first, first + 6) % 2 if name == "bool" else np.arange(first, first + 6)).reshape(2, 3)
            x = x.astype(tf.as_dtype(name).as_numpy_dtype)
        requests.append({"x": x})
    parts = [desk.part(request) for request in requests]
    answers, _ = desk.run(lane(servable, requests[0], ["y"], True, name), parts)
    for part, request in zip(parts, requests, strict=True):
        assert answers[part[1]][0].tolist() == request["x"].tolist()
        assert answers[part[1]][0].dtype == request["x"].dtype


@pytest.mark.parametrize("name", RARE_DTYPES)
def test_rare_dtypes_through_the_rings(served: Load, tf: Any, name: str) -> None:
    servable = served("rare_identities")
    number = int(tf.as_dtype(name).as_datatype_enum)
    plain = dtypes.dtype_of(number).numpy
    assert plain is not None
    desk = Desk(servable)
    requests = [{"x": np.arange(i, i + 3).astype(plain).reshape(1, 3)} for i in range(3)]
    spec = LaneSpec("rare_identities", 1, name, (InputSpec("x", number, (3,)),), ("y",), True)
    parts = [desk.part(request) for request in requests]
    answers, _ = desk.run(spec, parts)
    for part, request in zip(parts, requests, strict=True):
        assert answers[part[1]][0].tolist() == request["x"].tolist()


def test_fetched_feeds_and_repeated_outputs(served: Load) -> None:
    servable = served("aliases")
    desk = Desk(servable)
    requests = [{"x": RANDOM.random((2, 2), dtype=np.float32)} for _ in range(3)]
    parts = [desk.part(request) for request in requests]
    answers, _ = desk.run(lane(servable, requests[0], ["same", "y", "again"]), parts)
    for part, request in zip(parts, requests, strict=True):
        assert [a.tolist() for a in answers[part[1]]] == [(request["x"] * factor).tolist() for factor in (1, 2, 2)]


# ---------------------------------------------------------------------------------------------- the result ring is full


def test_full_ring_waits_and_goes_on(served: Load) -> None:
    """Two frontends' records, room for one: the second comes after the first is given back."""
    servable = served("echo")
    desk = Desk(servable, frontends=2, result_bytes=4096)
    requests = [{"x": RANDOM.random((1, 700), dtype=np.float32)} for _ in range(2)]
    parts = [desk.part(request, frontend_id=i + 1) for i, request in enumerate(requests)]
    spec = lane(servable, requests[0], ["y"])
    batch = desk.start(spec, parts)
    assert (batch.done, batch.waits_for_bytes) == (None, 2816)
    answers: dict[int, Any] = {}
    desk.read(batch, spec, answers, release=False)
    assert list(answers) == [parts[0][1]]
    assert not batch.proceed()
    assert batch.take_results() == []
    desk.release()
    assert batch.proceed()
    desk.read(batch, spec, answers)
    assert batch.done is not None
    assert all(np.array_equal(answers[p[1]][0], r["x"] * 2) for p, r in zip(parts, requests, strict=True))


def test_full_ring_between_requests_run_one_by_one(served: Load) -> None:
    servable = served("echo")
    desk = Desk(servable, result_bytes=4096)
    requests = [{"x": RANDOM.random((1, 300 + i), dtype=np.float32)} for i in range(7)]
    for request in requests[:1] * 3:
        spec = lane(servable, request, ["y"], False)
        answers, _ = desk.run(spec, [desk.part(request, False) for _ in range(7)])
        assert len(answers) == 7
        assert all(np.array_equal(answer[0], request["x"] * 2) for answer in answers.values())


def of_three_frontends(servable: Any) -> tuple[Desk, LaneSpec, list[list[int]]]:
    """A batch of one request of each, whose ring has room for one answer."""
    desk = Desk(servable, frontends=3, result_bytes=4096)
    request = {"x": RANDOM.random((1, 700), dtype=np.float32)}
    return desk, lane(servable, request, ["y"]), [desk.part(request, frontend_id=i) for i in (1, 2, 3)]


def test_a_frontend_that_leaves_while_its_answer_waits(served: Load) -> None:
    desk, spec, parts = of_three_frontends(served("echo"))
    batch = desk.start(spec, parts)
    del desk.mapped[2]
    desk.executor.frontend_left(2)
    del desk.mapped[1]
    desk.executor.frontend_left(1)  # what it held is free again
    assert batch.proceed()
    answers: dict[int, Any] = {}
    assert [frontend_id for frontend_id, _ in batch._results] == [1, 3]
    desk.held.clear()
    batch._results.pop(0)
    desk.read(batch, spec, answers)
    assert list(answers) == [parts[2][1]]
    desk.executor.release(1, [0])  # late, and no longer its own
    assert desk.run(spec, [parts[2]])[1].rows == 1


def test_a_frontend_that_leaves_while_others_answers_wait_is_given_no_record(served: Load) -> None:
    desk, spec, parts = of_three_frontends(served("echo"))
    batch = desk.start(spec, parts)  # the first one's answer fills the ring, the second's waits
    answers: dict[int, Any] = {}
    desk.read(batch, spec, answers, release=False)
    del desk.mapped[3]
    desk.executor.frontend_left(3)
    desk.release()
    assert batch.proceed()
    desk.read(batch, spec, answers)
    assert list(answers) == [parts[0][1], parts[1][1]]
    assert desk.writer.statistics().used_bytes == 0


def test_a_batch_that_is_faster_than_the_news_of_its_frontend_waits(served: Load) -> None:
    servable = served("half")
    desk = Desk(servable, frontends=2)
    parts = [desk.part(rows_of(1.0), frontend_id=1), desk.part(rows_of(2.0), frontend_id=2)]
    ring = desk.mapped.pop(2)
    desk.awaited.add(2)
    spec = lane(servable, rows_of(1.0), ["y"])
    batch = desk.start(spec, parts)
    assert batch.done is None
    assert not batch.proceed()
    assert batch.take_results() == []
    desk.mapped[2] = ring
    desk.awaited.clear()
    assert batch.proceed()
    answers: dict[int, Any] = {}
    desk.read(batch, spec, answers)
    assert sorted(answers) == sorted(part[1] for part in parts)


def test_frontends_that_are_gone_are_dropped(served: Load) -> None:
    servable = served("half")
    desk = Desk(servable)
    parts = [desk.part(rows_of(1.0)), desk.part(rows_of(2.0))]
    parts[0][0] = 42
    answers, done = desk.run(lane(servable, rows_of(1.0), ["y"]), parts)
    assert {key: value[0].tolist() for key, value in answers.items()} == {parts[1][1]: [3.0]}
    assert done.rows == 1
    parts[1][0] = 42
    answers, done = desk.run(lane(servable, rows_of(1.0), ["y"]), parts)
    assert (answers, done.rows) == ({}, 0)


def test_an_answer_larger_than_the_ring_fails_and_names_the_setting(served: Load) -> None:
    servable = served("echo")
    desk = Desk(servable, result_bytes=8192)
    fits, too_large = ({"x": np.ones((1, width), np.float32)} for width in (2048, 2049))
    answers, _ = desk.run(lane(servable, fits, ["y"]), [desk.part(fits)])
    assert answers.popitem()[1][0].tolist() == [[2.0] * 2048]
    answers, _ = desk.run(lane(servable, too_large, ["y"]), [desk.part(too_large)])
    code, text = answers.popitem()[1]
    assert code == Code.RESOURCE_EXHAUSTED
    assert "result_ring_bytes" in text
    assert "8256 bytes" in text


def test_a_batch_larger_than_the_ring_is_answered_in_pieces(served: Load) -> None:
    servable = served("echo")
    desk = Desk(servable, result_bytes=8192)
    requests = [{"x": np.full((1, 1024), i, np.float32)} for i in range(9)]
    parts = [desk.part(request) for request in requests]
    answers, done = desk.run(lane(servable, requests[0], ["y"]), parts)
    assert [answers[part[1]][0][0, 0] for part in parts] == [2.0 * i for i in range(9)]
    assert done.rows == 9


def test_lanes_are_bounded(served: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.workers import execute

    monkeypatch.setattr(execute, "_LANES_MAX", 3)
    servable = served("echo")
    desk = Desk(servable)
    for width in (1, 2, 3, 4, 5, 1):
        request = {"x": np.ones((1, width), np.float32)}
        answers, _ = desk.run(lane(servable, request, ["y"]), [desk.part(request)])
        assert answers.popitem()[1][0].tolist() == [[2.0] * width]
        assert len(desk.executor._lanes) <= 3


def test_padding_is_off_unless_asked_for(served: Load) -> None:
    servable = served("not_per_row")
    desk = Desk(servable, allowed_batch_rows={"another": [8]})
    x = np.ones((3, 2), np.float32)
    answers, _ = desk.run(lane(servable, {"x": x}, ["pairs"]), [desk.part({"x": x})])
    assert answers.popitem()[1][0].shape == (9, 2)


def test_done_of_an_empty_batch(served: Load) -> None:
    servable = served("half")
    desk = Desk(servable)
    spec = LaneSpec("half", 1, "serving_default", (InputSpec("x", 1, ()),), ("y",), True)
    from ringserve.broker.wire import pack_lane

    batch = desk.executor.execute(Execute(5, pack_lane(spec), []))
    assert batch.done is not None
    assert (batch.done.batch_id, batch.done.rows, batch.take_results()) == (5, 0, [])


def test_a_ring_can_be_unmapped_between_batches(served: Load) -> None:
    """Nothing keeps a view of a request ring once its batch is done, failed ones included."""
    for value in (1.0, -1.0):
        servable = served("picky")
        desk = Desk(servable)
        parts = [desk.part(rows_of(value)), desk.part(rows_of(value))]
        desk.run(lane(servable, rows_of(0.0), ["y"]), parts[:1])
        desk.run(lane(servable, rows_of(0.0), ["y"]), parts)
        del desk.mapped[1]
        desk.executor.frontend_left(1)
        desk.rings[1].reader.close()
        assert desk.rings[1].reader.closed


@pytest.mark.parametrize("batchable", [True, False])
def test_a_ring_can_be_unmapped_while_its_batch_waits(served: Load, batchable: bool) -> None:
    servable = served("echo")
    desk = Desk(servable, frontends=2, result_bytes=4096)
    request = {"x": RANDOM.random((1, 700), dtype=np.float32)}
    spec = lane(servable, request, ["y"], batchable)
    first = desk.start(spec, [desk.part(request, batchable, frontend_id=2)])
    waiting = desk.start(spec, [desk.part(request, batchable)])
    assert first.done is not None
    assert waiting.done is None
    del desk.mapped[1]
    desk.rings[1].reader.close()
    desk.executor.frontend_left(1)
    assert waiting.proceed()  # nobody is left to answer
    assert waiting.take_results() == []
