"""Goal: a message is known for one of a crowd only by all of its bytes but the payload, and the refused are counted as
if each had been decoded. Method: messages made by the official classes, through the decoder that learns them.
"""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from ringserve.broker.messages import Code, Failure
from ringserve.config import metrics
from ringserve.config.metric_file import MetricFile
from ringserve.config.protos import PredictRequest
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.crowds import Crowds
from ringserve.frontend.lanes import Lane, LaneTable
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.frontend.tally import Tally
from ringserve.shm import dtype as dt
from tests.frontend.fakes import catalog_of, float_proto, signature_def, version_info
from tests.frontend.test_tally import counted

MS = 1_000_000
PATH = "/tensorflow.serving.PredictionService/Predict"
SIGNATURES = {"serving_default": signature_def({"x": (dt.FLOAT, [-1, 2])}, {"y": (dt.FLOAT, [-1])})}


def message_of(values: list[float], model: str = "m") -> bytes:
    request = PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(float_proto(values, [len(values) // 2, 2]))
    data: bytes = request.SerializeToString(deterministic=True)
    return data


class Bench:
    """A decoder that knows messages of two rows, and a tally with a clock that stands still unless told."""

    def __init__(self, folder: Path) -> None:
        catalog: Catalog = catalog_of(version_info("m", 1, SIGNATURES), version_info("n", 1, SIGNATURES))
        self.decoder = PredictDecoder(catalog, LaneTable(), tensor_bytes_max=1 << 20)
        self.tally = Tally(MetricFile(str(folder), "frontend-0"), MetricScope(catalog))
        self.now_ns = 1_000 * MS
        self.tally.clock_ns = lambda: self.now_ns
        self.crowds = Crowds(PATH, self.decoder.templates, self.tally)

    def see(self, message: bytes, *, full: bool = True) -> Lane:
        for _ in range(3):
            decoded = self.decoder.decode(message)
        assert not isinstance(decoded, Failure)
        lane, rows, _ = decoded
        if full:
            lane.pressure.told(40 * MS, self.now_ns)
            lane.pressure.taken(6)
        self.crowds.saw(message, lane, rows)
        return lane


def test_messages_like_one_that_was_refused_are_a_crowd(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    message = message_of([1, 2, 3, 4])
    lane = bench.see(message)
    (crowd,) = bench.crowds.by_size[len(message)]
    other = message_of([5, 6, 7, 8])
    assert other.startswith(crowd.prefix)
    assert other.endswith(crowd.suffix)
    assert len(crowd.prefix) + 16 + len(crowd.suffix) == len(other)
    assert not message_of([5, 6, 7, 8], "n").startswith(crowd.prefix)
    assert crowd.room(40 * MS) == 3  # of two rows each
    lane.pressure.rows = 3
    assert crowd.room(40 * MS) == 2  # there is room for half of the second one, and nothing else is before it
    lane.pressure.rows = 7
    assert crowd.room(40 * MS) == 0
    lane.pressure.rows = 0
    crowd.comes(3)  # they are on their way, too
    assert crowd.room(40 * MS) == 0
    crowd.comes(-2)
    assert crowd.room(40 * MS) == 2
    assert lane.pressure.rows == 0  # but nobody else has them yet
    bench.now_ns += 300 * MS
    assert crowd.room(1) == inf


def test_each_is_noted_once_and_only_while_its_lane_is_full(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    message = message_of([1, 2])
    bench.see(message, full=False)
    assert not bench.crowds.by_size
    for _ in range(3):
        bench.see(message)
        bench.see(message_of([3, 4], "n"))
    assert {size: len(alike) for size, alike in bench.crowds.by_size.items()} == {len(message): 2}


def test_a_message_that_no_template_knows_makes_no_crowd(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = bench.see(message_of([1, 2]))
    bench.crowds.by_size.clear()
    bench.crowds.saw(message_of([1, 2, 3, 4]), lane, 2)
    assert not bench.crowds.by_size


@pytest.mark.parametrize("count", [1, 700])
def test_the_refused_are_counted_and_told_when_to_come_again(count: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    message = message_of([1, 2])
    bench.see(message)
    (crowd,) = bench.crowds.by_size[len(message)]
    code, text, retry_ms = crowd.refuse(count)
    assert (code, retry_ms) == (Code.RESOURCE_EXHAUSTED, 40)
    assert text.startswith("The queue is too long for this request's deadline: an answer can be promised in 40 ms")
    bench.tally.flush()
    labels = ("m", "1", "serving_default", "predict", "GRPC", "RESOURCE_EXHAUSTED")
    assert counted(tmp_path, metrics.REQUESTS) == {labels: count}
