"""Weights that are shared: answers equal bit for bit, over every model at hand; what is shared of which, and why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, LaneSpec, LoadOrder
from ringserve.config.schema import Batching, Lifecycle
from ringserve.shm import dtype as dtypes
from tests import exporters, variables
from tests.workers.conftest import SHARED
from tests.workers.desk import lane, words
from tests.workers.shares import map_weights, memfd, written

PathOf = Callable[[str], Path]

_OF_EXPORTERS = [
    "mlp", "conv", "several", "half", "ragged", "echo", "identities", "strings", "scalar", "table", "not_per_row",
    "counter", "picky", "gather_rows", "slow", "aliases", "old_control_flow", "sparse",
]  # fmt: skip
_OF_VARIABLES = [
    "every_dtype", "two_nodes", "partitioned", "partitioned_references", "references", "reference_named", "tables",
    "string_variable", "with_slots", "found_by_name",
    "constants", "table_and_weight",
]  # fmt: skip
_OF_TFS = sorted(str(file.parent.relative_to(SHARED)) for file in SHARED.glob("*/*/saved_model.pb*"))


@pytest.fixture(scope="module")
def path_of(tf: Any, model_path: PathOf, tmp_path_factory: pytest.TempPathFactory) -> PathOf:
    """A version's directory by its exporter's name, or its path among TensorFlow Serving's models."""
    base = tmp_path_factory.mktemp("variables")

    def find(name: str) -> Path:
        if "/" in name:
            return SHARED / name
        if hasattr(exporters, name):
            return model_path(name)
        path = base / name / "1"
        return path if path.exists() else Path(getattr(variables, name)(path))

    return find


def load(path: Path, **settings: Any) -> Any:
    from ringserve.workers.servable import Servable

    return Servable.load(path, "m", 1, **settings)


def example(tf: Any) -> bytes:
    """What the parsing signatures of TensorFlow Serving's models take."""
    feature = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[2.5])) for name in ("x", "x2")}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def made_up(tf: Any, servable: Any, tensor: str) -> Any:
    """Values for an input."""
    shape = [3 if size is None else size for size in servable.shape(tensor) or (3,)]
    number = servable._dtype(tensor)
    if number == dtypes.STRING:
        return words(*([example(tf), b"two", b"one"] * 3)[: int(np.prod(shape))]).reshape(shape)
    generator = np.random.default_rng(11)
    return (generator.random(shape) * 3).astype(dtypes.dtype_of(number).numpy)


def outcome(servable: Any, spec: LaneSpec, feeds: list[Any]) -> Any:
    """Bytes of every output, or how it failed."""
    from ringserve.workers.servable import RunFailure

    try:
        outputs = servable.plan(spec).run(feeds)
    except RunFailure as failure:
        return failure.failure
    return [
        (o.dtype, o.shape, o.reshape(-1).tolist() if o.dtype == object else np.ascontiguousarray(o).tobytes())
        for o in outputs
    ]


@pytest.mark.parametrize("name", [*_OF_EXPORTERS, *_OF_VARIABLES, *_OF_TFS])
def test_answers_are_equal_bit_for_bit(tf: Any, path_of: PathOf, name: str) -> None:
    path = path_of(name)
    report, weights = written(path)
    assert report.error_code == Code.OK
    assert len(report.notes) == 1
    if weights is None:
        assert "private" in report.notes[0] or report.notes[0] == "it has no weights to share"
        return
    own, mapped = load(path), load(path, weights=weights)
    assert mapped.signature_defs == own.signature_defs
    assert mapped.changes_state == own.changes_state is False
    assert {key: each.loops for key, each in mapped.traits.items()} == {k: e.loops for k, e in own.traits.items()}
    assert mapped.not_per_row == own.not_per_row
    answered = 0
    for key, entry in own.signatures.items():
        if not entry.is_dense():
            continue
        inputs = {alias: made_up(tf, own, tensor) for alias, tensor in entry.inputs.items()}
        spec = lane(own, inputs, list(entry.outputs), batchable=False, signature=key)
        feeds = list(inputs.values())
        expected = outcome(own, spec, feeds)
        assert outcome(mapped, spec, feeds) == expected
        assert outcome(mapped, spec, feeds) == expected  # and again: nothing was used up
        answered += isinstance(expected, list)
    assert answered


