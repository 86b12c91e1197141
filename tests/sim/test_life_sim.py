"""Many lives of models, one seed each. A failing seed is named in the message and reproduces exactly:

python -m tests.sim.test_life_sim 4711
"""

from __future__ import annotations

import logging
import sys

import pytest

from tests.sim.life import LifeWorld

SEEDS_COUNT = 120
BLOCK = 20


def run_seed(seed: int) -> LifeWorld:
    world = LifeWorld(seed)
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


if __name__ == "__main__":
    run_seed(int(sys.argv[1]))
