"""What `core.Core.turn` decides, for the broker's loop to do."""

from __future__ import annotations

from typing import Any, NamedTuple

from ringserve.broker.messages import Execute, Lend, Recall


class Turn(NamedTuple):
    """What the broker's loop has to do now.

    executes: (worker id, batch). failed: frontend id -> [[request_id, code, text], ...], ready to be a Failed.
    kills: workers whose lease ran out, each named once; end them, and say `worker_left` when they are gone.
    wake_ns: call `turn` again at this time even if nothing arrives; 0 = not needed. Always later than the turn's own.
    waits: frontend id -> lane key -> ns, as in Failed.
    loans: (frontend id, what it is told of workers that it is lent), in order.
    drained: draining workers that hold nothing any more and are sent nothing more, each named once.
    """

    executes: list[tuple[int, Execute]]
    failed: dict[int, list[list[Any]]]
    kills: list[int]
    wake_ns: int
    drained: list[int]
    waits: dict[int, dict[bytes, int]]
    loans: list[tuple[int, Lend | Recall]]
