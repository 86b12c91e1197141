"""Many lives of models, one seed each. A failing seed is named in the message and reproduces exactly:

python -m tests.sim.test_life_sim 4711 [sharing] [together]
"""

from __future__ import annotations

import logging
import sys

import pytest

from tests.sim.life import MANY_GROUPS, LifeWorld

SEEDS_COUNT = 120
BLOCK = 20
#: Found something once: a turn too few after a change, a scout without a plan, the same deadly load for ever.
FOUND = (41, 20_196, 22_050, 31_242)


def run_seed(seed: int, *, sharing: bool = False, together: bool = False) -> LifeWorld:
    world = LifeWorld(seed, sharing=sharing, together=together)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(f"seed {seed} at {world.now_ns / 1e9:.3f} s: {error!r}") from error
    return world


@pytest.mark.parametrize("block", range(SEEDS_COUNT // BLOCK), ids=lambda block: f"block{block}")
def test_life(block: int) -> None:
    logging.disable()
    try:
        for seed in range(block * BLOCK, (block + 1) * BLOCK):
            run_seed(seed)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("block", range(SEEDS_COUNT // BLOCK), ids=lambda block: f"block{block}")
def test_life_with_weights_that_workers_share(block: int) -> None:
    logging.disable()
    try:
        worlds = [run_seed(seed, sharing=True) for seed in range(block * BLOCK, (block + 1) * BLOCK)]
    finally:
        logging.disable(logging.NOTSET)
    assert sum(world.authors.ordered_count for world in worlds) > BLOCK


@pytest.mark.parametrize("block", range(SEEDS_COUNT // BLOCK), ids=lambda block: f"block{block}")
def test_life_in_groups(block: int) -> None:
    logging.disable()
    try:
        for seed in range(block * BLOCK, (block + 1) * BLOCK):
            run_seed(MANY_GROUPS + seed, sharing=seed % 2 == 1)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("block", range(2), ids=lambda block: f"block{block}")
def test_life_when_broker_and_pool_die_together(block: int) -> None:
    logging.disable()
    try:
        for seed in range(block * BLOCK, (block + 1) * BLOCK):
            run_seed(seed + MANY_GROUPS * (seed % 3 == 2), sharing=seed % 2 == 1, together=True)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    run_seed(seed)


if __name__ == "__main__":
    run_seed(int(sys.argv[1]), sharing="sharing" in sys.argv, together="together" in sys.argv)
