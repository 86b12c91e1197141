"""The hot path says the same as the long way for requests, and its table of templates stays bounded."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code, Failure, InputSpec, LaneSpec
from ringserve.config.protos import ModelSpec, PredictRequest, TensorProto
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.lanes import LaneTable
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.frontend.predict_templates import Matched, TemplateTable
from ringserve.frontend.tensor_proto import Tensor, encode
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import DTYPES
from tests.frontend.fakes import catalog_of, float_proto, signature_def, version_info

BYTES_MAX = 1 << 20

SIGNATURES = {
    "serving_default": signature_def({"x": (dt.FLOAT, [-1, 2])}, {"y": (dt.FLOAT, [-1])}),
    "two": signature_def({"a": (dt.FLOAT, [-1]), "b": (dt.DOUBLE, [-1, 2])}, {"y": (dt.FLOAT, [-1])}),
    "mask": signature_def({"m": (dt.BOOL, [-1])}, {"y": (dt.FLOAT, [-1])}),
    "int": signature_def({"i": (dt.INT64, [-1])}, {"y": (dt.FLOAT, [-1])}),
    "text": signature_def({"s": (dt.STRING, [-1])}, {"y": (dt.FLOAT, [-1])}),
    "any": signature_def({"x": (dt.FLOAT, None)}, {"y": (dt.FLOAT, None)}),
    "default": signature_def(
        {"x": (dt.FLOAT, [-1]), "k": (dt.FLOAT, [])}, {"y": (dt.FLOAT, [-1])}, defaults={"k": float_proto([3], [])}
    ),
}


@pytest.fixture
def catalog() -> Catalog:
    return catalog_of(version_info("m", 1, SIGNATURES))


def decoder_of(catalog: Catalog, **table: int) -> PredictDecoder:
    return PredictDecoder(catalog, LaneTable(), tensor_bytes_max=BYTES_MAX, templates=TemplateTable(**table))


def request_of(inputs: dict[str, Any], signature: str = "", **spec: Any) -> bytes:
    request = PredictRequest(model_spec=ModelSpec(name="m", signature_name=signature, **spec))
    for alias, proto in inputs.items():
        request.inputs[alias].CopyFrom(proto)
    serialized: bytes = request.SerializeToString(deterministic=True)
    return serialized


def typed(dtype: int, shape: tuple[int, ...], array: Any, *, content: bool = True) -> Any:
    data = np.asarray(array, dtype=DTYPES[dtype].numpy).tobytes()
    return TensorProto.FromString(encode(Tensor(dtype, shape, data), tensor_content=content))


def plain(result: Matched | Failure) -> Any:
    """A result by value: what a request means, wherever its payloads lie."""
    if isinstance(result, Failure):
        return result
    lane, rows, payloads = result
    return lane.spec, rows, [each if isinstance(each, list) else bytes(each) for each in payloads]


def learned(decoder: PredictDecoder, message: bytes) -> None:
    """Show `message` until it is known; it must be of a kind that is learned."""
    before = len(decoder.templates)
    for _ in range(2):
        decoder.decode(message)
    assert len(decoder.templates) == before + 1


# ------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize("content", [False, True])
def test_a_match_means_what_parsing_means(catalog: Catalog, content: bool, as_view: bool) -> None:
    decoder = decoder_of(catalog)
    learned(decoder, request_of({"x": float_proto([1, 2, 3, 4], [2, 2], content=content)}))
    message = request_of({"x": float_proto([5, 6, 7, 8], [2, 2], content=content)})
    matched = decoder.templates.match(memoryview(message) if as_view else message)
    assert matched is not None
    assert plain(matched) == (
        LaneSpec("m", 1, "serving_default", (InputSpec("x", dt.FLOAT, (2,)),), ("y",), True),
        2,
        [struct.pack("<4f", 5, 6, 7, 8)],
    )
    assert plain(decoder_of(catalog).decode(message)) == plain(matched)


def test_payloads_of_a_match_are_views(catalog: Catalog) -> None:
    decoder = decoder_of(catalog)
    message = request_of({"x": float_proto([1, 2], [1, 2])})
    learned(decoder, message)
    buffer = bytearray(message)
    matched = decoder.templates.match(memoryview(buffer))
    assert matched is not None
    (payload,) = matched[2]
    assert isinstance(payload, memoryview)
    assert payload.obj is buffer


@pytest.mark.parametrize("swap", [False, True])
def test_several_inputs_in_any_order(catalog: Catalog, swap: bool) -> None:
    decoder = decoder_of(catalog)

    def message(a: float, b: float) -> bytes:
        inputs = {"a": float_proto([a, a + 1], [2]), "b": typed(dt.DOUBLE, (2, 2), [b] * 4)}
        one, other = ("b", "a") if swap else ("a", "b")
        entry = {alias: request_of({alias: inputs[alias]})[len(request_of({})) :] for alias in inputs}
        return request_of({}, "two") + entry[one] + entry[other]

    learned(decoder, message(1, 2))
    matched = decoder.templates.match(message(3, 4))
    assert matched is not None
    assert plain(matched)[2] == [struct.pack("<2f", 3, 4), struct.pack("<4d", 4, 4, 4, 4)]
    assert plain(matched) == plain(decoder_of(catalog).decode(message(3, 4)))


def test_the_first_sight_of_a_length_is_not_learned(catalog: Catalog) -> None:
    decoder = decoder_of(catalog)
    decoder.decode(request_of({"x": float_proto([1, 2], [1, 2])}))
    assert len(decoder.templates) == 0
    decoder.decode(request_of({"x": float_proto([3, 4], [1, 2])}))
    assert len(decoder.templates) == 1


@pytest.mark.parametrize(
    "message",
    [
        request_of({"x": float_proto([1], [2, 2])}),  # filled up
        request_of({"x": float_proto([1, 2, 3], [1, 2])}),  # cut
        request_of({"x": float_proto([], [1, 2])}),
        request_of({"i": typed(dt.INT64, (2,), [1, 2], content=False)}, "int"),  # varints
        request_of({"m": typed(dt.BOOL, (2,), [1, 0], content=False)}, "mask"),  # varints too
        request_of({"s": TensorProto(dtype=dt.STRING, string_val=[b"ab"])}, "text"),
        request_of({"s": TensorProto(dtype=dt.STRING, tensor_content=b"\x01a")}, "text"),
        request_of({"x": float_proto([1], [1])}, "default"),  # k by default
        request_of({"x": float_proto([], [0])}, "any"),
        request_of({"x": float_proto([1, 2], [1, 2])}) + b"\x3a\x82\x20" + b"\x0a\xff\x1f" + b"c" * 4095,
    ],
)
def test_what_is_not_learned(catalog: Catalog, message: bytes) -> None:
    decoder = decoder_of(catalog)
    for _ in range(4):
        assert not isinstance(decoder.decode(message), Failure)
    assert len(decoder.templates) == 0


def test_failures_are_not_learned(catalog: Catalog) -> None:
    decoder = decoder_of(catalog)
    for _ in range(4):
        assert isinstance(decoder.decode(request_of({"z": float_proto([1, 2], [1, 2])})), Failure)
    assert len(decoder.templates) == 0


def test_bool_bytes_are_checked_every_time(catalog: Catalog) -> None:
    decoder = decoder_of(catalog)
    good = request_of({"m": typed(dt.BOOL, (3,), [1, 0, 1])}, "mask")
    learned(decoder, good)
    assert plain(decoder.decode(good.replace(b"\1\0\1", b"\0\0\1")))[2] == [b"\0\0\1"]
    bad = decoder.decode(good.replace(b"\1\0\1", b"\1\2\1"))
    assert bad == Failure(Code.INVALID_ARGUMENT, "tensor parsing error: m")


def test_catalog_changes_are_seen_at_once(catalog: Catalog) -> None:
    decoder = decoder_of(catalog)
    message = request_of({"x": float_proto([1, 2], [1, 2])})
    learned(decoder, message)
    catalog.update([version_info("m", 1, SIGNATURES), version_info("m", 2, SIGNATURES)])
    assert plain(decoder.decode(message))[0].version == 2
    assert len(decoder.templates) == 0
    catalog.update([])
    assert decoder.decode(message) == Failure(Code.NOT_FOUND, "Servable not found for request: Latest(m)")


def test_unparsable_message(catalog: Catalog) -> None:
    failure = decoder_of(catalog).decode(b"\xff\xff\xff")
    assert isinstance(failure, Failure)
    assert failure.code == Code.INTERNAL


numbers = st.floats(width=32)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Requests that are much alike, so that templates get near misses of every kind."""
    signature = draw(st.sampled_from(["", "two", "any", "int", "mask"]))
    rows = draw(st.integers(1, 2))
    content = draw(st.booleans())
    inputs: dict[str, Any] = {}
    if signature in ("", "any"):
        values = draw(st.lists(numbers, min_size=2 * rows, max_size=2 * rows))
        inputs["x"] = float_proto(values, [rows, 2], content=content)
    elif signature == "two":
        inputs["a"] = float_proto(draw(st.lists(numbers, min_size=rows, max_size=rows)), [rows], content=content)
        inputs["b"] = typed(dt.DOUBLE, (rows, 2), [draw(st.floats())] * rows * 2, content=content)
    elif signature == "int":
        inputs["i"] = typed(dt.INT64, (rows,), [draw(st.integers(0, 300))] * rows, content=content)
    else:
        inputs["m"] = typed(dt.BOOL, (rows,), [draw(st.booleans())] * rows, content=content)
    message = bytearray(request_of(inputs, signature))
    if draw(st.integers(0, 3)) == 0:  # one byte changed somewhere, often in the structure
        message[draw(st.integers(0, len(message) - 1))] = draw(st.sampled_from([0, 1, 2, 4, 8, 0x80, 0xFF]))
    return bytes(message)


