"""Models whose rows depend on each other, of which nothing at load tells: every answer is that of the request alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests import row_models
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server

_CLIENTS = 24
_REQUESTS = 12


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return row_models.depending(tmp_path_factory.mktemp("models") / "depending" / "1")


def _serve(name: str, version: Path, folder: Path) -> Iterator[Server]:
    arguments = ["--model_name", name, "--model_base_path", str(version.parent), "--workers", "2"]
    with Server(folder, *arguments, "--log_level", "debug") as server:
        server.wait_available(name)
        yield server


@pytest.fixture(scope="module")
def server(version: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _serve("depending", version, tmp_path_factory.mktemp("server"))


@pytest.fixture
def hiding(tmp_path: Path) -> Iterator[Server]:
    yield from _serve("hiding", row_models.hiding(tmp_path / "hiding" / "1"), tmp_path)


def _inputs(signature: str, random: np.random.Generator) -> dict[str, Any]:
    rows = int(random.integers(1, 6))
    if signature in ("open", "wide"):
        return {"x": random.standard_normal((rows, int(random.integers(1, 4)))).astype(np.float32)}
    return {"text": np.array([b"a" * int(random.integers(0, 5)) for _ in range(rows)], object)}


@pytest.mark.parametrize(("signature", "depends"), [("words", True), ("open", True), ("upper", False), ("wide", False)])
def test_answers_do_not_depend_on_who_else_asks(
    server: Server, stub: Any, version: Path, signature: str, depends: bool
) -> None:
    """Strings and open axes; and signatures of which the same is unknown, but which are trusted in the end."""
    model = tf.saved_model.load(str(version))
    alone = model.signatures[signature]

    def client(seed: int) -> int:
        random = np.random.default_rng(seed)
        wrong = 0
        for _ in range(_REQUESTS):
            inputs = _inputs(signature, random)
            expected = alone(**{alias: tf.constant(array) for alias, array in inputs.items()})["y"].numpy()
            got = outputs_of(stub.Predict(make_request("depending", signature, **inputs), timeout=60))["y"]
            same = got.shape == expected.shape
            if same and got.dtype.kind == "f":
                same = bool(np.allclose(got, expected, rtol=1e-4))
            elif same:
                same = bool((got == expected).all())
            wrong += not same
        return wrong

    with ThreadPoolExecutor(_CLIENTS) as clients:
        assert sum(clients.map(client, range(_CLIENTS))) == 0
    if depends:
        assert re.search(rf"signature {signature}: .* are run one by one", server.log)
    else:
        assert f"signature {signature}: its requests share batches from now on" in server.log


def test_a_smoke_test_whose_requests_are_alike_misleads_nobody(hiding: Server) -> None:
    """Texts of one word first, then others; the same numbers all the time first, then others. One worker tells the
    other what it finds."""
    with grpc.insecure_channel(hiding.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def ask(signature: str, *inputs: dict[str, Any]) -> list[Any]:
            """The answers of requests that come together."""
            calls = [stub.Predict.future(make_request("hiding", signature, **each), timeout=60) for each in inputs]
            return [outputs_of(call.result())["y"].tolist() for call in calls]

        same = {"x": np.array([[1, 2]], np.float32)}
        word, words = ({"text": np.array([text], object)} for text in (b"on", b"on and on"))
        for _ in range(30):
            assert ask("open", *[same] * 16) == [[[0, 0]]] * 16
            assert ask("tokens", *[word] * 16) == [[[b"on"]]] * 16
        for i in range(30):
            others = [{"x": np.array([[i, j]], np.float32)} for j in range(16)]
            assert ask("open", *others) == [[[0, 0]]] * 16
            assert ask("tokens", *[word, words] * 8) == [[[b"on"]], [[b"on", b"and", b"on"]]] * 8
    assert re.search(r"signature open: y differed .* are run one by one from now on", hiding.log)
    assert "signature tokens: y may be as wide as the longest row of a batch needs" in hiding.log
    assert "signature open: found to depend by another worker" in hiding.log
