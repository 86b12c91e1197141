"""The model of perf/scaling.py: cores are shared by all costs, one broker is the end, and the rest is multiplied."""

from __future__ import annotations

import pytest

from perf import scaling
from perf.scaling import Costs

COSTS = Costs({"frontend": 10.0, "broker": 4.0, "worker": 16.0, "generator": 10.0, "pool": 0.0, "supervisor": 0.0})


def test_so_many_cores_give_so_many_requests() -> None:
    assert COSTS.rate(2, generator=True) == pytest.approx(50_000)
    assert COSTS.rate(3, generator=False) == pytest.approx(100_000)


def test_the_broker_ends_it_where_its_core_is_full() -> None:
    assert COSTS.broker_rate() == pytest.approx(250_000)
    assert scaling.broker_cores(COSTS) == pytest.approx(7.5)
    small, large, larger = (scaling.predict(COSTS, cores) for cores in (4, 16, 64))
    assert (small.limit, large.limit) == ("cores", "the broker")
    assert small.rate == pytest.approx(scaling.FULL * 4 * 1e6 / 30)
    assert large.rate == larger.rate == pytest.approx(scaling.FULL * 250_000)


def test_processes_are_as_many_as_their_costs_ask_for() -> None:
    assert COSTS.processes(70_000) == {"frontend": 1, "worker": 2}
    assert COSTS.processes(175_000) == {"frontend": 3, "worker": 4}
