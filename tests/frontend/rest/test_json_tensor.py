"""The quick way to a tensor and the exact one: the same tensors, and never a tensor where the other finds a mistake."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ringserve.broker.messages import Failure
from ringserve.frontend.json_tensor import Walk, base64, regular_tensor
from ringserve.frontend.tensor_proto import Tensor
from tests.frontend.rest.served import DTYPES

LEAVES = (
    st.integers(-3, 300)
    | st.sampled_from([2**31, -(2**31) - 1, 2**32, 2**63, 2**64 - 1, -(2**63), 65535, 65536])
    | st.floats(width=16)
    | st.sampled_from([1e300, True, False, None, "a", "é", {}, {"b64": "aGk="}, {"b64": "a"}, {"b64": 1}])
)


def arrays(leaves: Any) -> Any:
    """Regular arrays mostly, some not."""
    row = st.lists(leaves, min_size=0, max_size=3)
    square = st.integers(0, 3).flatmap(lambda n: st.lists(st.lists(leaves, min_size=n, max_size=n), max_size=3))
    return leaves | row | square | st.lists(square, max_size=2) | st.lists(row | leaves, max_size=3)


ONE_KIND = st.sampled_from(
    [st.integers(0, 1), st.integers(-200, 200), st.floats(width=32), st.booleans(), st.text(max_size=2)]
)


def same(ours: Tensor, theirs: Tensor) -> bool:
    ours_data, theirs_data = (data if isinstance(data, list) else bytes(data) for data in (ours.data, theirs.data))
    return ours[:2] == theirs[:2] and ours_data == theirs_data


@settings(max_examples=600, deadline=None)
@given(arrays(LEAVES) | ONE_KIND.flatmap(arrays), st.sampled_from(sorted(DTYPES.values())))
def test_both_ways_agree(value: Any, dtype: int) -> None:
    walk = Walk(dtype)
    shape = walk.add(value)
    quick = regular_tensor(value, dtype)
    if isinstance(shape, Failure):
        assert quick is None
    elif quick is not None:
        assert same(quick, walk.tensor(shape))
    else:
        assert walk.count == 0, "the quick way leaves only mistakes, and empty arrays of odd types, to the other"


def test_rounding_is_that_of_a_cast_from_double() -> None:
    values = [0.1, 1e39, -1e39, 1e-50, 2**53 + 1, 16777217, 1 + 2**-24]
    tensor = regular_tensor(values, DTYPES["float"])
    assert tensor is not None
    assert not isinstance(tensor.data, list)
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float64).astype(np.float32)
    assert bytes(tensor.data) == expected.tobytes()


@settings(deadline=None)
@given(st.binary(max_size=40), st.booleans())
def test_base64(data: bytes, padded: bool) -> None:
    import base64 as standard

    text = standard.b64encode(data).decode()
    assert base64({"b64": text if padded else text.rstrip("=")}) == data
    assert base64({"b64": " ".join(text).replace("=", ".")}) == data


@pytest.mark.parametrize("text", ["a", "aGk==", "aG=k", "=", "aGk_", "aGké", "aGkx="])
def test_bad_base64(text: str) -> None:
    failure = base64({"b64": text})
    assert isinstance(failure, Failure)
    assert failure.text == "Unable to base64 decode"


def test_rank_is_bounded() -> None:
    value: Any = 1.0
    for _ in range(254):
        value = [value]
    tensor = regular_tensor(value, DTYPES["float"])
    assert tensor is not None
    assert tensor.shape == (1,) * 254
    assert regular_tensor([value], DTYPES["float"]) is None
    assert isinstance(Walk(DTYPES["float"]).add([value]), Failure)
