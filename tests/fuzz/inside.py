"""The doors that only a server's own processes and its operators come through: shared memory, messages between
processes, and files. What comes through them is a mistake rather than an attack; the answer must be as clear.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from ringserve.broker import wire
from ringserve.config.batching_params import batching_of, parse_batching_parameters
from ringserve.config.keys_file import KeysError, parse_keys, written
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.model_config import models_of, parse_model_config
from ringserve.config.schema import Batching
from ringserve.config.text_protos import ModelConfigError
from ringserve.config.tfrecord import read_records, scan_records, write_record
from ringserve.config.tfs_files import parse_channel_arguments, read_metrics_path, read_session_config
from ringserve.config.tls import read_ssl_config
from ringserve.config.x509_dates import validity
from ringserve.shm.layout import DATA_START, HEADER, HEADER_AT, LAYOUT_VERSION, MAGIC
from ringserve.shm.segment import Segment, SegmentError
from ringserve.workers.weights import Weights, WeightsError, WeightsWriter

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextmanager
def _memory(data: bytes, seals: int) -> Iterator[int]:
    """A descriptor of these bytes, as processes hand them to each other."""
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _file(data: bytes) -> Iterator[str]:
    """The name of a file of these bytes."""
    with _memory(data, 0) as fd:
        yield f"/proc/self/fd/{fd}"


def segment(data: bytes) -> None:
    """A ring that another process says it made. The first byte says whether it is sealed."""
    whole = data[1:] + bytes(max(0, DATA_START + 64 - len(data)))
    with _memory(whole, 0 if data[:1] == b"\xff" else _SEALS) as fd, suppress(SegmentError):
        attached = Segment.attach(fd)
        try:
            assert 1 <= attached.data_bytes == len(attached.data) <= len(whole) - DATA_START
            assert attached.data.readonly
            sum(attached.data)
        finally:
            attached.close()


def weights(data: bytes) -> None:
    """Weights that an author says it wrote: the index is what is damaged, as it says where everything lies."""
    start = _weights()[1]
    whole = _weights()[0][:start] + data if data[:1] != b"\xff" else data[1:]
    if len(whole) >= 40 and data[:1] != b"\xff":
        whole = whole[:16] + struct.pack("<QQQ", start, len(data), len(whole)) + whole[40:]
    with _memory(whole, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE) as fd, suppress(WeightsError):
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            mapped = Weights.map(readable)
        finally:
            os.close(readable)
        for entry in mapped:
            with suppress(WeightsError):
                array = mapped.array(entry.name)
                assert array.nbytes <= max(len(whole), 16 * array.size)
                array.tobytes()


@functools.cache
def _weights() -> tuple[bytes, int]:
    """A good file, and where its index begins."""
    fd = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        writer = WeightsWriter(fd)
        writer.add("w", 1, np.ones((2, 3), np.float32))
        writer.add("s", 7, np.array([b"a", b"bcd"], object))
        size = writer.finish(["about"])
        whole = os.pread(fd, size, 0)
    finally:
        os.close(fd)
    return whole, struct.unpack_from("<Q", whole, 16)[0]


def tfrecord(data: bytes) -> None:
    """A file of warm-up requests."""
    for read in (read_records, lambda data: scan_records(io.BytesIO(data))):
        with suppress(ValueError):
            for record in read(data):
                assert len(record) <= len(data)
    with suppress(ValueError):
        # Checksums keep chance out: lengths that are right by theirs are what is left.
        assert list(read_records(write_record(data[8:]) + data[:8])) == [data[8:]]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _settings(data: bytes) -> None:
    with _file(data) as path, suppress(ConfigError):
        load_settings({}, {}, path)


def _model_config(data: bytes) -> None:
    models_of(parse_model_config(_text(data)), Batching())


def _batching(data: bytes) -> None:
    batching_of(parse_batching_parameters(_text(data)), Batching())


def _of_file(read: Callable[[str], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with _file(data) as path:
            read(path)

    return run


def _keys(data: bytes) -> None:
    with suppress(KeysError):
        for entry in parse_keys(_text(data), "keys.toml"):
            assert bool(entry.digest) != bool(entry.certificate)
            assert entry.name.isprintable()


#: By the first letter of a text: what reads the rest of it.
_FILES: dict[bytes, Callable[[bytes], object]] = {
    b"s": _settings,
    b"m": _model_config,
    b"b": _batching,
    b"p": _of_file(read_metrics_path),
    b"c": _of_file(read_session_config),
    b"t": _of_file(read_ssl_config),
    b"k": _keys,
    b"a": lambda data: parse_channel_arguments(_text(data)),
    b"x": lambda data: validity(_text(data)),
}


def config_files(data: bytes) -> None:
    """All files that a server is configured with; the first letter says which."""
    read = _FILES.get(data[:1])
    if read is not None:
        with suppress(ModelConfigError):
            read(data[1:])


_HEAD = HEADER.pack(LAYOUT_VERSION, DATA_START, 64, 7, 9)
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIBAjCBtQ==\n-----END CERTIFICATE-----\n"

SEGMENT_SEEDS = (b"\x00" + MAGIC + bytes(HEADER_AT - len(MAGIC)) + _HEAD, b"\xff" + MAGIC)
WEIGHTS_SEEDS = (
    _weights()[0][_weights()[1] :],
    wire.pack_fields(([], [["w", 1, [2, 3], 4096, 24]])),
    wire.pack_fields(([], [["s", 7, [2], 4160, 64]])),
    b"\xff" + _weights()[0][:4200],
)
TFRECORD_SEEDS = (write_record(b"abc") + write_record(b""), write_record(bytes(40)))
CONFIG_SEEDS = (
    b's[server]\nport = 8500\ngrpc_engine = "native"\n[[models]]\nname = "m"\nbase_path = "/m"\n',
    b's[batching]\npolicy = "adaptive"\n[[groups]]\nname = "g"\nmodels = ["m"]\ncpus = "0-3"\n',
    b'mmodel_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" '
    b'model_version_policy { specific { versions: 1 } } version_labels { key: "a" value: 1 } } }',
    b'm{"model_config_list": {"config": [{"name": "m", "base_path": "/m", "model_platform": "tensorflow"}]}}',
    b"bmax_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 8 batch_timeout_micros { value: 5 }",
    b'pprometheus_config { enable: true path: "/metrics" }',
    b"cintra_op_parallelism_threads: 2 gpu_options { allow_growth: true }",
    b'tserver_key: "-----BEGIN PRIVATE KEY-----" server_cert: "-----BEGIN CERTIFICATE-----" client_verify: true',
    b"k" + written("a", "token", ["predict:m*", "status"], 5.0, 7).encode(),
    b"agrpc.max_concurrent_streams=5,grpc.max_connection_age_ms=-1,x=y",
    b"x" + _CERTIFICATE.encode(),
)
