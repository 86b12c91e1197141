"""Metric families: names, buckets and their edges (spec 8.2, 8.3)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config import metrics
from ringserve.config.metric_family import COUNTER, FRONTEND, HISTOGRAM, Family, Ladder, exponential


def _family(name: str, *limits: float, scale: int = 1) -> Family:
    return Family(name, HISTOGRAM, (), "", FRONTEND, limits, scale)


@pytest.mark.parametrize(
    ("internal", "exposed"),
    [
        ("/tensorflow/serving/request_count", ":tensorflow:serving:request_count"),
        ("/tensorflow/serving/batching_session/padding_size", ":tensorflow:serving:batching_session:padding_size"),
        ("a-b.c", "a:b:c"),
        ("9lives", "_9lives"),
        ("ringserve_requests_total", "ringserve_requests_total"),
    ],
)
def test_8_2_names_on_the_page(internal: str, exposed: str) -> None:
    assert Family(internal, COUNTER, (), "", FRONTEND).exposed == exposed


def test_8_2_an_exponential_ladder_has_n_limits() -> None:
    limits = metrics.REQUEST_LATENCY.limits
    assert len(limits) == 33
    assert limits[0] == 10
    assert limits[1:] == pytest.approx([limit * 1.8 for limit in limits[:-1]])
    assert f"{limits[-1]:g}" == "1.47476e+09"


def test_8_3_limits_of_all_histograms() -> None:
    expected = {
        "request_latency": (10, 1.8, 33),
        "runtime_latency": (10, 1.8, 33),
        "request_example_counts": (1, 2, 15),
        "model_warmup_latency": (10, 1.8, 33),
        "batching_session/queuing_latency": (100, 1.2, 52),
        "batching_session/padding_size": (1, 2, 14),
        "batching_session/input_batch_size": (1, 2, 14),
        "batching_session/processed_batch_size": (1, 2, 14),
    }
    found = {family.name: family.limits for family in metrics.TFS if family.kind == HISTOGRAM}
    assert found == {f"/tensorflow/serving/{name}": exponential(*shape) for name, shape in expected.items()}


def test_8_2_a_value_equal_to_a_limit_counts_in_the_next_bucket() -> None:
    edges = _family("/tfs", 10, 18, 32.4, scale=1000).edges
    values = (9_999, 10_000, 17_999, 18_000, 32_399, 32_400)
    assert [bisect_right(edges, value) for value in values] == [0, 1, 1, 2, 2, 3]


def test_in_our_own_families_it_counts_in_its_own_bucket_as_prometheus_says() -> None:
    edges = _family("own", 0.0001, 0.00025, scale=1_000_000_000).edges
    assert [bisect_right(edges, value) for value in (100_000, 100_001, 250_000, 250_001)] == [0, 1, 1, 2]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.integers(0, 60), max_size=30),
)
def test_one_search_finds_the_bucket_in_every_family(theirs: list[int], ours: list[int], values: list[int]) -> None:
    families = _family("/tfs", *theirs), _family("own", *ours)
    ladder = Ladder(*families)
    counts = [0] * ladder.size
    for value in values:
        counts[bisect_right(ladder.edges, value)] += 1
    for family, search, split in zip(families, (bisect_right, bisect_left), ladder.split(counts), strict=True):
        expected: dict[int, int] = {}
        for value in values:
            bucket = search(family.limits, value)
            expected[bucket] = expected.get(bucket, 0) + 1
        assert dict(split) == expected


def test_every_family_is_named_and_labelled_by_the_conventions() -> None:
    for family in metrics.OWN:
        assert family.name.startswith("ringserve_")
        assert (family.kind == COUNTER) == family.name.endswith("_total")
        assert list(family.limits) == sorted(set(family.limits))
        if family.scale != 1:
            assert family.name.endswith("_seconds")
    assert len(metrics.BY_EXPOSED) == len(metrics.TFS) + len(metrics.OWN)