def plan_of(path: Path) -> Any:
    from ringserve.workers.shared import Plan

    report, weights = written(path)
    assert weights is not None, report
    return report, weights, Plan.unpack(weights.about)


@pytest.mark.parametrize(
    ("name", "shared", "references", "restores"),
    [
        ("half", {"Variable"}, 0, False),
        ("two_nodes", 2, 0, False),
        ("partitioned", {"w/part_0", "w/part_1", "w/part_2"}, 0, False),
        ("partitioned_references", {"w/part_0", "w/part_1", "w/part_2"}, 3, False),
        ("references", {"w", "b"}, 2, False),  # and nothing of the optimizer's
        ("reference_named", {"u"}, 1, True),
        ("tables", {"Variable"}, 0, True),
        ("string_variable", 2, 0, False),
        ("with_slots", 1, 0, False),  # the slots are in the checkpoint, and nobody needs them
        ("old_control_flow", {"Variable"}, 1, False),
        ("found_by_name", {"w"}, 0, False),
        ("every_dtype", len(variables.VARIABLE_DTYPES), 0, False),
    ],
)
def test_what_is_shared(path_of: PathOf, name: str, shared: Any, references: int, restores: bool) -> None:
    _, weights, plan = plan_of(path_of(name))
    assert set(plan.variables) == shared if isinstance(shared, set) else len(plan.variables) == shared
    assert [entry.name for entry in weights] == plan.variables
    assert len(plan.references) == references
    assert plan.restores == restores


def test_constants_of_which_rows_are_taken_are_shared(path_of: PathOf) -> None:
    report, weights, plan = plan_of(path_of("constants"))
    assert (plan.variables, plan.constants) == ([], ["Const"])
    assert weights.entry("Const").shape == (1024, 512)
    assert report.notes == ["its weights (2.1 MB) are shared by all workers"]


def test_values_of_every_dtype(path_of: PathOf) -> None:
    _, weights, _ = plan_of(path_of("every_dtype"))
    for entry in weights:
        assert weights.array(entry.name).tobytes() == variables.values_of(entry.dtype).tobytes()
        assert entry.name == f"v_{dtypes.name_of(entry.dtype)}"


def test_references_run_on_the_quick_executor_once_they_are_shared(path_of: PathOf) -> None:
    from ringserve.workers import session

    path = path_of("references")
    _, weights, _ = plan_of(path)
    assert load(path).executor == session.ORDINARY
    assert load(path, weights=weights).executor == session.SINGLE_THREADED


@pytest.mark.parametrize(
    ("name", "private_bytes", "note"),
    [
        ("counter", 4, "its weights are private: it changes them while serving"),
        ("several", 0, "it has no weights to share"),
        ("table", 0, "it has no weights to share"),
        ("reference_named", 4, "its weights (4 bytes) are shared by all workers; private to each: w is an input or "),
        ("string_variable", 4044, "its weights (12 bytes) are shared by all workers; private to each: strings"),
        ("mlp", 0, "its weights (2.68 MB) are shared by all workers"),
    ],
)
def test_what_operators_are_told(path_of: PathOf, name: str, private_bytes: int, note: str) -> None:
    report, weights = written(path_of(name))
    assert report.notes[0].startswith(note)
    assert report.bytes_private == private_bytes
    assert report.bytes_shared == (weights.nbytes if weights else 0)


def test_a_variable_is_the_mapping_itself_until_it_is_assigned(tf: Any, path_of: PathOf) -> None:
    """No copy is made of it, and an update makes one: the next worker's weights stay as they were."""
    from ringserve.workers import session

    path = path_of("gather_rows")
    report, weights, plan = plan_of(path)
    before = weights.array(plan.variables[0]).tobytes()
    servable = load(path, weights=weights)
    graph, live_session = servable._graph, servable._session
    with graph.as_default():
        handle = graph.get_tensor_by_name(f"{plan.variables[0]}:0")
        tf.raw_ops.AssignAddVariableOp(resource=handle, value=tf.ones(10), name="add")
        tf.raw_ops.ResourceScatterAdd(resource=handle, indices=[0], updates=[5.0], name="scatter")
        tf.raw_ops.ReadVariableOp(resource=handle, dtype="float32", name="read")
    session.run_all_here(live_session, "scatter", {})
    session.run_all_here(live_session, "add", {})
    assert session.run_all_here(live_session, "read:0", {}).tolist() == [6.0, *range(2, 11)]
    assert weights.array(plan.variables[0]).tobytes() == before
    assert report.bytes_shared == weights.nbytes


