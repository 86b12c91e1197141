"""The other process of test_exchange.py: receives segments over the socket on descriptor argv[1], and reads records.

Each message is JSON, {"records": [[dtype number, shape, offset], ...]}, with a memfd at the first; the answer holds,
for each record, the hex of what was read. {"hold": true} answers with everything read once more, from the first
segment, whatever has become of its owner. {"own": ...} makes a segment of its own, sends it and dies.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from math import prod
from typing import Any

from ringserve.shm.dtype import STRING
from ringserve.shm.segment import Segment
from ringserve.shm.tensor import read_strings, view, write_strings

MESSAGE_BYTES_MAX = 1 << 20


def read_all(data: memoryview, records: list[list[Any]]) -> list[Any]:
    found: list[Any] = []
    for number, shape, offset in records:
        if number == STRING:
            found.append([each.hex() for each in read_strings(data, offset, 0, prod(shape))])
        else:
            array = view(data, offset, number, shape)
            found.append([array.tobytes().hex(), str(array.dtype), list(array.shape)])
    return found


def main(fd: int) -> None:
    with socket.socket(fileno=fd) as channel:
        while True:
            message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, 1)
            if not message:
                return
            order = json.loads(message)
            if "records" in order:
                segment = Segment.attach(descriptors[0])
                os.close(descriptors[0])
                answer = {"pid": segment.owner_pid, "found": read_all(segment.data, order["records"])}
                segment.close()
                channel.send(json.dumps(answer).encode())
            else:
                mine = Segment.create("of-the-dead", 4096)
                write_strings(mine.data, 64, [each.encode() for each in order["own"]])
                socket.send_fds(channel, [b"made"], [mine.fd])
                os._exit(9)


if __name__ == "__main__":
    main(int(sys.argv[1]))
