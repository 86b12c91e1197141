"""Models that pad: requests of different inner shapes are in one lane, and each record says its own shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Failure
from ringserve.broker.wire import unpack_lane
from ringserve.config.protos import PredictRequest
from ringserve.frontend.catalog import Catalog, ServableView
from ringserve.frontend.lanes import LaneTable, Request, Tensor
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.shm.dtype import FLOAT, INT64, STRING
from ringserve.shm.head import HEAD_BYTES, pack_head
from tests.frontend.fakes import Specs, float_proto, signature_def, version_info

Y: Specs = {"y": (FLOAT, [-1])}


def catalog_of(inputs: Specs, pads: Sequence[str] = ("m",)) -> Catalog:
    catalog = Catalog()
    catalog.update([version_info("m", 7, {"serving_default": signature_def(inputs, Y)})], pads=pads)
    return catalog


def servable_of(catalog: Catalog) -> ServableView:
    servable = catalog.resolve("m")
    assert isinstance(servable, ServableView)
    return servable


def floats(*shape: int) -> Tensor:
    return Tensor(FLOAT, shape, np.arange(int(np.prod(shape)), dtype="<f4").tobytes())


class Table:
    """A LaneTable and the one model."""

    def __init__(self, inputs: Specs, pads: Sequence[str] = ("m",)) -> None:
        self.catalog = catalog_of(inputs, pads)
        self.lanes = LaneTable()

    def bind(self, **tensors: Any) -> Request:
        servable = servable_of(self.catalog)
        request = self.lanes.bind(servable, servable.signatures["serving_default"], tensors)
        assert isinstance(request, Request), request
        return request


X: Specs = {"x": (FLOAT, [-1, -1, 4])}


def test_6_4_requests_of_different_shapes_share_a_lane() -> None:
    table = Table(X)
    narrow, wide = (table.bind(x=floats(2, width, 4)) for width in (3, 5))
    assert narrow.lane.key == wide.lane.key
    assert [spec.shape for spec in narrow.lane.spec.inputs] == [(-1, 4)]
    assert unpack_lane(narrow.lane.key) == narrow.lane.spec
    assert (narrow.lane.row_bytes, wide.lane.row_bytes) == ((48,), (80,))
    assert table.bind(x=floats(9, 3, 4)).lane is narrow.lane


def test_models_that_do_not_pad_have_a_lane_for_each_shape() -> None:
    table = Table(X, pads=())
    narrow, wide = (table.bind(x=floats(2, width, 4)) for width in (3, 5))
    assert narrow.lane.key != wide.lane.key
    assert narrow.lane.heads is None


def test_records_say_their_shape_where_the_lane_does_not() -> None:
    table = Table({"a": (FLOAT, [-1, 2]), "s": (STRING, [-1, -1]), "x": (INT64, [-1, -1])})
    request = table.bind(
        a=floats(2, 2), s=Tensor(STRING, (2, 1), [b"k", b""]), x=Tensor(INT64, (2, 3), bytes(range(48)))
    )
    assert request.lane.heads == (None, (1,), (3,))
    a, s, x = request.lane.with_heads(request.rows, request.payloads)
    assert a is request.payloads[0]
    assert s == [pack_head((2, 1)), b"k", b""]
    assert bytes(x) == pack_head((2, 3)) + bytes(range(48))  # type: ignore[arg-type]
    assert len(pack_head((2, 3))) == HEAD_BYTES


@pytest.mark.parametrize(
    ("declared", "sent", "shape"),
    [
        ([-1], (3,), ()),  # nothing to pad
        ([-1, 4], (3, 4), (4,)),  # nothing open
        ([-1, -1, -1, -1, -1, -1], (1, 2, 3, 4, 5, 6), (-1, -1, -1, -1, -1)),
        ([-1, -1, -1, -1, -1, -1, -1], (1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7)),  # 6.4: ranks 1 to 6
    ],
)
def test_6_4_what_is_open(declared: list[int], sent: tuple[int, ...], shape: tuple[int, ...]) -> None:
    request = Table({"x": (FLOAT, declared)}).bind(x=floats(*sent))
    assert request.lane.spec.batchable
    assert request.lane.spec.inputs[0].shape == shape
    assert (request.lane.heads is not None) == (-1 in shape)


@pytest.mark.parametrize("sent", [(2, 0, 4), (0, 3, 4), (2, 4)])
def test_6_4_empty_tensors_and_other_ranks_run_alone(sent: tuple[int, ...]) -> None:
    """So no batch meets an empty tensor among others, which TF Serving answers with an error for all."""
    request = Table(X).bind(x=floats(*sent))
    assert not request.lane.spec.batchable
    assert request.lane.spec.inputs[0].shape == sent
    assert request.lane.heads is None


def test_a_fixed_axis_is_checked_all_the_same() -> None:
    servable = servable_of(catalog_of(X))
    failure = LaneTable().bind(servable, servable.signatures["serving_default"], {"x": floats(2, 3, 5)})
    assert isinstance(failure, Failure)


def test_padding_can_be_turned_on_and_off() -> None:
    table = Table(X, pads=())
    alone = table.bind(x=floats(2, 3, 4)).lane
    versions = [version_info("m", 7, {"serving_default": signature_def(X, Y)})]
    epoch = table.catalog.epoch
    table.catalog.update(versions, pads=["m", "other"])
    assert table.catalog.epoch == epoch + 1
    assert table.bind(x=floats(2, 3, 4)).lane.spec.inputs[0].shape == (-1, 4)
    table.catalog.update(versions, pads=["other"])
    assert table.bind(x=floats(2, 3, 4)).lane.key == alone.key


def test_messages_that_look_alike_keep_their_lane() -> None:
    """The decoder's templates give the Lane of the message's own shape, so that the record can say it."""
    decoder = PredictDecoder(catalog_of({"x": (FLOAT, [-1, -1])}), LaneTable(), tensor_bytes_max=1 << 20)
    found = {}
    for _ in range(4):
        for rows, width in ((2, 3), (3, 2)):  # of equal length
            request = PredictRequest()
            request.model_spec.name = "m"
            request.inputs["x"].CopyFrom(float_proto(range(6), [rows, width], content=True))
            matched = decoder.decode(request.SerializeToString())
            assert not isinstance(matched, Failure)
            lane, got_rows, payloads = matched
            assert got_rows == rows
            assert bytes(lane.with_heads(rows, payloads)[0])[:HEAD_BYTES] == pack_head((rows, width))  # type: ignore[arg-type]
            found[width] = lane
    assert len(decoder.templates) == 2
    assert found[2].key == found[3].key
