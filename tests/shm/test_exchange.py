"""Two real processes and one memfd, passed by SCM_RIGHTS."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.shm.dtype import DTYPES, STRING
from ringserve.shm.ring import FULL, RingWriter
from ringserve.shm.segment import Segment
from ringserve.shm.tensor import read_strings, string_record_bytes, tensor_bytes, write_array, write_strings
from tests.shm.exchange_reader import MESSAGE_BYTES_MAX

ROOT = Path(__file__).parent.parent.parent


class Peer:
    """The process of exchange_reader.py."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(60)
        command = [sys.executable, "-m", "tests.shm.exchange_reader", str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        theirs.close()

    def send(self, order: dict[str, Any], fds: list[int]) -> None:
        socket.send_fds(self.channel, [json.dumps(order).encode()], fds)

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.channel.recv(MESSAGE_BYTES_MAX))
        return found

    def close(self) -> None:
        self.channel.close()
        self.process.wait(60)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_tensors_of_every_type_reach_the_other_process(peer: Peer) -> None:
    segment = Segment.create("exchange", 1 << 20)
    ring = RingWriter(segment.data_bytes, extent_bytes_min=4096)
    chance = np.random.default_rng(1)
    records: list[list[Any]] = []
    expected: list[Any] = []
    for entry in DTYPES.values():
        for shape in [(), (0, 3), (3, 5), (2, 2, 2)]:
            count = int(np.prod(shape))
            if entry.number == STRING:
                values = [chance.bytes(int(length)) for length in chance.integers(0, 30, count)]
                offset = ring.claim(string_record_bytes(values))
                write_strings(segment.data, offset, values)
                expected.append([each.hex() for each in values])
            else:
                assert entry.numpy is not None
                # Any bits are a value; the narrow and the two-valued types have only some of them.
                bits = chance.integers(0, 2 if entry.itemsize == 1 else 256, count * entry.itemsize, np.uint8)
                array = bits.view(entry.numpy).reshape(shape)
                offset = ring.claim(tensor_bytes(entry.number, shape))
                write_array(segment.data, offset, array)
                expected.append([array.tobytes().hex(), str(entry.numpy), list(shape)])
            assert offset != FULL
            records.append([entry.number, list(shape), offset])
    peer.send({"records": records}, [segment.fd])
    answer = peer.answer()
    assert answer["pid"] == os.getpid()
    assert answer["found"] == expected
    segment.close()


def test_a_reader_sees_what_is_written_after_it_was_told_of_the_segment(peer: Peer) -> None:
    segment = Segment.create("later", 1 << 16)
    for turn in range(3):
        write_array(segment.data, 0, np.full(4, turn, np.int32))
        peer.send({"records": [[3, [4], 0]]}, [segment.fd])
        assert peer.answer()["found"][0][0] == np.full(4, turn, np.int32).tobytes().hex()
    segment.close()


def test_the_memory_of_a_dead_owner_stays_readable(peer: Peer) -> None:
    peer.send({"own": ["words", "", "of the dead"]}, [])
    message, fds, _, _ = socket.recv_fds(peer.channel, 16, 1)
    assert message == b"made"
    early = Segment.attach(fds[0])  # perhaps before, perhaps after the death
    assert peer.process.wait(60) == 9
    late = Segment.attach(fds[0])
    os.close(fds[0])
    for segment in (early, late):
        assert segment.owner_pid == peer.process.pid
        assert read_strings(segment.data, 64, 0, 3) == [b"words", b"", b"of the dead"]
        segment.close()
