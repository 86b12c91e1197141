"""Lines into a file or standard error, by a thread of its own: whoever has lines never waits for a disk or a reader.

The file is looked at before each write: one that was moved or removed, as logrotate does it, is made anew under its
name, without a signal. What cannot be written is lost, and counted.
"""

from __future__ import annotations

import logging
import os
import threading
from queue import SimpleQueue
from typing import Final, NamedTuple

from ringserve.config.access_log import STDERR

log = logging.getLogger(__name__)

#: Bytes that wait to be written, at most.
_WAITING_BYTES_MAX: Final = 4 * 2**20
#: A pipe takes as much in one piece, so that lines of several processes do not end up in each other.
_PIECE_BYTES_MAX: Final = 4096
_STDERR_FD: Final = 2
_MODE: Final = 0o600
#: O_NONBLOCK is for pipes that have names: nobody may be reading.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class Counts(NamedTuple):
    """Lines, by what became of them."""

    written: int
    lost: int


class LogFile:
    """to: a path, or `stderr`. The file is made readable for its owner alone; one that is there keeps its mode."""

    def __init__(self, to: str, waiting_bytes_max: int = _WAITING_BYTES_MAX) -> None:
        self._to = to
        self._waiting_bytes_max = waiting_bytes_max
        self._fd = _STDERR_FD if to == STDERR else -1
        self._file: tuple[int, int] | None = None  # device and number of what is open
        self._is_torn = False  # the last write ended inside a line
        self._is_failing = False
        self._lost_in_a_row = 0
        self._queue: SimpleQueue[list[bytes] | None] = SimpleQueue()
        self._lock = threading.Lock()
        # Under the lock:
        self._waiting_bytes = 0
        self._written = self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log-file", daemon=True)
        self._thread.start()
        self._queue.put([])  # makes the file, or says why not

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be written."""
        with self._lock:
            return not self._waiting_bytes

    def write(self, lines: list[bytes]) -> None:
        """Lines, each with its end of line, to be written soon."""
        size = sum(map(len, lines))
        with self._lock:
            if self._waiting_bytes + size > self._waiting_bytes_max:
                self._lost += len(lines)
                return
            self._waiting_bytes += size
        self._queue.put(lines)

    def take_counts(self) -> Counts:
        """What became of lines since the last call."""
        with self._lock:
            counts = Counts(self._written, self._lost)
            self._written = self._lost = 0
        return counts

    def close(self, patience_s: float = 1.0) -> None:
        """Write what waits, as far as that works within this time."""
        self._queue.put(None)
        self._thread.join(patience_s)

    # ---------------------------------------------------------------------------------------------- on the thread

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            written = self._put(lines)
            with self._lock:
                self._waiting_bytes -= sum(map(len, lines))
                self._written += written
                self._lost += len(lines) - written
        if self._fd != _STDERR_FD and self._fd >= 0:
            os.close(self._fd)

    def _put(self, lines: list[bytes]) -> int:
        """Write lines, and say what goes wrong, once. Returns how many were written."""
        written = 0
        try:
            self._find_file()
            for piece in _pieces(lines):
                self._write_whole(b"".join(piece))
                written += len(piece)
        except OSError as error:
            if not self._is_failing:
                log.error("access log: cannot write to %s: %s; its lines are lost until then", self._to, error.strerror)
            self._is_failing = True
            self._lost_in_a_row += len(lines) - written
            return written
        if lines and self._is_failing:
            log.warning("access log: %s can be written again; lines that are lost: %d", self._to, self._lost_in_a_row)
            self._is_failing, self._lost_in_a_row = False, 0
        return written

    def _find_file(self) -> None:
        if self._to == STDERR:
            return
        if self._fd >= 0:
            try:
                about = os.stat(self._to)
            except OSError:
                about = None
            if about is not None and (about.st_dev, about.st_ino) == self._file:
                return
            os.close(self._fd)
            self._fd = -1
        self._fd = os.open(self._to, _FLAGS, _MODE)
        about = os.fstat(self._fd)
        self._file, self._is_torn = (about.st_dev, about.st_ino), False

    def _write_whole(self, data: bytes) -> None:
        if self._is_torn:
            data = b"\n" + data
        while data:
            size = os.write(self._fd, data)
            self._is_torn = data[size - 1 : size] != b"\n"
            data = data[size:]


def _pieces(lines: list[bytes]) -> list[list[bytes]]:
    """The same lines, so many together as one write takes in one piece."""
    pieces: list[list[bytes]] = []
    room = 0
    for line in lines:
        if len(line) > room:
            pieces.append([])
            room = _PIECE_BYTES_MAX
        pieces[-1].append(line)
        room -= len(line)
    return pieces
