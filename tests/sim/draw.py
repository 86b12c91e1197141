"""What a seed draws: a world's faults, its lanes and their rules."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ringserve.broker.messages import InputSpec, LaneSpec
from ringserve.broker.policy import MILLISECOND_NS, SECOND_NS, LanePolicy

LEASE_NS_MAX = 150 * MILLISECOND_NS


@dataclass(frozen=True)
class Options:
    """What one seed drew. Chances are per request or per batch."""

    workers_count: int
    frontends_count: int
    credit_max: int
    requests_count: int
    burst_max: int
    rows_max: int
    deadline_chance: float
    cancel_chance: float
    death_chance: float  # a worker dies at a batch: before it ran, or after its Results went out
    hang_chance: float
    poison_chance: float  # a request that ends every worker that runs it
    frontend_death_chance: float
    drain_chance: float
    leave_chance: float
    policy_changes: int  # an operator sets the policies anew so often
    link_ns_max: int
    deaf_seconds: float  # how long a dead worker stays unreplaced
    lone_chance: float  # a request that a client sends after the answer to the one before, alone


def draw_options(rng: random.Random) -> Options:
    """Each fault is absent in some worlds, so that seeds also cover its absence."""

    def chance(most: float) -> float:
        return rng.choice((0.0, most * rng.random()))

    return Options(
        workers_count=rng.randint(1, 4),
        frontends_count=rng.randint(1, 3),
        credit_max=rng.randint(1, 3),
        requests_count=rng.randint(20, 250),
        burst_max=rng.choice((1, 4, 30)),
        rows_max=rng.choice((1, 4, 20)),
        deadline_chance=chance(1.0),
        cancel_chance=chance(0.3),
        death_chance=chance(0.15),
        hang_chance=chance(0.05),
        poison_chance=chance(0.05),
        frontend_death_chance=chance(0.02),
        drain_chance=chance(0.05),
        leave_chance=chance(0.2),
        policy_changes=rng.choice((0, 0, 1, 5)),
        link_ns_max=rng.choice((10_000, 200_000, 3 * MILLISECOND_NS)),
        deaf_seconds=rng.choice((0.001, 0.02, 0.3)),
        lone_chance=rng.choice((0.0, 0.0, 0.9, 0.97, 1.0)),
    )


@dataclass
class LaneKind:
    """A lane of the simulated world. Its run times are fixed_ns + rows * row_ns, times noise."""

    spec: LaneSpec
    policy: LanePolicy
    fixed_ns: int
    row_ns: int


def draw_policy(rng: random.Random) -> LanePolicy:
    return LanePolicy(
        batching=rng.choice(("adaptive", "adaptive", "adaptive", "timeout", "none")),
        batch_rows_max=rng.choice((1, 4, 8, 32)),
        batch_rows_allowed=rng.choice(((), (), (), (), (1, 4, 32), (2, 8))),
        batch_wait_ns_max=rng.choice((0, MILLISECOND_NS, 5 * MILLISECOND_NS)),
        batch_enough_ns=rng.choice((0, 2 * MILLISECOND_NS, 10_000)),
        request_rows_max=rng.choice((0, 0, 12)),
        queue_requests_max=rng.choice((3, 50, 1_000)),
        queue_rows_max=rng.choice((10, 10_000)),
        queue_batches_max=rng.choice((0, 0, 2)),
        split=rng.random() < 0.6,
        workers_max=rng.choice((0, 0, 1)),
        lease_ns_max=LEASE_NS_MAX,
        spread_ns=rng.choice((MILLISECOND_NS, 50 * MILLISECOND_NS)),
        prefetch_ns=rng.choice((0, MILLISECOND_NS)),
        refuse_late=rng.random() < 0.5,
        lend_after_requests=rng.choice((0, 1, 1, 2, 4)),
        no_worker_ns_max=rng.choice((50 * MILLISECOND_NS, 10 * SECOND_NS)),
    )


def draw_lanes(rng: random.Random) -> dict[bytes, LaneKind]:
    """One to four models, one to three lanes each, of different policies and costs."""
    lanes: dict[bytes, LaneKind] = {}
    for model_index in range(rng.randint(1, 4)):
        policy = draw_policy(rng)
        for lane_index in range(rng.randint(1, 3)):
            spec = LaneSpec(
                f"model{model_index}", 1, f"s{lane_index}", (InputSpec("x", 1, (4,)),), ("y",), rng.random() < 0.85
            )
            lanes[repr(spec).encode()] = LaneKind(
                spec, policy, rng.choice((20_000, 500_000, 4_000_000)), rng.choice((5_000, 200_000, 2_000_000))
            )
    return lanes
