"""Requests of different inner shapes in one batch: each gets its rows' answer, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, ModelOptions
from ringserve.shm.head import HEAD_BYTES, pack_head
from tests.workers.desk import Desk, lane, open_lane

Load = Callable[..., Any]
RANDOM = np.random.default_rng(14)


def options(name: str, *allowed: int, with_first: bool = False, assumed: bool = False) -> ModelOptions:
    return ModelOptions(name, 128, list(allowed), True, with_first, assumed)


def floats(rows: int, width: int) -> dict[str, Any]:
    return {"x": RANDOM.random((rows, width), dtype=np.float32) + 1}


def texts(rows: int, width: int) -> Any:
    array = np.empty(rows * width, dtype=object)
    array[:] = [RANDOM.bytes(int(RANDOM.integers(1, 9))).hex().encode() for _ in range(rows * width)]
    return array.reshape(rows, width)


def padded_to(array: Any, inner: tuple[int, ...], fill: Any) -> Any:
    """What the array becomes, made the plain way."""
    whole = np.empty((len(array), *inner), dtype=array.dtype)
    for index in np.ndindex(whole.shape):
        inside = all(i < size for i, size in zip(index, array.shape, strict=True))
        whole[index] = array[index] if inside else fill
    return whole


@pytest.mark.parametrize("with_first", [False, True])
@pytest.mark.parametrize("frontends", [1, 2])
@pytest.mark.parametrize("allowed", [(), (4, 16)])
def test_6_4_rows_are_padded_to_the_widest(
    served: Load, with_first: bool, frontends: int, allowed: tuple[int, ...]
) -> None:
    servable = served("ragged")
    desk = Desk(servable, frontends=frontends)
    desk.executor.set_options("ragged", options("ragged", *allowed, with_first=with_first))
    requests = [floats(rows, width) for rows, width in ((1, 3), (2, 7), (3, 1), (1, 7))]
    spec = open_lane(servable, requests[0], ["batch", "sum", "width"], "serving_default")
    assert spec.inputs[0].shape == (-1,)
    parts = [
        desk.part(request, spec=spec, frontend_id=1 + i % frontends) for i, request in enumerate(requests)
    ]
    answers, done = desk.run(spec, parts)
    assert done.rows == 7
    for part, request in zip(parts, requests, strict=True):
        batch, total, width = answers[part[1]]
        fill = request["x"][0, 0] if with_first else 0
        np.testing.assert_allclose(total, padded_to(request["x"], (7,), fill).sum(axis=1), rtol=1e-5)
        assert width.tolist() == [7] * len(request["x"])
        assert set(batch.tolist()) == {16 if allowed else 7}


@pytest.mark.parametrize("with_first", [False, True])
def test_6_4_several_inputs_and_axes(served: Load, with_first: bool) -> None:
    servable = served("ragged")
    desk = Desk(servable)
    desk.executor.set_options("ragged", options("ragged", with_first=with_first))
    shapes = [(1, 3, 2, 1), (2, 1, 2, 5), (1, 2, 2, 2)]
    requests: list[dict[str, Any]] = [
        {
            "b": RANDOM.random((shape[0], 2), dtype=np.float32),
            "x": RANDOM.integers(1, 9, shape).astype(np.int64),
        }
        for shape in shapes
    ]
    spec = open_lane(servable, requests[0], ["b", "sum"], "cube")
    assert [each.shape for each in spec.inputs] == [(2,), (-1, 2, -1)]
    parts = [desk.part(request, spec=spec) for request in requests]
    answers, _ = desk.run(spec, parts)
    for part, request in zip(parts, requests, strict=True):
        b, total = answers[part[1]]
        fill = request["x"].flat[0] if with_first else 0
        assert b.tolist() == request["b"].tolist()
        assert total.tolist() == padded_to(request["x"], (3, 2, 5), fill).sum(axis=(1, 2, 3)).tolist()


@pytest.mark.parametrize("with_first", [False, True])
def test_6_4_strings(served: Load, with_first: bool) -> None:
    servable = served("ragged")
    desk = Desk(servable)
    desk.executor.set_options("ragged", options("ragged", 8, with_first=with_first))
    requests = [{"x": texts(rows, width)} for rows, width in ((1, 2), (2, 4), (1, 1))]
    requests[0]["x"][0, 0] = b"\0 zero \0"  # numpy's own byte strings would lose the last one
    spec = open_lane(servable, requests[0], ["joined"], "words")
    parts = [desk.part(request, spec=spec) for request in requests]
    answers, _ = desk.run(spec, parts)
    for part, request in zip(parts, requests, strict=True):
        fill = request["x"][0, 0] if with_first else b""
        joined = [b"|".join(row) for row in padded_to(request["x"], (4,), fill)]
        assert answers[part[1]][0].tolist() == joined


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bool", "complex128", "uint16"])
def test_every_dtype_is_padded(served: Load, tf: Any, dtype: str) -> None:
    """6.4 knows an `Unsupported type`; here there is none."""
    from ringserve.broker.messages import InputSpec
    from ringserve.workers.gather import Columns, Gatherer, layout_of
    from ringserve.workers.padding import padded_feeds
    from tests.workers.desk import number_of

    numpy = tf.as_dtype(dtype).as_numpy_dtype
    desk = Desk(served("half"))
    arrays = [np.ones((1, width)).astype(numpy) for width in (1, 3)]
    spec = InputSpec("x", number_of(arrays[0]), (-1,))
    ring = desk.rings[1]
    parts = [[1, i, 1, 0, ring.put(array, pack_head(array.shape))] for i, array in enumerate(arrays)]
    (feed,) = padded_feeds(
        Gatherer(), [layout_of(spec)], [Columns(desk.mapped[1], parts)], 2, 4, with_first=False
    )
    assert feed.dtype == numpy
    assert feed.tolist() == np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]).astype(numpy).tolist()


def test_a_request_alone_is_fed_without_a_copy_in_its_own_shape(served: Load) -> None:
    from ringserve.broker.messages import InputSpec
    from ringserve.workers.gather import Columns, Gatherer, layout_of
    from ringserve.workers.padding import padded_feeds

    desk = Desk(served("half"))
    x = floats(3, 5)["x"]
    part = [1, 1, 3, 0, desk.rings[1].put(x, pack_head(x.shape))]
    layout = layout_of(InputSpec("x", 1, (-1,)))
    (feed,) = padded_feeds(Gatherer(), [layout], [Columns(desk.mapped[1], [part])], 3, 3, with_first=True)
    assert feed.tolist() == x.tolist()
    assert np.shares_memory(feed, np.frombuffer(desk.mapped[1], np.uint8))
    assert feed.ctypes.data % 64 == 0


def test_11_19_one_bad_request_fails_alone(served: Load) -> None:
    servable = served("ragged")
    desk = Desk(servable)
    requests = [floats(1, width) for width in (2, 5, 3)]
    requests[1]["x"][0, 0] = -1
    spec = open_lane(servable, requests[0], ["sum", "width"], "picky")
    parts = [desk.part(request, spec=spec) for request in requests]
    answers, _ = desk.run(spec, parts)
    assert answers[parts[1][1]][0] == Code.INVALID_ARGUMENT
    for i in (0, 2):  # each by itself, so in its own shape
        np.testing.assert_allclose(answers[parts[i][1]][0], requests[i]["x"].sum(axis=1), rtol=1e-5)
        assert answers[parts[i][1]][1].tolist() == [requests[i]["x"].shape[1]]


def test_pieces_of_a_split_request_keep_their_own_shape(served: Load) -> None:
    """Padded along with others they would come out in different shapes, and could not be joined."""
    servable = served("ragged")
    desk = Desk(servable)
    large, wide = floats(4, 2), floats(1, 9)
    spec = open_lane(servable, large, ["y"], "same")
    pieces = [desk.part(large, spec=spec, row_start=start, rows=2) for start in (0, 2)]
    other = desk.part(wide, spec=spec)
    answers, _ = desk.run(spec, [pieces[0], other, pieces[1]])
    got = [answers[piece[1]][0] for piece in pieces]
    assert np.array_equal(np.concatenate(got), large["x"])
    assert np.array_equal(answers[other[1]][0], wide["x"])


def test_a_bad_request_beside_a_piece_of_a_split_one(served: Load) -> None:
    """The piece runs by itself, and once: those before it go back with it when they fail."""
    servable = served("ragged")
    desk = Desk(servable)
    large = floats(4, 2)
    spec = open_lane(servable, large, ["width"], "picky")
    piece = desk.part(large, spec=spec, row_start=0, rows=2)
    parts = [desk.part(floats(1, width), spec=spec) for width in (5, 3, 2, 4)]
    wrong = desk.part({"x": np.full((1, 3), -1.0, np.float32)}, spec=spec)
    answers, done = desk.run(spec, [*parts[:2], piece, wrong, *parts[2:]])
    assert answers[wrong[1]][0] == Code.INVALID_ARGUMENT
    assert answers[piece[1]][0].tolist() == [2, 2]
    assert all(2 <= answers[part[1]][0][0] <= 5 for part in parts)
    assert done.rows <= 5 + 2 * 5 + 2


def test_outputs_are_not_cut_back(served: Load) -> None:
    """As in TF Serving: nothing says which places of an output come from which of an input."""
    servable = served("ragged")
    desk = Desk(servable)
    requests = [floats(1, 2), floats(1, 4)]
    spec = open_lane(servable, requests[0], ["y"], "same")
    parts = [desk.part(request, spec=spec) for request in requests]
    answers, _ = desk.run(spec, parts)
    assert answers[parts[0][1]][0].tolist() == padded_to(requests[0]["x"], (4,), 0).tolist()


def test_padding_that_would_take_too_much_memory_is_not_done(served: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.workers import padding

    monkeypatch.setattr(padding, "_PADDED_BYTES_MAX", 1000)
    servable = served("ragged")
    desk = Desk(servable)
    requests = [floats(1, 1) for _ in range(9)] + [floats(1, 300)]
    spec = open_lane(servable, requests[0], ["sum", "width"], "serving_default")
    parts = [desk.part(request, spec=spec) for request in requests]
    answers, _ = desk.run(spec, parts)
    assert [answers[part[1]][1].tolist() for part in parts] == [[1]] * 9 + [[300]]


@pytest.mark.parametrize(
    "head",
    [
        bytes(HEAD_BYTES),
        pack_head((1,)),
        pack_head((1, 2, 2)),
        pack_head((1, 0)),
        pack_head((1, 1 << 40)),
        pack_head((1, 1 << 62)),
        b"\xff" * HEAD_BYTES,
    ],
)
def test_a_record_that_is_stale_costs_its_request_only(served: Load, head: bytes) -> None:
    servable = served("ragged")
    desk = Desk(servable)
    good = floats(1, 3)
    spec = open_lane(servable, good, ["width"], "serving_default")
    parts = [desk.part(good, spec=spec) for _ in range(3)]
    desk.rings[1].segment.data[parts[1][4] : parts[1][4] + HEAD_BYTES] = head
    answers, _ = desk.run(spec, parts)
    assert answers[parts[1][1]][0] == Code.INTERNAL
    assert [answers[parts[i][1]][0].tolist() for i in (0, 2)] == [[3], [3]]


# ---------------------------------------------------------------------------------------------------------- row sizes


def test_6_3_options_can_change(served: Load) -> None:
    servable = served("ragged")
    desk = Desk(servable)
    request = floats(3, 2)
    spec = lane(servable, request, ["batch"])

    def batch_rows() -> int:
        answers, _ = desk.run(spec, [desk.part(request)])
        (output,) = answers.popitem()[1]
        assert len(output) == 3
        return int(output[0])

    for allowed, run in ((32,), 32), ((), 3), ((1, 4), 4), ((1, 2), 3), ((3,), 3):
        desk.executor.set_options("ragged", options("ragged", *allowed, assumed=True))
        assert batch_rows() == run


def test_6_3_padding_rows_repeat_the_first_row_of_the_last_request() -> None:
    from ringserve.broker.messages import InputSpec
    from ringserve.workers.gather import Columns, Gatherer, layout_of
    from tests.workers.desk import Ring

    ring = Ring(1 << 16)
    arrays = [np.array(values, np.float32) for values in ([1, 2], [3, 4, 5])]
    parts = [[1, i, len(array), 0, ring.put(array)] for i, array in enumerate(arrays)]
    layout = layout_of(InputSpec("x", 1, ()))
    (feed,) = Gatherer().feeds([layout], [Columns(ring.reader.data, parts)], 5, 8)
    assert feed.tolist() == [1, 2, 3, 4, 5, 3, 3, 3]


def test_6_3_outputs_of_padding_rows_are_dropped(served: Load) -> None:
    servable = served("picky")
    desk = Desk(servable)
    desk.executor.set_options("picky", options("picky", 8))
    requests = [{"x": np.array(values, np.float32)} for values in ([1.0, 2.0], [3.0, 4.0])]
    spec = lane(servable, requests[0], ["y"])
    answers, done = desk.run(spec, [desk.part(request) for request in requests])
    assert sorted(answer[0].tolist() for answer in answers.values()) == [[2.0, 4.0], [6.0, 8.0]]
    assert done.rows == 4  # padding is not counted
