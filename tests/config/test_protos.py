"""The official message classes come without TensorFlow, and live in peace with it when it comes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


def run_python(program: str) -> Any:
    """What `program` prints as JSON, run in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_grpc_api_never_loads_tensorflow() -> None:
    report = run_python(
        "import sys, json\n"
        "import ringserve.frontend.grpc_api\n"
        "names = [n for n in sys.modules if n.split('.')[0] == 'tensorflow']\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(json.dumps([names, 'libtensorflow' in maps]))\n"
    )
    assert report == [[], False]


ROUND_TRIP = (
    "p = tf.make_tensor_proto([1.5, 2.5])\n"
    "r = protos.PredictRequest(); r.inputs['x'].CopyFrom(p)\n"
    "import json\n"
    "print(json.dumps([type(p) is protos.TensorProto, tf.make_ndarray(r.inputs['x']).tolist(),"
    " len(tf.make_ndarray(r.inputs['x'])), hasattr(tf, 'constant')]))\n"
)


@pytest.mark.parametrize(
    "imports",
    [
        "from ringserve.config import protos\nimport tensorflow as tf\n",
        "import tensorflow as tf\nfrom ringserve.config import protos\n",
    ],
    ids=["protos first", "tensorflow first"],
)
def test_the_real_tensorflow_shares_the_classes(imports: str) -> None:
    pytest.importorskip("tensorflow")
    assert run_python(imports + ROUND_TRIP) == [True, [1.5, 2.5], 2, True]


def test_protobuf_runs_on_its_c_implementation() -> None:
    """The pure Python implementation works too but is fifty times slower: a deployment should notice."""
    report = run_python(
        "import json\n"
        "from ringserve.config import protos\n"
        "from google.protobuf.internal import api_implementation\n"
        "print(json.dumps(api_implementation.Type()))\n"
    )
    assert report == "upb"
