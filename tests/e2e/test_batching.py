"""TF Serving's batching seen from outside: a real server, the official client, a model that tells how it was run.

One worker, so that what may share a batch does. The wait of `timeout` is set longer than any test may take where a
batch must go for another reason: were it to wait, the call's own deadline would fail the test.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until

LONG_S = 60
RANDOM = np.random.default_rng(18)

#: All of them are the model `ragged`; keys of [batching].
BATCHING: dict[str, dict[str, Any]] = {
    "adaptive": {"batch_rows_max": 8, "split": True},
    "whole": {"batch_rows_max": 4},
    "allowed": {"batch_rows_max": 8, "batch_rows_allowed": "1,4,8", "request_rows_max": 8},
    "bounded": {"batch_rows_max": 4, "request_rows_max": 10, "split": True},
    "timed": {"policy": "timeout", "batch_wait_us_max": 60_000_000, "batch_rows_max": 8, "request_rows_max": 8},
    "soon": {"policy": "timeout", "batch_wait_us_max": 100_000, "batch_rows_max": 100},
    "padded": {"policy": "timeout", "batch_wait_us_max": 60_000_000, "batch_rows_max": 2, "pad_inputs": True},
    "padded_first": {
        "policy": "timeout",
        "batch_wait_us_max": 60_000_000,
        "batch_rows_max": 2,
        "pad_inputs": True,
        "pad_with": "first",
    },
    "padded_load": {"batch_rows_max": 16, "pad_inputs": True, "batch_rows_allowed": "2,16"},
    "brim": {
        "policy": "timeout",
        "batch_wait_us_max": 60_000_000,
        "batch_rows_max": 4,
        "queue_batches_max": 1,
    },
    "brim_split": {
        "policy": "timeout",
        "batch_wait_us_max": 60_000_000,
        "batch_rows_max": 4,
        "split": True,
        "queue_batches_max": 1,
    },
    "changing": {"policy": "timeout", "batch_wait_us_max": 60_000_000, "batch_rows_max": 8},
}


def config(models: Path) -> str:
    # Each row of this model says how many there were in its batch: rows that depend on each other, so to speak.
    lines = ["[workers]", "workers = 1", "[batching]", "batches_at_once_max = 1", 'row_independence = "assumed"']
    for name, batching in BATCHING.items():
        lines += ["[[models]]", f'name = "{name}"', f'base_path = "{models / "ragged"}"', "[models.batching]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in batching.items()]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.toml").write_text(config(models))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in BATCHING:
            server.wait_available(name)
        yield server


def rows_of(rows: int, width: int = 3) -> Any:
    return RANDOM.random((rows, width), np.float32) + 1


def start(stub: Any, model: str, x: Any, timeout: float = LONG_S / 2, signature: str = "") -> Any:
    return stub.Predict.future(make_request(model, signature, x=x), timeout=timeout)


def predict(stub: Any, model: str, x: Any, timeout: float = LONG_S / 2) -> dict[str, Any]:
    return outputs_of(stub.Predict(make_request(model, x=x), timeout=timeout))


def check(x: Any, outputs: dict[str, Any], fill: float = 0.0) -> None:
    """The sums are the request's own, but for the places that padding added."""
    assert [len(output) for output in outputs.values()] == [len(x)] * 3
    added = (outputs["width"] - x.shape[1]) * fill
    np.testing.assert_allclose(outputs["sum"], x.sum(axis=1) + added, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- row sizes


@pytest.mark.parametrize(("rows", "run"), [(1, 1), (2, 4), (4, 4), (5, 8), (8, 8)])
def test_6_1_rows_are_padded_to_the_next_allowed_size(stub: Any, rows: int, run: int) -> None:
    x = rows_of(rows)
    outputs = predict(stub, "allowed", x)
    check(x, outputs)
    assert set(outputs["batch"].tolist()) == {run}


def test_6_3_and_11_18_a_request_with_more_rows_than_allowed(stub: Any) -> None:
    for model, rows, limit in (("allowed", 9, 8), ("bounded", 11, 10), ("timed", 9, 8)):
        with pytest.raises(grpc.RpcError) as caught:
            predict(stub, model, rows_of(rows))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == f"Task size {rows} is larger than maximum input batch size {limit}"


def test_6_5_a_request_larger_than_a_batch_is_cut_and_joined(stub: Any) -> None:
    for model, rows, largest in (("bounded", 10, 4), ("adaptive", 100, 8)):
        x = rows_of(rows)
        outputs = predict(stub, model, x)
        check(x, outputs)
        assert outputs["batch"].max() == largest


def test_a_request_larger_than_a_batch_runs_whole_unless_splitting_was_asked_for(stub: Any) -> None:
    """Its rows may depend on each other: nobody can tell by a signature."""
    calls = [(x, start(stub, "whole", x)) for x in (rows_of(n) for n in (1, 10, 2, 100))]
    for x, call in calls:
        check(x, outputs := outputs_of(call.result()))
        if len(x) > 4:
            assert set(outputs["batch"].tolist()) == {len(x)}


# ------------------------------------------------------------------------------------------------------- the clock


def test_6_2_a_full_batch_goes_and_one_that_does_not_fit_closes_it(stub: Any) -> None:
    """5 and 5 do not fit 8: whichever came first goes, the other waits for 3 more."""
    first, second = rows_of(5), rows_of(5)
    calls = [start(stub, "timed", x) for x in (first, second)]
    third = rows_of(3)
    check(third, last := predict(stub, "timed", third))
    assert set(last["batch"].tolist()) == {8}
    outputs = [outputs_of(call.result()) for call in calls]
    check(first, outputs[0])
    check(second, outputs[1])
    assert sorted(int(output["batch"][0]) for output in outputs) == [5, 8]


def test_6_2_an_underfull_batch_goes_when_its_first_request_has_waited(stub: Any) -> None:
    xs = [rows_of(1) for _ in range(10)]
    outputs = [outputs_of(call.result()) for call in [start(stub, "soon", x) for x in xs]]
    for x, output in zip(xs, outputs, strict=True):
        check(x, output)
    assert max(int(output["batch"][0]) for output in outputs) > 1


def test_6_3_a_request_without_rows_does_not_wait_for_others(stub: Any) -> None:
    outputs = predict(stub, "timed", np.zeros((0, 3), np.float32))
    assert [len(output) for output in outputs.values()] == [0, 0, 0]


def test_6_7_what_has_expired_is_not_run(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, "timed", rows_of(4), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    x = rows_of(8)  # a full batch: with the four rows above it would not fit, and these would go without it
    outputs = predict(stub, "timed", x)
    check(x, outputs)
    assert set(outputs["batch"].tolist()) == {8}


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("brim", "currently 1 batches enqueued and max_enqueued_batches is 1"),
        (
            "brim_split",
            "task size is 3 but scheduling capacity is only 1 (num_enqueued_batches=1, max_enqueued_batches=1, "
            "open_batch_size=3, max_execution_batch_size=4)",
        ),
    ],
)
def test_6_3_a_full_queue(stub: Any, model: str, text: str) -> None:
    xs = [rows_of(3), rows_of(3)]
    calls = [start(stub, model, x) for x in xs]
    wait_until(lambda: any(call.done() for call in calls), "one of the two to be refused, as the other waits")
    (refused,) = [call for call in calls if call.done()]
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.details() == f"The batch scheduling queue to which this task was submitted is full; {text}"
    check(last := rows_of(1), predict(stub, model, last))  # fills the batch
    for x, call in zip(xs, calls, strict=True):
        if call is not refused:
            check(x, outputs_of(call.result()))


