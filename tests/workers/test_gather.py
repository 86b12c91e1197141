"""Every way of gathering gives the same rows, without a copy where none is needed, never from outside a ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, InputSpec
from tests.workers.desk import Desk, lane, rows_of, words

Load = Callable[..., Any]
RANDOM = np.random.default_rng(12)

LAYOUTS = ["neighbours", "equal gaps", "scattered", "backwards", "two frontends", "different rows", "split", "padded"]


def place(desk: Desk, requests: list[dict[str, Any]], layout: str) -> list[list[int]]:
    """The requests in the rings, laid out as named; parts in the order of the requests."""
    ring = desk.rings[1]
    if layout == "backwards":
        return list(reversed([desk.part(request) for request in reversed(requests)]))
    parts = []
    for number, request in enumerate(requests):
        if layout == "equal gaps":
            ring.at += 192
        elif layout == "scattered":
            ring.at += 64 * int(RANDOM.integers(0, 3))
        frontend_id = 1 + number % 2 if layout == "two frontends" else 1
        rows = len(next(iter(request.values())))
        if layout == "split" and rows > 1:
            part = desk.part(request, rows=rows - 1, row_start=1)
        else:
            part = desk.part(request, frontend_id=frontend_id)
        parts.append(part)
    return parts


def rows_counts(layout: str) -> list[int]:
    return [1, 3, 2, 3, 1] if layout in ("different rows", "split", "padded") else [2] * 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mlp", "several", "half", "strings"])
def test_every_way_of_gathering_gives_the_rows_of_one_array(served: Load, name: str, layout: str) -> None:
    servable = served(name)
    requests: list[dict[str, Any]] = []
    for count in rows_counts(layout):
        if name == "mlp":
            requests.append({"x": RANDOM.random((count, 784), dtype=np.float32)})
        elif name == "several":
            requests.append({k: RANDOM.random((count, w), dtype=np.float32) for k, w in (("a", 3), ("b", 2))})
        elif name == "half":
            requests.append({"x": RANDOM.random(count, dtype=np.float32)})
        else:
            requests.append({"text": words(*(RANDOM.bytes(int(RANDOM.integers(0, 90))) for _ in range(count)))})
    outputs = list(servable.signatures["serving_default"].outputs)
    spec = lane(servable, requests[0], outputs)
    allowed = {name: [4, 16, 64]} if layout == "padded" else None
    desk = Desk(servable, frontends=2, allowed_batch_rows=allowed)
    parts = place(desk, requests, layout)
    answers, done = desk.run(spec, parts)
    assert done.rows == sum(part[2] for part in parts)
    assert done.run_ns > 0
    cut = [{k: v[part[3] :][: part[2]] for k, v in r.items()} for part, r in zip(parts, requests, strict=True)]
    together = {alias: np.concatenate([request[alias] for request in cut]) for alias in cut[0]}
    expected = servable.plan(spec).run(list(together.values()))
    first = 0
    for part in parts:
        for answer, whole in zip(answers[part[1]], expected, strict=True):
            wanted = whole[first : first + part[2]]
            assert answer.dtype == wanted.dtype
            if answer.dtype == np.float32:
                # Not bit-equal in every layout: the order of rows and their number change which kernel adds up what.
                np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6)
            else:
                assert answer.tolist() == wanted.tolist()
        first += part[2]


def test_neighbours_are_fed_without_a_copy(served: Load) -> None:
    """Rows of whole 64-byte lines, back to back: the feed is the ring's memory, aligned, and read-only."""
    from ringserve.workers.gather import Columns, Gatherer, layout_of

    servable = served("mlp")
    desk = Desk(servable)
    parts = [desk.part({"x": np.full((1, 784), i, np.float32)}) for i in range(4)]
    layout = layout_of(InputSpec("x", 1, (784,)))
    (feed,) = Gatherer().feeds([layout], [Columns(desk.mapped[1], parts)], 4)
    assert feed[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert np.shares_memory(feed, np.frombuffer(desk.mapped[1], np.uint8))
    assert feed.ctypes.data % 64 == 0
    assert not feed.flags.writeable


def test_what_is_gathered_is_aligned_and_used_again(served: Load) -> None:
    from ringserve.workers.gather import Columns, Gatherer, layout_of

    desk = Desk(served("half"))
    parts = [desk.part(rows_of(float(i))) for i in range(5)]
    layout = layout_of(InputSpec("x", 1, ()))
    gatherer = Gatherer()
    feeds = [gatherer.feeds([layout], [Columns(desk.mapped[1], parts)], 5, padded)[0] for padded in (0, 8)]
    assert feeds[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert feeds[1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]
    assert all(feed.ctypes.data % 64 == 0 for feed in feeds)
    assert np.shares_memory(*feeds)


@pytest.mark.parametrize("offset", [-64, 1 << 20, (1 << 20) - 64, 1 << 40])
@pytest.mark.parametrize("name", ["mlp", "strings", "scalar"])
def test_a_record_outside_its_ring_fails_its_request_only(served: Load, name: str, offset: int) -> None:
    servable = served(name)
    inputs: dict[str, Any] = {
        "mlp": {"x": np.ones((1, 784), np.float32)},
        "strings": {"text": words(b"a")},
        "scalar": {"x": np.float32(2.0).reshape(()), "n": np.int32(3).reshape(())},
    }[name]
    batchable = name != "scalar"
    desk = Desk(servable)
    spec = lane(servable, inputs, list(servable.signatures["serving_default"].outputs), batchable)
    parts = [desk.part(inputs, batchable) for _ in range(3)]
    parts[1][4] = offset if name != "scalar" else (offset if offset < 0 else offset + 61)
    answers, _ = desk.run(spec, parts)
    assert answers[parts[1][1]][0] == Code.INTERNAL
    assert isinstance(answers[parts[0][1]], list)
    assert isinstance(answers[parts[2][1]], list)
