"""Every door that bytes of strangers come through, as a function of these bytes: it returns, whatever they are.

What a door documents as its answer to nonsense is caught here; anything else that is raised is a bug, and so is what an
`assert` finds. `seeds` are good inputs to begin with.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ringserve.broker import wire
from ringserve.broker.control import ControlChannel, ControlClosed
from ringserve.broker.messages import Failure, LaneSpec, Submit
from ringserve.config.protos import ModelSpec, PredictRequest, TensorProto
from ringserve.frontend import npy
from ringserve.frontend.catalog import ServableView
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http1.heads import BadRequestError, ChunkedBody, HeadTable
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.grpc_messages import MessageFault, MessageReader
from ringserve.frontend.json_predict import read_body, read_inputs
from ringserve.frontend.json_quick import quick_body, quick_inputs
from ringserve.frontend.lanes import LaneTable
from ringserve.frontend.open_inference import Asked, raw_input
from ringserve.frontend.open_inference import read as read_open_inference
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.frontend.rest_predict import gunzip
from ringserve.frontend.wire_walk import find_payloads
from ringserve.shm import dtype as dt
from ringserve.shm.head import read_head, read_string_head
from ringserve.shm.tensor import TensorError, read_strings, string_count, view, write_strings
from tests.frontend.fakes import catalog_of, signature_def, version_info
from tests.frontend.http1.peer import Peer as Http1Peer
from tests.frontend.http1.peer import chunked, mirror, post
from tests.frontend.http2.peer import ECHO, message, request_fields
from tests.frontend.http2.peer import Peer as Http2Peer
from tests.fuzz import inside

_SIGNATURES = {
    "serving_default": signature_def({"x": (dt.FLOAT, [-1, 2])}, {"y": (dt.FLOAT, [-1])}),
    "two": signature_def({"a": (dt.INT64, [-1]), "b": (dt.DOUBLE, [-1, 2])}, {"y": (dt.FLOAT, [-1])}),
    "text": signature_def({"s": (dt.STRING, [-1])}, {"y": (dt.FLOAT, [-1])}),
    "any": signature_def({"x": (dt.FLOAT, None)}, {"y": (dt.FLOAT, None)}),
}
_LIMITS = EngineLimits(concurrent_streams_max=4, message_bytes_max=10_000, header_list_bytes_max=4_096)


class Target(NamedTuple):
    """One door."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def http2(data: bytes) -> None:
    """A connection after its beginning. The first byte says in which pieces the rest comes, and which way it takes."""
    if not data:
        return
    peer = Http2Peer(_LIMITS, short_way=bool(data[0] & 1))
    step = (data[0] >> 1) or len(data)
    for at in range(1, len(data), step):
        peer.send(data[at : at + step])
        if data[0] & 2 and peer.held:
            peer.held.pop().finish(b"later")
    _end_http2(peer)


def http2_barred(data: bytes) -> None:
    """The same in a rush, barred by turns. The first byte also says how many calls of each piece are taken."""
    if not data:
        return
    peer = Http2Peer(_LIMITS, short_way=bool(data[0] & 1))
    connection = peer.connection
    connection.told = None
    connection.is_in_rush = True
    step = (data[0] >> 2) or len(data)
    for turn, at in enumerate(range(1, len(data), step)):
        connection.bar(turn % 3 < 2)
        connection.room_calls = data[0] & 2
        peer.send(data[at : at + step], 30_000_000)
    assert connection.let_in <= connection.streams.keys()
    _end_http2(peer)


def _end_http2(peer: Http2Peer) -> None:
    peer.read()
    connection = peer.connection
    assert connection.held_bytes == peer.host.account.input_bytes >= 0
    assert connection.queued_bytes == peer.host.account.output_bytes >= 0
    connection.disconnected()
    assert (peer.host.account.input_bytes, peer.host.account.output_bytes) == (0, 0)


def hpack(data: bytes) -> None:
    """One header block, in a connection where the client knows that there is no table, and in one where it may not."""
    for begun in (True, False):
        peer = Http2Peer(_LIMITS, begun=begun)
        if not begun:
            peer.send(frames.PREFACE + frames.settings({}))
        for stream_id in (1, 3):
            peer.send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, data[:16_384]))
        peer.read()


def grpc_message(data: bytes) -> None:
    for encoding in ("", "gzip", "deflate"):
        reader = MessageReader(encoding, 1_000, 500)
        with suppress(MessageFault):
            for raw in reader.feed(data[:3]) + reader.feed(data[3:]):
                assert len(reader.decoded(raw)) <= 1_000


def http1(data: bytes) -> None:
    """A connection; the first byte says in which pieces the rest comes."""

    async def run() -> None:
        peer = Http1Peer(mirror)
        step = (data[0] if data else 0) or len(data) + 1
        await peer.send(*(data[at : at + step] for at in range(1, len(data), step)))
        peer.lose()
        assert peer.server.bodies_bytes == 0

    asyncio.run(run())


