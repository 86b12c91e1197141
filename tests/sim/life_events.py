"""What may happen to a simulated server at any time: operators, copies and removals on disk, load, deaths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ringserve.broker.directories import ModelPlan

if TYPE_CHECKING:
    from tests.sim.life import LifeWorld

_SECOND = 1_000_000_000


def something(world: LifeWorld) -> None:
    """One of all these, at random. (Another order here would make other lives of the seeds that found something.)"""

    def here(event: Callable[[LifeWorld], None]) -> Callable[[], None]:
        return partial(event, world)

    choices = [here(copy_version)] * 5 + [world.disk.remove_version] * 2 + [here(change_config)] * 2
    choices += [here(remove_base), lambda: world.disk.fix_version(world.now_ns)]
    if world.layout.many:
        choices += [here(resize)] * 4 + [here(renew)] * 2 + [here(move_model)]
    if world.deaths:
        choices += [here(kill_some), here(kill_some), world.pool_dies]
    if world.broker_deaths:
        choices += [world.new_broker]
    world.rng.choice(choices)()


def die_together(world: LifeWorld) -> None:
    """The broker and the pool, one a moment after the other: that is while the next broker takes over what it finds."""
    rng = world.rng
    events = [world.new_broker, world.pool_dies]
    rng.shuffle(events)
    if rng.random() < 0.3:
        events.append(world.new_broker)
    delay_ns = 0
    for event in events:
        world.at(delay_ns, event)
        delay_ns += rng.choice((0, 10_000, 3_000_000, 10_000_000)) + rng.randint(0, 3_000_000)


def resize(world: LifeWorld) -> None:
    """What the load may ask for, at any time, over and over."""
    generations = world.rng.choice(world.groups.groups).generations
    if generations.resize(world.rng.choice((1, 1, -1))):
        world.lifecycle.touch()
    assert generations.wanted <= generations.crew.workers_max


def move_model(world: LifeWorld) -> None:
    world.layout.move(world.rng)
    world.groups.regroup(world.layout.group_of)
    world.lifecycle.touch()


def renew(world: LifeWorld) -> None:
    world.rng.choice(world.groups.groups).generations.renew(world.rng.choice(("age", "memory")))
    world.lifecycle.touch()


def copy_version(world: LifeWorld) -> None:
    if world.plans:
        base = world.rng.choice(list(world.plans.values())).base_path
        finish = world.disk.copy(base, world.rng.choice(world.kinds), world.now_ns)
        if finish is not None:
            world.at(world.rng.randint(0, 6 * _SECOND), lambda: finish(world.now_ns))


def remove_base(world: LifeWorld) -> None:
    restore = world.disk.remove_base()
    if restore is not None and world.rng.random() < 0.5:
        world.at(world.rng.randint(0, 5 * _SECOND), restore)


def change_config(world: LifeWorld) -> None:
    rng = world.rng
    name = f"m{rng.randint(0, 3)}"
    if name in world.plans and rng.random() < 0.3:
        del world.plans[name]
        world.rules.forget(name)
    else:
        policy = rng.choice(("latest", "latest", "latest:2", "all", (1, 2, 3), (4,)))
        base = f"/{name}" if rng.random() < 0.9 else f"/other-{name}"
        world.plans[name] = ModelPlan(name, base, policy)
    world.lifecycle.configure(world.plans.values(), world.now_ns)


def kill_some(world: LifeWorld) -> None:
    for pid in list(world.workers):
        if world.rng.random() < 0.4:
            world.kill(pid)