# ------------------------------------------------------------------------------------------- what must not cost a model


def open_with(path: Path, fds: dict[int, int], weights_id: int) -> Any:
    from ringserve.workers.opening import Opener

    opener = Opener(("serve",), 1, Batching(batch_rows_max=8), Lifecycle(), lambda: 0, fds)
    opened = opener(LoadOrder("m", 1, str(path), False, [], weights_id))
    opener.close()
    return opened


@pytest.mark.parametrize("what", ["workers.weights.WeightsWriter.finish", "workers.shared.Survey.__init__"])
def test_an_author_that_fails_at_sharing(path_of: PathOf, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(f"ringserve.{what}", fail)
    report, weights = written(path_of("half"))
    assert weights is None
    assert (report.error_code, report.error_text, report.bytes_private) == (0, "", 0)
    (note,) = report.notes
    assert note.startswith("its weights are private to each worker: they could not be shared")


def test_a_worker_that_fails_at_assigning(path_of: PathOf, monkeypatch: pytest.MonkeyPatch, tf: Any) -> None:
    from ringserve.workers import assigning, author

    def fail(*_: Any) -> None:
        raise tf.errors.InternalError(None, None, "no such kernel")

    with memfd() as fd:
        author.write_weights(path_of("half"), "m", ("serve",), 1, fd)
        monkeypatch.setattr(assigning.Assigner, "run", fail)
        opened = open_with(path_of("half"), {3: reader_of(fd)}, 3)
    assert opened.notes[0] == "its weights are private to this worker: no such kernel"
    x = np.ones(1, np.float32)
    assert opened.model.plan(lane(opened.model, {"x": x}, ["y"])).run([x])[0].tolist() == [2.5]


def test_what_does_not_load_with_shared_weights_fails_in_the_usual_words(path_of: PathOf, tmp_path: Path) -> None:
    """Its init op fails with them and without them; that is told, and nothing about the weights."""
    from ringserve.workers import author
    from ringserve.workers.failures import LoadError

    def error(weights_id: int, fds: dict[int, int]) -> tuple[Code, str]:
        with pytest.raises(LoadError) as caught:
            open_with(path, fds, weights_id)
        return caught.value.code, caught.value.text

    path = Path(shutil.copytree(path_of("table_and_weight"), tmp_path / "1"))
    with memfd() as fd:
        assert author.write_weights(path, "m", ("serve",), 1, fd).bytes_shared
        shutil.rmtree(path / "assets")
        assert error(3, {3: reader_of(fd)}) == error(0, {})


def test_weights_that_the_pool_does_not_have(path_of: PathOf) -> None:
    opened = open_with(path_of("half"), {}, 5)
    assert opened.notes[0] == "its weights are private to this worker: the pool has no copy of them"
    assert opened.model.plan(lane(opened.model, {"x": np.ones(1, np.float32)}, ["y"])).run([np.ones(1, np.float32)])


def test_weights_of_other_files_are_not_used(path_of: PathOf, tmp_path: Path) -> None:
    """The directory was made anew under its old name, and the broker has not seen it yet."""
    from ringserve.workers import author

    with memfd() as fd:
        author.write_weights(path_of("half"), "m", ("serve",), 1, fd)
        path = Path(shutil.copytree(path_of("two_nodes"), tmp_path / "1"))
        map_weights(fd)
        opened = open_with(path, {3: reader_of(fd)}, 3)
    assert opened.notes[0].startswith("its weights are private to this worker: the model's files are not those that")
    x = np.ones(1, np.float32)
    assert opened.model.plan(lane(opened.model, {"x": x}, ["y", "z"])).run([x])[0].tolist() == [6.0]


def test_a_file_that_is_no_weights(path_of: PathOf) -> None:
    with memfd() as fd:
        opened = open_with(path_of("half"), {3: reader_of(fd)}, 3)
    assert opened.notes[0].startswith("its weights are private to this worker: they are not sealed")


def reader_of(fd: int) -> int:
    import os

    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
