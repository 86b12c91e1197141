"""The pool's book of weights: who writes which, and the memory of those that are finished.

The memory is anonymous (memfd): it lives as long as the pool holds its descriptor or a worker maps it, and nobody has
to clean up after the dead. Workers inherit the descriptors by being forked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass

from ringserve.broker import wire
from ringserve.broker.messages import Author, Authored, Code
from ringserve.workers.weights import is_sealed

log = logging.getLogger(__name__)

_REPORT_BYTES_MAX = 1 << 20
_FAILED = 1


@dataclass
class Writing:
    """Weights that an author writes. fds: where to, and where its report goes; closed when `wanted` ends."""

    order: Author
    weights_fd: int
    report_fd: int
    started_ns: int
    wanted: bool = True


class Vault:
    """Weights in progress, by their author's process id, and finished ones, by weights_id. Owns their descriptors."""

    def __init__(self) -> None:
        self._writing: dict[int, Writing] = {}
        self._held: dict[int, tuple[int, Authored]] = {}

    @property
    def authors(self) -> Collection[int]:
        """Process ids of the authors that have not ended."""
        return self._writing.keys()

    def held(self) -> list[Authored]:
        """What is finished."""
        return [authored for _, authored in self._held.values()]

    def open(self, order: Author, now_ns: int) -> Writing:
        """Memory for an author to fill. Raises OSError."""
        # For people who look at /proc; the kernel takes 249 bytes.
        name = os.fsdecode(f"weights-{order.order.name}-{order.order.version}".encode()[:200])
        weights_fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            report_fd = os.memfd_create(f"report-{order.weights_id}", os.MFD_CLOEXEC)
        except OSError:
            os.close(weights_fd)
            raise
        return Writing(order, weights_fd, report_fd, now_ns)

    def close(self, writing: Writing) -> None:
        """Nobody writes it after all."""
        _close(writing)

    def begin(self, pid: int, writing: Writing) -> None:
        """This process writes it."""
        self._writing[pid] = writing

    def end(self, pid: int, status: int, now_ns: int) -> Authored | None:
        """An author has ended: what to tell of it, if anybody still wants to know."""
        writing = self._writing.pop(pid)
        if not writing.wanted:
            return None
        order = writing.order.order
        authored = Authored(
            writing.order.weights_id, order.name, order.version, order.path, status, 0, "", 0, 0, [], 0
        )._replace(load_ns=now_ns - writing.started_ns)
        if status == 0:
            authored = self._keep(writing, authored)
        _close(writing)
        return authored

    def _keep(self, writing: Writing, authored: Authored) -> Authored:
        try:
            report = wire.unpack_fields(os.pread(writing.report_fd, _REPORT_BYTES_MAX, 0))
            code, text, bytes_shared, bytes_private, notes = report
            authored = authored._replace(
                error_code=code, error_text=text, bytes_shared=bytes_shared, bytes_private=bytes_private, notes=notes
            )
            if code != Code.OK or not bytes_shared:
                return authored
            if not is_sealed(writing.weights_fd):
                raise ValueError("its weights are not sealed")
            # Open for reading only, and a new open file: kernels before 6.7 map no other one of what is sealed.
            fd = os.open(f"/proc/self/fd/{writing.weights_fd}", os.O_RDONLY | os.O_CLOEXEC)
        except (wire.WireError, ValueError, OSError) as error:
            log.error("the author of weights %d left no usable report: %s", writing.order.weights_id, error)
            return authored._replace(status=_FAILED, bytes_shared=0)
        self._held[authored.weights_id] = (fd, authored)
        return authored

    def forget(self, weights_ids: Collection[int]) -> list[int]:
        """Give up these weights. Returns the process ids of authors that are to be ended for it."""
        for weights_id in weights_ids:
            fd, _ = self._held.pop(weights_id, (-1, None))
            if fd >= 0:
                os.close(fd)
        return self._abandon([pid for pid, each in self._writing.items() if each.order.weights_id in weights_ids])

    def abandon_all(self) -> list[int]:
        """Nobody waits for the authors any more. Returns their process ids, to be ended."""
        return self._abandon(list(self._writing))

    def _abandon(self, pids: list[int]) -> list[int]:
        for pid in pids:
            writing = self._writing[pid]
            if writing.wanted:
                writing.wanted = False
                _close(writing)
        return pids

    def keep_only(self, weights_ids: Collection[int]) -> dict[int, int]:
        """In a new worker: the descriptors of these weights, which are its own now; all others are closed."""
        kept = {}
        for weights_id, (fd, _) in self._held.items():
            if weights_id in weights_ids:
                kept[weights_id] = fd
            else:
                os.close(fd)
        self._held.clear()
        for writing in self._writing.values():
            if writing.wanted:
                _close(writing)
        self._writing.clear()
        return kept


def _close(writing: Writing) -> None:
    os.close(writing.weights_fd)
    os.close(writing.report_fd)
