"""Models whose rows depend on each other, of which nothing at load tells: every answer is that of the request alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import row_models
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server

_CLIENTS = 24
_REQUESTS = 12


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return row_models.depending(tmp_path_factory.mktemp("models") / "depending" / "1")


@pytest.fixture(scope="module")
def server(version: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--model_name", "depending", "--model_base_path", str(version.parent), "--workers", "2"]
    with Server(folder, *arguments, "--log_level", "debug") as server:
        server.wait_available("depending")
        yield server


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