@given(st.lists(messages(), max_size=30))
@settings(deadline=None, max_examples=150)
def test_with_and_without_templates_is_the_same(stream: list[bytes]) -> None:
    catalog = catalog_of(version_info("m", 1, SIGNATURES))
    decoder = decoder_of(catalog, templates_max=4, alike_max=2)
    for message in stream * 3:
        fresh = PredictDecoder(catalog, LaneTable(), tensor_bytes_max=BYTES_MAX)
        assert plain(decoder.decode(message)) == plain(fresh.decode(message))
        assert len(decoder.templates) <= 4


@pytest.mark.parametrize(
    ("message", "payloads"),
    [
        (request_of({"x": float_proto([1.1, 2.2], [1, 2])}), [struct.pack("<2f", 1.1, 2.2)]),
        # something after the payload, and something between two of them
        (request_of({"x": float_proto([1.1, 2.2], [1, 2])}) + b"\x1a\x01y", [struct.pack("<2f", 1.1, 2.2)]),
        (
            request_of({"a": float_proto([1.1], [1]), "b": typed(dt.DOUBLE, (1, 2), [3.3, 4.4])}, "two") + b"\x1a\x01y",
            [struct.pack("<f", 1.1), struct.pack("<2d", 3.3, 4.4)],
        ),
    ],
    ids=["one input", "with a suffix", "with a gap and a suffix"],
)
def test_every_changed_byte_outside_of_the_payloads_is_noticed(
    catalog: Catalog, message: bytes, payloads: list[bytes]
) -> None:
    decoder = decoder_of(catalog)
    learned(decoder, message)
    free = {message.index(payload) + offset for payload in payloads for offset in range(len(payload))}
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= 1
        matched = decoder.templates.match(bytes(changed))
        assert (matched is not None) == (position in free)


