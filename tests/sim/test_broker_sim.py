"""Many worlds, one seed each. A failing seed is named by the test's id and reproduces exactly:

pytest "tests/sim/test_broker_sim.py::test_world[block0]" -x      # names the seed in its message
python -m tests.sim.test_broker_sim 4711                          # one seed, with its options
"""

from __future__ import annotations

import sys

import pytest

from tests.sim.world import World

SEEDS_COUNT = 400
BLOCK = 50


def run_seed(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(f"seed {seed} at {world.now_ns} ns: {error!r}; {world.options}") from error
    return world


@pytest.mark.parametrize("block", range(SEEDS_COUNT // BLOCK), ids=lambda block: f"block{block}")
def test_world(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        run_seed(seed)


def test_worlds_have_requests_that_go_past_the_broker() -> None:
    counted = [run_seed(seed).core.statistics()["handed"] for seed in range(BLOCK)]
    assert sum(counted) > 100
    assert sum(map(bool, counted)) > 5


if __name__ == "__main__":
    print(run_seed(int(sys.argv[1])).core.statistics())
