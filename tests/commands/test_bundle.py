"""A checkpoint's index read by itself: the same variables as TensorFlow finds, and words for what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.commands.bundle import BundleError, _unsnapped, read_bundle
from tests import exporters

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "models" / "tfs"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporters.mlp(tmp_path_factory.mktemp("models") / "1") / "variables" / "variables.index"


def _by_tensorflow(index: Path) -> dict[str, list[int]]:
    found = exporters.tensorflow().train.load_checkpoint(str(index.with_suffix(""))).get_variable_to_shape_map()
    return dict(found)


def test_it_finds_what_tensorflow_finds(index: Path) -> None:
    bundle = read_bundle(index)
    assert {variable.name: list(variable.shape) for variable in bundle.variables} == _by_tensorflow(index)
    assert bundle.shards == 1
    data = index.with_name("variables.data-00000-of-00001")
    assert bundle.shard_bytes(0) == data.stat().st_size


@pytest.mark.skipif(not _SHARED.is_dir(), reason="TensorFlow Serving's test models are not here")
def test_old_and_compressed_indexes_too() -> None:
    indexes = sorted(_SHARED.rglob("variables.index"))
    assert len(indexes) > 5
    for path in indexes:
        found = {variable.name: list(variable.shape) for variable in read_bundle(path).variables}
        assert found == _by_tensorflow(path), path


def test_many_variables_fill_many_blocks(tmp_path: Path) -> None:
    tf = exporters.tensorflow()
    names = {f"a/long/name/of/variable/number/{number:05d}": tf.zeros([number % 3]) for number in range(5000)}
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "variables"), tensor_names=list(names), shape_and_slices=[""] * len(names),
        tensors=list(names.values()),
    )  # fmt: skip
    found = read_bundle(tmp_path / "variables.index").variables
    assert [variable.name for variable in found] == sorted(names)
    assert all(variable.shape == (int(variable.name[-5:]) % 3,) for variable in found)


def test_what_is_no_index_says_so(index: Path, tmp_path: Path) -> None:
    data = index.read_bytes()
    path = tmp_path / "variables.index"
    for wrong, text in (
        (b"", "too short"),
        (data[:-1], "does not end like an index"),
        (data[len(data) // 2 :], "beyond its end"),
        (data[:100] + b"\xff" * (len(data) - 148) + data[-48:], ""),
    ):
        path.write_bytes(wrong)
        with pytest.raises(BundleError) as caught:
            read_bundle(path)
        assert text in str(caught.value)


def test_snappy() -> None:
    # "Wikipedia" and 21 more by its documentation's rules: a literal, a copy that overlaps itself, a far copy.
    assert _unsnapped(bytes([11, 3 << 2]) + b"abcd" + bytes([(7 - 4) << 2 | 1, 4])) == b"abcdabcdabc"
    long = bytes(range(256))
    packed = bytes([0x84, 0x02, 60 << 2, 255]) + long + bytes([3 << 2 | 2, 0, 1])
    assert _unsnapped(packed) == long + long[:4]
    for wrong in (bytes([4, 1, 9]), bytes([9, 0]) + b"a"):
        with pytest.raises(BundleError):
            _unsnapped(wrong)
