"""BatchingParameters as [batching]: spec 6.1 (defaults, rules, texts), 6.5 (splitting), 6.6 (a version's own file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config import limits
from ringserve.config.batching_params import batching_of, read_batching_parameters, read_version_batching
from ringserve.config.config_protos import BatchingParameters
from ringserve.config.schema import INT_MAX, Batching
from ringserve.config.text_protos import ModelConfigError

_BASE = Batching(spread_us=7, workers_max=2, batches_at_once_max=3)


def test_6_1_defaults() -> None:
    assert batching_of("", _BASE) == Batching(
        policy="timeout",
        batch_rows_max=1000,
        request_rows_max=1000,
        batch_wait_us_max=0,
        queue_batches_max=10,
        batches_at_once_max=3,
        split=False,
        batch_rows_allowed="",
        pad_inputs=False,
        pad_with="first",
        # not TF Serving's business
        spread_us=7,
        workers_max=2,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size { value: 32 }", {"batch_rows_max": 32, "request_rows_max": 32}),
        ("max_batch_size: { value: 32 },", {"batch_rows_max": 32, "request_rows_max": 32}),
        ("batch_timeout_micros { value: 1500 }", {"batch_wait_us_max": 1500}),
        ("batch_timeout_micros { value: 9000000000 }", {"batch_wait_us_max": INT_MAX}),
        ("max_enqueued_batches { value: 4 }", {"queue_batches_max": 4}),
        ("max_enqueued_batches { value: 0 }", {"queue_batches_max": 1}),
        ("max_enqueued_batches { value: -1 }", {"queue_batches_max": 0}),
        ("num_batch_threads { value: 5 }", {"batches_at_once_max": 5}),
        ("thread_pool_name { value: 'x' }", {}),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 8", {"batch_rows_allowed": "2,8"}),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [4, 2, 8]", {"batch_rows_allowed": "2,4,8"}),
        ("pad_variable_length_inputs: true", {"pad_inputs": True, "pad_with": "first"}),
        (
            "enable_large_batch_splitting { value: true }",
            {"split": True, "batch_rows_max": 1000, "request_rows_max": 1000},
        ),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 16 }",
            {"split": True, "batch_rows_max": 16, "request_rows_max": 1000},
        ),
        # Without splitting the executed batch is the request's limit, whatever is said.
        ("max_execution_batch_size { value: 16 }", {"batch_rows_max": 1000, "request_rows_max": 1000}),
        ("max_execution_batch_size { value: 2000 }", {"batch_rows_max": 1000, "request_rows_max": 1000}),
    ],
)
def test_6_1_each_field(text: str, expected: dict[str, Any]) -> None:
    batching = batching_of(text, _BASE)
    for key, value in expected.items():
        assert getattr(batching, key) == value
    assert limits.mistakes_of_batching("here", batching) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 1 allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            "allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 1000",
        ),
        ("allowed_batch_sizes: [0, 1000]", "allowed_batch_sizes must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("num_batch_threads { value: -2 }", "num_batch_threads must be positive; was -2"),
        ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive; was 0"),
        (
            "enable_large_batch_splitting { value: true } max_enqueued_batches { value: 0 }",
            "max_enqueued_batches must be positive; was 0",
        ),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 0 }",
            "max_execution_batch_size must be positive; was 0",
        ),
    ],
)
def test_6_1_rules(text: str, expected: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        batching_of(text, _BASE)
    assert caught.value.status == f"INVALID_ARGUMENT: {expected}"


def test_6_1_the_executed_batch_is_not_above_the_request() -> None:
    text = (
        "enable_large_batch_splitting { value: true } max_batch_size { value: 8 } max_execution_batch_size { value: 9 }"
    )
    with pytest.raises(ModelConfigError) as caught:
        batching_of(text, _BASE)
    assert caught.value.text.startswith(
        "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
        "max_execution_batch_size."
    )


@given(
    st.builds(
        BatchingParameters,
        max_batch_size=st.none() | st.integers(-2, 2**63 - 1).map(lambda number: {"value": number}),
        max_enqueued_batches=st.none() | st.integers(-2, 2**63 - 1).map(lambda number: {"value": number}),
        max_execution_batch_size=st.none() | st.integers(-2, 2**63 - 1).map(lambda number: {"value": number}),
        batch_timeout_micros=st.none() | st.integers(-2, 2**63 - 1).map(lambda number: {"value": number}),
        num_batch_threads=st.none() | st.integers(-2, 2**63 - 1).map(lambda number: {"value": number}),
        enable_large_batch_splitting=st.none() | st.booleans().map(lambda on: {"value": on}),
        allowed_batch_sizes=st.lists(st.integers(-2, 2**63 - 1), max_size=3),
    )
)
def test_any_parameters_become_sound_settings_or_are_refused(parameters: Any) -> None:
    try:
        batching = batching_of(parameters, _BASE)
    except ModelConfigError:
        return  # which of them are refused, and how, is the tests' above
    assert limits.mistakes_of_batching("here", batching) == []
    assert 1 <= batching.batch_rows_max <= batching.request_rows_max <= INT_MAX
    assert max(batching.queue_rows_max, batching.queue_requests_max, batching.batch_wait_us_max) <= INT_MAX


def test_our_bounds_of_a_queue_stand_back_behind_max_enqueued_batches() -> None:
    batching = batching_of("max_batch_size { value: 5000 } max_enqueued_batches { value: 100 }", _BASE)
    assert batching.queue_rows_max >= 500_000
    assert batching.queue_requests_max >= 500_000


def test_1_3_a_file_that_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size: 32")
    with pytest.raises(ModelConfigError) as caught:
        read_batching_parameters(str(path))
    assert caught.value.status == f"INVALID_ARGUMENT: Invalid protobuf file: '{path}'"
    assert caught.value.detail.startswith("Error parsing text-format tensorflow.serving.BatchingParameters: 1:")


def test_6_6_a_versions_own_file(tmp_path: Path) -> None:
    assert read_version_batching(str(tmp_path), _BASE) is None
    path = tmp_path / "batching_params.pbtxt"
    path.write_text("max_batch_size { value: 4 } num_batch_threads { value: 64 }")
    batching = read_version_batching(str(tmp_path), _BASE)
    assert batching is not None
    # The pool is the server's, not a model's.
    assert (batching.batch_rows_max, batching.batches_at_once_max) == (4, 3)
    path.write_text("nonsense")
    with pytest.raises(ModelConfigError, match="Invalid protobuf file"):
        read_version_batching(str(tmp_path), _BASE)