# ----------------------------------------------------------------------------------------------------- other rules


def change(server: Server, **batching: Any) -> None:
    request = urllib.request.Request(
        f"{server.rest_url}/ringserve/v1/models/changing/batching",
        json.dumps(batching).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=LONG_S) as response:
        assert response.status == 200


def test_10_rules_change_while_requests_wait(server: Server, stub: Any) -> None:
    x = rows_of(3)
    call = start(stub, "changing", x)
    check(full := rows_of(5), predict(stub, "changing", full))  # fills the batch, so the way to the queue is known
    check(x, outputs_of(call.result()))
    call = start(stub, "changing", x)
    change(server, policy="adaptive")  # nothing waits for the clock any more
    check(x, outputs_of(call.result()))


def test_10_workers_are_told_of_sizes_and_padding(server: Server, stub: Any) -> None:
    change(server, policy="adaptive")
    wide = rows_of(1, 4)

    def run_as(rows: int) -> Callable[[], bool]:
        return lambda: predict(stub, "changing", wide)["batch"].tolist() == [rows]

    for allowed, rows in ("8", 8), ("2,8", 2), ("", 1):
        change(server, batch_rows_allowed=allowed)
        # The broker has answered; its word to the worker may still be on its way.
        wait_until(run_as(rows), f"a row to be run as {rows}")
    change(server, policy="timeout", batch_wait_us_max=200_000, batch_rows_max=2, pad_inputs=True, pad_with="first")

    def padded() -> bool:
        xs = [rows_of(1, 3), wide]
        outputs = [outputs_of(call.result()) for call in [start(stub, "changing", x) for x in xs]]
        for x, output in zip(xs, outputs, strict=True):
            check(x, output, fill=x[0, 0])
        return [output["width"].tolist() for output in outputs] == [[4], [4]]

    wait_until(padded, "the two to share a batch")


