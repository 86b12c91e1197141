"""Derived numbers, warnings, the bill of memory."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ringserve.config import limits
from ringserve.config.schema import MIB, Batching, Lifecycle, Model, Server, Settings, Shm, Workers
from ringserve.config.topology import Cpu, Topology


def _cpus(count: int) -> Topology:
    return Topology(tuple(Cpu(number, 0, number) for number in range(count)), count)


@given(st.integers(1, 256), st.integers(1, 16))
def test_derived_numbers(cpus: int, threads: int) -> None:
    settings = limits.resolve(Settings(workers=Workers(threads_per_worker=threads)), _cpus(cpus))
    assert settings.workers.workers == max(1, cpus // threads)
    assert settings.server.frontends == max(1, cpus // 4)
    assert limits.resolve(settings, _cpus(7)) == settings


def test_what_is_set_is_not_derived() -> None:
    settings = Settings(server=Server(frontends=3), workers=Workers(workers=5))
    assert limits.resolve(settings, _cpus(64)) == settings


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4096), st.integers(1, 4096))
def test_the_bill_adds_up(frontends: int, workers: int, request_mib: int, result_mib: int) -> None:
    settings = Settings(
        server=Server(frontends=frontends),
        workers=Workers(workers=workers),
        shm=Shm(request_mib * MIB, result_mib * MIB),
    )
    *items, total = limits.memory_bill(settings)
    rings = frontends * request_mib + workers * result_mib
    private = frontends * limits.FRONTEND_PRIVATE_BYTES + workers * limits.WORKER_PRIVATE_BYTES
    expected = rings + (private + limits.BROKER_PRIVATE_BYTES + limits.POOL_PRIVATE_BYTES) // MIB
    said = re.search(r"(\d+) (MiB|GiB), models", total)
    assert said is not None
    if said[2] == "MiB":
        assert int(said[1]) == expected
    else:
        assert abs(int(said[1]) - expected / 1024) <= 0.5
    assert len(items) == 6


def test_a_missing_base_path_is_a_warning_only(tmp_path: Path) -> None:
    settings = Settings(models=(Model("here", str(tmp_path)), Model("gone", str(tmp_path / "gone"))))
    assert limits.mistakes(settings) == []
    assert limits.warnings(settings)[1:] == [f"model 'gone': base path {tmp_path}/gone does not exist (yet)"]


def test_a_limit_that_cudas_allocator_does_not_keep_is_a_warning() -> None:
    here = Server(host="127.0.0.1")
    for limit in ({"gpu_bytes_max": 2**30}, {"per_process_gpu_memory_fraction": 0.5}):
        (warning,) = limits.warnings(Settings(here, Workers(gpu_allocator="cuda_malloc_async", **limit)))
        assert warning.startswith(f"{next(iter(limit))} is no limit")
        assert limits.warnings(Settings(here, Workers(**limit))) == []
    assert limits.warnings(Settings(here, Workers(gpu_allocator="cuda_malloc_async"))) == []


def test_no_models_are_a_mistake_unless_a_model_config_file_may_bring_some() -> None:
    (broken,) = limits.mistakes(Settings())
    assert broken.text.startswith("no model to serve")
    assert limits.mistakes(Settings(lifecycle=Lifecycle(model_config_file="/models.config"))) == []


def test_allowed_rows_as_numbers() -> None:
    assert limits.rows_allowed(Batching()) == []
    assert limits.rows_allowed(Batching(batch_rows_allowed="32, 1,8,8")) == [1, 8, 32]


def test_a_hang_is_not_told_from_a_loaded_host_in_less_than_a_second() -> None:
    models = (Model("m", "/m"),)
    for hang_ms_max, wrong in ((0, False), (1, True), (999, True), (1000, False)):
        found = limits.mistakes(Settings(server=Server(hang_ms_max=hang_ms_max), models=models))
        assert [broken.keys for broken in found] == [("hang_ms_max",)] * wrong
