"""[[groups]]: what is right, what is wrong and where, and which group a model belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.config import limits
from ringserve.config.devices import DeviceError
from ringserve.config.groups import Group, group_of
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.schema import MIB, Settings, Workers
from ringserve.config.topology import Cpu, Topology

MODELS = '[[models]]\nname = "m"\nbase_path = "/m"\n'


def machine(*numbers: int) -> Topology:
    return Topology(tuple(Cpu(number, 0, number) for number in numbers), len(numbers))


def load(tmp_path: Path, text: str, **flags: object) -> Settings:
    path = tmp_path / "server.toml"
    path.write_text(MODELS + text)
    return load_settings(flags, {}, str(path))


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return [mistake.replace(f"{tmp_path}/", "") for mistake in caught.value.mistakes]


def test_a_group_with_everything(tmp_path: Path) -> None:
    text = """[[groups]]
        name = "large"
        models = ["m", "lang-*"]
        devices = "cpu"
        workers = 1
        workers_max = 3
        threads_per_worker = 4
        replace = "stop_first"
        memory_bytes_max = "8MiB"
    """
    settings = load(tmp_path, text)
    assert settings.groups == (Group("large", ("m", "lang-*"), "cpu", 1, 3, 4, "stop_first", 8 * MIB),)
    assert Settings.from_json(settings.to_json()) == settings


def test_every_mistake_says_where_it_stands(tmp_path: Path) -> None:
    text = '[[groups]]\nname = "a"\nmodels = "m"\n[[groups]]\nmodels = ["n"]\nreplace = "never"\nworker = 1\n'
    assert [mistake.split(":")[:2] for mistake in mistakes(tmp_path, text)] == [
        ["server.toml", "6"],
        ["server.toml", "7"],
        ["server.toml", "9"],
        ["server.toml", "10"],
    ]
    assert "did you mean 'workers'?" in mistakes(tmp_path, text)[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[[groups]]\nname = "a"\nmodels = ["m"]\n[[groups]]\nname = "b"\nmodels = ["m"]\n',
            "groups 'a' and 'b' both name the model 'm'",
        ),
        (
            '[[groups]]\nname = "a"\nmodels = ["m"]\n[[groups]]\nname = "a"\nmodels = ["n"]\n',
            "two groups are called 'a'",
        ),
        (
            '[[groups]]\nname = "a"\nmodels = ["m"]\nworkers = 3\nworkers_max = 2\n',
            "group 'a': workers (3) is above workers_max (2)",
        ),
        ("[workers]\nworkers = 3\nworkers_max = 2\n", "workers (3) is above workers_max (2)"),
        (
            '[[groups]]\nname = "default"\nmodels = ["m"]\n',
            "group 'default': [workers] describes that one, which has the models that no group names",
        ),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_groups_must_be_tables(tmp_path: Path) -> None:
    assert mistakes(tmp_path, '[groups]\nname = "a"\n') == ["server.toml: groups must be tables: [[groups]]"]


def test_a_name_beats_a_pattern_and_the_first_pattern_wins() -> None:
    groups = (Group("a", ("x-*", "y*")), Group("b", ("x-1", "x*")), Group("c", ("[z]",)))
    found = {name: group_of(name, groups) for name in ("x-1", "x-2", "x3", "y", "z", "w", "y*")}
    expected = {"x-1": "b", "x-2": "a", "x3": "b", "y": "a", "z": "c", "w": "default", "y*": "a"}
    assert found == expected


def test_numbers_that_are_derived() -> None:
    cpus = machine(0, 1, 2, 3)
    settings = Settings(
        workers=Workers(workers_max=2, threads_per_worker=1),
        groups=(Group("a", ("m",)), Group("b", ("n",), threads_per_worker=2), Group("c", ("o",), workers=2)),
    )
    resolved = limits.resolve(settings, cpus)
    assert resolved.workers.workers == 2
    assert [(group.workers, group.workers_max) for group in resolved.groups] == [(4, 4), (2, 2), (2, 2)]
    assert limits.resolve(resolved, machine(0)) == resolved
    assert [group.name for group in limits.groups_of(resolved)] == ["default", "a", "b", "c"]
    assert any(f"workers{10:>15}" in line for line in limits.memory_bill(resolved))


def test_groups_on_the_same_cores_share_them() -> None:
    def cores(*groups: Group, workers: int = 1, threads: int = 1) -> dict[str, list[tuple[int, ...]]]:
        settings = Settings(workers=Workers(workers=workers, threads_per_worker=threads), groups=groups)
        cpus = machine(4, 5, 6)
        slots = limits.slots_of(limits.resolve(settings, cpus), cpus)
        return {name: [slot.cpus for slot in found] for name, found in slots.items()}

    a = Group("a", ("m",), workers=1)
    assert cores(workers=3) == {"default": [(4,), (5,), (6,)]}
    assert cores(a, workers=2) == {"default": [(4,), (5,)], "a": [(6,)]}
    assert cores(a, workers=3) == {"default": [(4,), (5,), (6,)], "a": [()]}
    assert cores(Group("a", ("m",), workers=1, threads_per_worker=2)) == {"default": [(4,)], "a": [(5, 6)]}
    assert cores(Group("a", ("m",), devices="cpu:5", workers=1)) == {"default": [(4,)], "a": [(5,)]}


def test_unknown_devices_are_named() -> None:
    settings = Settings(groups=(Group("a", ("m",), devices="abacus"),))
    cpus = machine(0)
    with pytest.raises(DeviceError, match="abacus"):
        limits.slots_of(limits.resolve(settings, cpus), cpus)