# ------------------------------------------------------------------------------------------------- bounds of the table


def unlike(index: int) -> bytes:
    """Requests of one length and of different constant bytes."""
    return request_of({"x": float_proto([1, 2], [1, 2])}, signature="any") + b"\x32\x04" + b"%04d" % index


def of_length(extra: int) -> bytes:
    return request_of({"x": float_proto([1, 2], [1, 2])}) + b"\x32" + bytes([extra]) + b"c" * extra


def test_templates_of_one_length_are_bounded(catalog: Catalog) -> None:
    decoder = decoder_of(catalog, alike_max=3)
    for index in range(20):
        decoder.decode(unlike(index))
    assert len(decoder.templates) <= 3


def test_many_models_with_requests_of_one_length_are_all_known() -> None:
    names = [f"m{index:03}" for index in range(200)]
    decoder = decoder_of(catalog_of(*(version_info(name, 1, SIGNATURES) for name in names)))
    requests = []
    for name in names:
        request = PredictRequest.FromString(request_of({"x": float_proto([1, 2], [1, 2])}))
        request.model_spec.name = name
        requests.append(request.SerializeToString(deterministic=True))
        learned(decoder, requests[-1])
    assert len({len(request) for request in requests}) == 1
    for name, request in zip(names, requests, strict=True):
        matched = decoder.templates.match(request)
        assert matched is not None
        assert matched[0].spec.model == name


def test_requests_of_one_length_whose_payloads_begin_at_many_places_are_bounded(catalog: Catalog) -> None:
    decoder = decoder_of(catalog, alike_max=3)
    unknown = [b"\x32" + bytes([size]) + b"c" * size for size in range(12)]  # a field that stands first, and one last
    body = request_of({"x": float_proto([1, 2], [1, 2])})
    for first, last in zip(unknown, reversed(unknown), strict=True):
        for _ in range(3):
            decoder.decode(first + body + last)
    assert 0 < len(decoder.templates) <= 3


def test_all_templates_are_bounded(catalog: Catalog) -> None:
    decoder = decoder_of(catalog, templates_max=5)
    for extra in range(100):
        decoder.decode(of_length(extra))
        decoder.decode(of_length(extra))
        assert len(decoder.templates) <= 5


def test_what_is_in_use_stays_and_what_is_not_goes(catalog: Catalog) -> None:
    decoder = decoder_of(catalog, templates_max=4, alike_max=2)
    used = of_length(100)
    learned(decoder, used)
    for index in range(500):
        assert decoder.templates.match(used) is not None
        decoder.decode(unlike(index))
        decoder.decode(of_length(index % 90))
    assert len(decoder.templates) <= 4
    # and a newcomer finds room soon after the strangers have gone
    new = of_length(120)
    for _ in range(20):
        decoder.decode(new)
        decoder.decode(used)
    assert decoder.templates.match(new) is not None


def test_new_traffic_replaces_old_traffic(catalog: Catalog) -> None:
    decoder = decoder_of(catalog, templates_max=3, alike_max=2)
    for extra in (1, 2, 3):
        for _ in range(10):
            decoder.decode(of_length(extra))
    for _ in range(40):
        for extra in (11, 12, 13):
            decoder.decode(of_length(extra))
    assert all(decoder.templates.match(of_length(extra)) is not None for extra in (11, 12, 13))
