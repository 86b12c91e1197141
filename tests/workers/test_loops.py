"""Loops that nothing fed to the model has a part in: TensorFlow runs them by recursion where it folds constants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import exporters

_ROOT = Path(__file__).resolve().parents[2]

#: In a process of its own, which too deep a recursion ends.
_SERVE = """
import sys
import numpy as np
from tests.exporters import tensorflow
tensorflow()
from ringserve.workers import session
from ringserve.workers.servable import Servable
from tests.workers.desk import lane
servable = Servable.load(sys.argv[1], "m", 1)
feeds = {"x": np.array([1.0, 2.0], np.float32)}
(answer,) = servable.plan(lane(servable, feeds, ["y"])).run(list(feeds.values()))
print(answer.tolist(), servable.executor == session.SINGLE_THREADED)
"""


def _add_rounds(tf: Any, rounds: int) -> Any:
    return tf.while_loop(lambda i, _: i < rounds, lambda i, a: (i + 1, a + 1.0), [0, 0.0])[1]


@pytest.mark.parametrize("nested", [False, True])
def test_a_long_loop_of_constants_is_served(tf: Any, tmp_path: Path, nested: bool) -> None:
    def plain(x: Any) -> dict[str, Any]:
        return {"y": x + _add_rounds(tf, 20_000)}

    def in_a_branch(x: Any) -> dict[str, Any]:
        return {"y": x + tf.cond(tf.constant(True), lambda: _add_rounds(tf, 20_000), lambda: 0.0)}

    signature = exporters.concrete(in_a_branch if nested else plain, x=([None], "float32"))
    path = exporters.save(tmp_path / "1", {"serving_default": signature})
    command = [sys.executable, "-c", _SERVE, str(path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[20001.0, 20002.0] True\n"), done.stderr