# --------------------------------------------------------------------------------------------------- different shapes


def test_11_19_requests_of_different_shapes_do_not_harm_each_other(stub: Any) -> None:
    """TF Serving fails both: shapes differ and padding is off. Here each has its own batch, which is full with it."""
    narrow, wide = rows_of(8, 3), rows_of(8, 4)
    calls = [start(stub, "timed", x) for x in (narrow, wide)]
    for x, call in zip((narrow, wide), calls, strict=True):
        outputs = outputs_of(call.result())
        check(x, outputs)
        assert set(outputs["width"].tolist()) == {x.shape[1]}


def test_11_19_one_row_each_with_a_batch_timeout(stub: Any) -> None:
    xs = [rows_of(1, width) for width in (3, 4, 3, 4)]
    for x, call in zip(xs, [start(stub, "soon", x) for x in xs], strict=True):
        check(x, outputs_of(call.result()))


@pytest.mark.parametrize(("model", "first"), [("padded", False), ("padded_first", True)])
def test_6_4_rows_of_different_widths_share_a_batch(stub: Any, model: str, first: bool) -> None:
    xs = [rows_of(1, 3), rows_of(1, 5)]  # two rows are a full batch
    calls = [start(stub, model, x) for x in xs]
    for x, call in zip(xs, calls, strict=True):
        outputs = outputs_of(call.result())
        assert (outputs["width"].tolist(), outputs["batch"].tolist()) == ([5], [2])
        check(x, outputs, fill=x[0, 0] if first else 0.0)


def test_6_4_an_empty_tensor_harms_nobody(stub: Any) -> None:
    empty = start(stub, "padded", np.zeros((1, 0), np.float32))
    xs = [rows_of(1, 3), rows_of(1, 5)]
    for x, call in zip(xs, [start(stub, "padded", x) for x in xs], strict=True):
        check(x, outputs_of(call.result()))
    assert outputs_of(empty.result())["sum"].tolist() == [0.0]


def test_6_4_over_rest(server: Server, stub: Any) -> None:
    call = start(stub, "padded", wide := rows_of(1, 5))
    status, body = server.post("/v1/models/padded:predict", b'{"instances": [[1.0, 2.0]]}')
    assert status == 200
    assert json.loads(body)["predictions"] == [{"sum": 3.0, "width": 5, "batch": 2}]
    check(wide, outputs_of(call.result()))


@pytest.mark.parametrize("model", ["adaptive", "padded_load"])
def test_mixed_shapes_under_load(stub: Any, model: str) -> None:
    """Widths and rows at random, some larger than a batch, some refused by the model: everybody gets their own."""

    def ask(number: int) -> int:
        random = np.random.default_rng(number)
        x = random.random((int(random.integers(1, 25)), int(random.integers(1, 9))), np.float32)
        bad = number % 10 == 0
        if bad:
            x[0, 0] = -1
        call = start(stub, model, x, signature="picky")
        if bad:
            assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
            return 0
        outputs = outputs_of(call.result())
        check(x, outputs)
        return int(outputs["batch"].max())

    with ThreadPoolExecutor(24) as threads:
        batches = list(threads.map(ask, range(400)))
    assert max(batches) > 1
    assert max(batches) <= (8 if model == "adaptive" else 24)  # a piece of a padded request runs alone, as it is