def http1_head(data: bytes) -> None:
    with suppress(BadRequestError):
        head = HeadTable(20).read(data.split(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert head.body_bytes >= -1


def chunks(data: bytes) -> None:
    decoder, at = ChunkedBody(), 0
    with suppress(BadRequestError):
        while at < len(data) and not decoder.is_complete:
            at += decoder.feed(data[at : at + 7])
        assert sum(map(len, decoder.pieces)) <= len(data)


def predict_request(data: bytes) -> None:
    """The way by templates must not differ from the one that reads the whole message."""
    decoder = _decoder()
    first = decoder.decode(data)
    again = decoder.decode(data)
    assert isinstance(first, Failure) == isinstance(again, Failure)
    if isinstance(first, Failure):
        assert first == again
    find_payloads(data)


@functools.cache
def _decoder() -> PredictDecoder:
    return PredictDecoder(catalog_of(version_info("m", 1, _SIGNATURES)), LaneTable(), tensor_bytes_max=100_000)


def json_predict(data: bytes) -> None:
    body = read_body(data)
    quick = quick_body(data)
    for name in _SIGNATURES:
        signature = _servable().signatures[name]
        if quick is not None:
            quick_inputs(quick, signature)
        if body is not None and not isinstance(body, Failure):
            read_inputs(body, signature)


@functools.cache
def _servable() -> ServableView:
    found = catalog_of(version_info("m", 1, _SIGNATURES)).resolve("m", None, None)
    assert not isinstance(found, Failure)
    return found


def open_inference(data: bytes) -> None:
    """A body; the first two bytes say how much of it is JSON."""
    size, body = int.from_bytes(data[:2], "big"), data[2:]
    found = read_open_inference(body, size)
    again = read_open_inference(body, size, hurry=True)
    assert again is None or again == found
    if isinstance(found, Asked):
        assert sum(len(each.data) for each in found.tensors.values()) <= 8 * len(body)
        outputs = [each.name for each in found.outputs]
        LaneTable().bind(_servable(), _servable().signatures["two"], found.tensors, outputs)
    for dtype in (dt.FLOAT, dt.STRING, dt.BOOL):
        raw_input(body, "x", dtype, (-1, size % 7 - 1), has_row_axis=True)


def npy_file(data: bytes) -> None:
    for dtype in (dt.FLOAT, dt.STRING, dt.BFLOAT16):
        tensor = npy.read(data, dtype)
        assert tensor is not None
        if not isinstance(tensor, Failure):
            assert len(tensor.data) <= len(data)
            assert all(type(size) is int for size in tensor.shape)


def json_gunzip(data: bytes) -> None:
    assert len(gunzip(data, 1_000)) <= 1_000


def wire_message(data: bytes) -> None:
    for unpack in (wire.unpack, wire.unpack_lane, wire.unpack_fields):
        with suppress(wire.WireError):
            unpack(data)


def control(data: bytes) -> None:
    """What a peer may send over a registration connection; the first byte cuts it in two."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = ControlChannel(ours)
    cut = data[0] if data else 0
    try:
        for piece in (data[1 : 1 + cut], data[1 + cut :]):
            theirs.sendall(piece[:60_000])
            with suppress(ControlClosed):
                for received in channel.receive():
                    for fd in received.fds:
                        os.close(fd)
    finally:
        theirs.close()
        channel.close()


def records(data: bytes) -> None:
    """What a reader of a ring may find where it was told that a record is: anything at all."""
    ring = memoryview(data)
    numbers = [int.from_bytes(data[at : at + 2], "big", signed=True) for at in range(0, min(len(data), 12), 2)]
    for offset in {0, *numbers}:
        for look in (read_head, read_string_head, string_count):
            with suppress(TensorError):
                look(ring, offset)
        with suppress(TensorError):
            assert sum(map(len, read_strings(ring, offset, *[*numbers, 0, 0][:2]))) <= len(data)
        for kind in (dt.FLOAT, dt.STRING, dt.BOOL, 99):
            with suppress(TensorError):
                array = view(ring, offset, kind, numbers[1:4])
                assert array.nbytes <= len(data)
                np.sum(array)


def _request(signature: str, **tensors: TensorProto) -> bytes:
    request = PredictRequest(model_spec=ModelSpec(name="m", signature_name=signature))
    for alias, tensor in tensors.items():
        request.inputs[alias].CopyFrom(tensor)
    serialized: bytes = request.SerializeToString()
    return serialized


def _tensor(dtype: int, *shape: int, **fields: object) -> TensorProto:
    made = TensorProto(dtype=dtype, **fields)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def _inference(tensor: bytes, tail: bytes) -> bytes:
    text = b'{"inputs":[{"name":"a",' + tensor + b'}],"outputs":[{"name":"y"}]}'
    return len(text).to_bytes(2, "big") + text + tail


def _saved(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _strings() -> bytes:
    record = bytearray(128)
    write_strings(memoryview(record), 0, [b"one", b"", b"three"])
    return bytes(record)


_PEER = Http2Peer()
_BLOCK = _PEER.headers(1)[9:]
_HASTY = _PEER.headers(1, request_fields(ECHO, ("grpc-timeout", "100m")))

TARGETS: dict[str, Target] = {
    "http2": Target(
        http2,
        (
            b"\x00" + _PEER.call(1) + _PEER.call(3),
            b"\x07" + _PEER.headers(1) + frames.rst_stream(1, frames.ErrorCode.CANCEL) + frames.window_update(0, 9),
            b"\x00" + frames.settings({3: 1, 4: 5, 5: 20_000}) + frames.ping(bytes(8), False) + frames.SETTINGS_ACK,
            b"\x01"
            + frames.frame(frames.HEADERS, 0, 1, _BLOCK[:9])
            + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, _BLOCK[9:]),
        ),
    ),
    "http2_barred": Target(
        http2_barred,
        (
            b"\x03" + _HASTY + _PEER.data(1, message(b"hello")) + _PEER.headers(3) + _PEER.data(3, message(b"hello")),
            b"\x01" + _HASTY * 2 + frames.rst_stream(1, frames.ErrorCode.CANCEL) + _PEER.data(1, message(b"hello")),
            b"\xa3" + _HASTY + _PEER.data(1, message(bytes(300))) + frames.window_update(1, 9),
        ),
    ),
    "hpack": Target(
        hpack, (_BLOCK, b"\x20" + _BLOCK, b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff")
    ),
    "grpc_message": Target(grpc_message, (message(b"x") * 2, message(gzip.compress(b"x" * 99, mtime=0), 1))),
    "http1": Target(http1, (b"\x00" + post(b"abc"), b"\x01" + chunked(b"abcdef"), b"\x09" + post(b"1") * 2)),
    "http1_head": Target(http1_head, (post(b""), b"GET http://a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")),
    "chunks": Target(chunks, (b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n")),
    "predict_request": Target(
        predict_request,
        (
            _request("", x=_tensor(dt.FLOAT, 1, 2, tensor_content=bytes(8))),
            _request("", x=_tensor(dt.FLOAT, 2, 2, float_val=[1, 2, 3, 4])),
            _request("two", a=_tensor(dt.INT64, 2, int64_val=[1, 2]), b=_tensor(dt.DOUBLE, 2, 2, double_val=[0])),
            _request("text", s=_tensor(dt.STRING, 2, string_val=[b"a", b""])),
        ),
    ),
    "json_predict": Target(
        json_predict,
        (
            b'{"instances":[[1.5,2],[3,4e1]]}',
            b'{"signature_name":"two","inputs":{"a":[1],"b":[[1,NaN]]}}',
            b'{"signature_name":"text","instances":["\\u00e4",{"b64":"AAE="}]} trailing',
        ),
    ),
    "open_inference": Target(
        open_inference,
        (
            _inference(b'"datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}', bytes(8)),
            _inference(b'"datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":9}', b"\1\0\0\0a\0\0\0\0"),
            _inference(b'"datatype":"FP32","shape":[1,2],"data":[[1,NaN]]', b""),
        ),
    ),
    "npy_file": Target(
        npy_file,
        (
            _saved(np.zeros((1, 2), "<f4")),
            _saved(np.array([["a", "bc"]]).T),
            _saved(np.zeros((1, 2), "<f4")).replace(b"(1, 2), }   ", b"(True, 2), }"),
        ),
    ),
    "json_gunzip": Target(json_gunzip, (gzip.compress(b"{}", mtime=0), gzip.compress(bytes(5_000), mtime=0))),
    "wire_message": Target(
        wire_message,
        (
            wire.pack(Submit(7, [[b"key", [[1, 2, 0, 64], [2, 1, 99, 128]]]])),
            wire.pack_lane(LaneSpec("m", 1, "s", (), ("y",), True)),
        ),
    ),
    "control": Target(control, (b"\x03\x03\x00\x00\x00\x00\x92\x0a\x01", b"\x00\x02\x00\x00\x00\x01\x91\x0a")),
    "segment": Target(inside.segment, inside.SEGMENT_SEEDS),
    "weights": Target(inside.weights, inside.WEIGHTS_SEEDS),
    "tfrecord": Target(inside.tfrecord, inside.TFRECORD_SEEDS),
    "config_files": Target(inside.config_files, inside.CONFIG_SEEDS),
    "records": Target(records, (_strings(), bytes(64), bytes((0, 0, 0, 2, 0, 3)) + _strings())),
}
