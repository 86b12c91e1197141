"""Rows that depend on each other: found at load or on trial, run alone and never padded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ringserve.broker.messages import ModelOptions
from ringserve.workers import probe
from ringserve.workers.interface import Independence
from tests import row_models
from tests.workers.desk import Desk, lane, rows_of, words

if TYPE_CHECKING:
    from ringserve.workers.servable import Servable

Load = Callable[..., Any]
RANDOM = np.random.default_rng(30)


@pytest.fixture(scope="module")
def load_row_model(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Servable]:
    """A model of tests/row_models.py, exported and loaded once."""
    from ringserve.workers.servable import Servable

    folder = tmp_path_factory.mktemp("rows")
    loaded: dict[str, Servable] = {}

    def load(name: str) -> Servable:
        if name not in loaded:
            loaded[name] = Servable.load(getattr(row_models, name)(folder / name / "1"), name, 1)
        return loaded[name]

    return load


def request_of(signature: str) -> dict[str, Any]:
    """One to three rows for a signature of the model `depending`."""
    rows = int(RANDOM.integers(1, 4))
    text = words(*[b"w" * int(RANDOM.integers(0, 6)) for _ in range(rows)])
    x = RANDOM.standard_normal(rows).astype(np.float32)
    if signature in ("open", "wide"):
        return {"x": RANDOM.standard_normal((rows, 3)).astype(np.float32)}
    if signature == "group":
        return {"x": RANDOM.integers(0, 100, rows)}
    if signature == "cplx":
        return {"x": (x + 1j * x[::-1]).astype(np.complex64)}
    return {"words": {"text": text}, "upper": {"text": text}, "mixed": {"x": x, "text": text}}.get(signature, {"x": x})


def independence(servable: Servable, signature: str) -> Independence:
    return servable.plan(lane(servable, request_of(signature), ["y"], signature=signature)).independence


# ------------------------------------------------------------------------------------------------------------- at load


@pytest.mark.parametrize("signature", row_models.AT_LOAD)
def test_outputs_of_any_type_are_compared_at_load(load_row_model: Load, signature: str) -> None:
    servable = load_row_model("depending")
    assert servable.dependent[signature] == {"y"}
    assert independence(servable, signature) is Independence.REFUTED


@pytest.mark.parametrize("signature", [*row_models.ON_TRIAL, "upper", "wide"])
def test_what_load_cannot_show_is_said_to_be_unknown(load_row_model: Load, signature: str) -> None:
    assert independence(load_row_model("depending"), signature) is Independence.UNKNOWN


def hiding(load_row_model: Load, signature: str) -> Independence:
    servable = load_row_model("hiding")
    entry = servable.signatures[signature]
    kind = {"mask": np.int32, "pixels": np.uint8}.get(signature, np.float32)
    inputs = {
        alias: words(b"a") if alias == "text" else np.zeros((1, *servable.shape(tensor)[1:]), kind)
        for alias, tensor in entry.inputs.items()
    }
    plan = servable.plan(lane(servable, inputs, ["y"], signature=signature))
    return plan.independence  # type: ignore[no-any-return]


@pytest.mark.parametrize("signature", row_models.HIDING_AT_LOAD)
def test_values_of_unlike_size_and_sign_are_tried_at_load(load_row_model: Load, signature: str) -> None:
    assert hiding(load_row_model, signature) is Independence.REFUTED


@pytest.mark.parametrize("signature", row_models.HIDING_FROM_ALL)
def test_an_output_that_is_as_wide_as_values_make_it_is_never_trusted(load_row_model: Load, signature: str) -> None:
    """Whatever is as wide as all that came before agrees."""
    assert hiding(load_row_model, signature) is Independence.DOUBTFUL


@pytest.mark.parametrize("signature", row_models.HIDING_IN_BRANCHES)
def test_of_branches_the_load_may_have_seen_one_only(load_row_model: Load, signature: str) -> None:
    assert hiding(load_row_model, signature) is Independence.UNKNOWN


def test_a_branch_that_ends_the_process_below_zero_is_not_taken_at_load(served: Load) -> None:
    """A model must not be lost for a probe."""
    assert not served("fragile").dependent["serving_default"]


def test_a_width_that_the_graph_has_lost_is_no_doubt_where_values_of_any_size_were_tried(load_row_model: Load) -> None:
    servable = load_row_model("hiding")
    assert servable.shape(servable.signatures["sizes"].outputs["y"]) == (None, None)
    assert hiding(load_row_model, "sizes") is Independence.SHOWN


@pytest.mark.parametrize("name", ["mlp", "half", "conv", "several", "picky"])
def test_ordinary_models_are_trusted_from_the_start(served: Load, name: str) -> None:
    servable = served(name)
    ((key, entry),) = ((k, s) for k, s in servable.signatures.items() if k == "serving_default")
    inputs = {alias: np.zeros((1, *servable.shape(tensor)[1:]), np.float32) for alias, tensor in entry.inputs.items()}
    assert servable.plan(lane(servable, inputs, list(entry.outputs), signature=key)).independence is Independence.SHOWN


def test_near_ties_of_a_long_ranking_are_no_dependence(load_row_model: Load) -> None:
    servable = load_row_model("long_ranking")
    assert servable.dependent == {"serving_default": frozenset()}


# ------------------------------------------------------------------------------------------------------------ answered


@pytest.mark.parametrize("signature", [*row_models.AT_LOAD, *row_models.ON_TRIAL, "upper", "wide"])
@pytest.mark.parametrize("allowed", [(), (8, 32)])
def test_a_request_is_answered_as_if_it_came_alone(
    load_row_model: Load, signature: str, allowed: tuple[int, ...]
) -> None:
    servable = load_row_model("depending")
    desk = Desk(servable, frontends=2, allowed_batch_rows={"depending": allowed})
    spec = lane(servable, request_of(signature), ["y"], signature=signature)
    plan = servable.plan(spec)
    for _ in range(12):
        requests = [request_of(signature) for _ in range(4)]
        parts = [desk.part(request, frontend_id=1 + i % 2) for i, request in enumerate(requests)]
        answers, _ = desk.run(spec, parts)
        for part, request in zip(parts, requests, strict=True):
            (expected,) = plan.run(list(request.values()))
            (answer,) = answers[part[1]]
            assert answer.dtype == expected.dtype
            if answer.dtype.kind in "fc":
                np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
            else:
                assert answer.tolist() == expected.tolist()


@pytest.mark.parametrize("signature", ["mixed", "serving_default"])
def test_outputs_that_do_not_follow_the_rows_are_never_of_padded_rows(
    served: Load, load: Load, signature: str
) -> None:
    """Neither where the load showed it, nor where the first run does."""
    x = RANDOM.random((3, 2), dtype=np.float32)
    for servable in (served("not_per_row"), load("not_per_row", probes=False)):
        outputs = list(servable.signatures[signature].outputs)
        spec = lane(servable, {"x": x}, outputs, signature=signature)
        desk = Desk(servable)
        for assumed in (False, True):
            desk.executor.set_options("not_per_row", ModelOptions("not_per_row", 8, [8], False, False, assumed))
            answers, _ = desk.run(spec, [desk.part({"x": x})])
            expected = servable.plan(spec).run([x])
            assert [a.tolist() for a in answers.popitem()[1]] == [e.tolist() for e in expected]


def test_a_record_of_such_a_model_is_not_padded_for_warm_up(load_row_model: Load) -> None:
    from ringserve.workers import warmup
    from ringserve.workers.warmup_runs import Feed, Run

    x = np.array([1.0, 2.0, 3.0], np.float32)
    run = Run("best", {"x": Feed(1, x)}, ("y",), lambda outputs: None)
    record = warmup.lane_of(load_row_model("depending"), run)
    for assumed, rows in ((False, 3), (True, 5)):
        (fed,) = warmup.padded(record, ModelOptions("depending", 8, [5], False, False, assumed))
        assert len(fed) == rows


def test_what_is_assumed_to_be_independent_shares_batches(load_row_model: Load) -> None:
    servable = load_row_model("depending")
    desk = Desk(servable)
    spec = lane(servable, rows_of(1.0), ["y"], signature="rank")
    for assumed, ranks in ((False, [[0], [0]]), (True, [[1], [0]]), (False, [[0], [0]])):
        desk.executor.set_options("depending", ModelOptions("depending", 8, [], False, False, assumed))
        parts = [desk.part(rows_of(1.0)), desk.part(rows_of(2.0))]
        answers, _ = desk.run(spec, parts)
        assert [answers[part[1]][0].tolist() for part in parts] == ranks


def test_what_writes_into_its_inputs_is_fed_copies(load_row_model: Load) -> None:
    """A ring is mapped read-only: the process would end."""
    servable = load_row_model("in_place")
    desk = Desk(servable)
    x = np.ones((2, 2), np.float32)
    answers, _ = desk.run(lane(servable, {"x": x}, ["y"]), [desk.part({"x": x})])
    assert answers.popitem()[1][0].tolist() == [[7.0, 7.0], [1.0, 1.0]]


def test_the_log_says_which_signatures_depend_unless_told_to_join(
    load_row_model: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ringserve.broker.messages import LoadOrder
    from ringserve.config.schema import Batching, Lifecycle
    from ringserve.workers.opening import Opener

    path = row_models.depending(tmp_path / "1")
    opener = Opener(("serve",), 1, Batching(), Lifecycle(synthetic_warmup=False), lambda: 0)
    for assumed in (False, True):
        caplog.clear()
        opener(LoadOrder("depending", 1, str(path), False, [8, [], False, False, assumed])).model.close()
        lines = [record.getMessage() for record in caplog.records if "depends on the other rows" in record.getMessage()]
        assert len(lines) == (0 if assumed else len(row_models.AT_LOAD))
        assert all('row_independence = "assumed"' in line for line in lines)


class _Outputs:
    """A plan whose outputs are functions of x [rows]."""

    def __init__(self, *functions: Callable[[Any], Any]) -> None:
        self._functions = functions

    def run(self, feeds: list[Any]) -> list[Any]:
        return [function(feeds[0]) for function in self._functions]


@pytest.mark.parametrize(
    ("functions", "shown"),
    [
        ([lambda x: x * 2], {"a"}),
        ([lambda x: x * 2, lambda x: x > 9], {"a"}),  # one output does not vouch for another
        ([lambda x: 100 + (x - x.mean())], set()),  # nor do rows that differ as little as rounding
        ([lambda x: x * 0], set()),
    ],
)
def test_only_outputs_that_differ_from_row_to_row_show_something(functions: Any, shown: set[str]) -> None:
    aliases = "abc"[: len(functions)]
    probed = probe._compare(_Outputs(*functions), [RANDOM.random(4)], tuple(aliases))  # type: ignore[arg-type]
    assert probed is not None
    assert probed.shown == shown
    assert not probed.dependent


@pytest.mark.parametrize(
    ("dtype", "ends"), [("f4", (1, 10, 100, 1000)), ("f2", (1, 10, 100, 1000)), ("c8", (1, 10, 100, 1000)),
                        ("u1", (3, 256, 32, 128))],
)
def test_rows_are_of_unlike_size_the_second_time(dtype: str, ends: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    made_up = probe._made_up(random, np.zeros((4, 500), dtype))
    wide = probe._of_unlike_sizes(random, made_up)
    assert (wide.dtype, wide.shape) == (made_up.dtype, made_up.shape)
    for row, end in zip(np.abs(wide.real.astype(np.float64)), ends, strict=True):
        assert end / 2 < row.max() <= end
    assert dtype == "u1" or (wide.real[1] <= 0).all()
    assert dtype == "c8" or (probe._positive(wide) >= 0).all()


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", "u2", "?", "O"])
def test_what_may_be_an_index_stays_small(dtype: str) -> None:
    random = np.random.default_rng(0)
    assert probe._of_unlike_sizes(random, probe._made_up(random, np.zeros((4, 2), dtype))) is None


def test_the_log_says_which_signatures_are_in_doubt(
    load_row_model: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ringserve.broker.messages import LoadOrder
    from ringserve.config.schema import Batching, Lifecycle
    from ringserve.workers.opening import Opener

    caplog.set_level("INFO")
    path = row_models.hiding(tmp_path / "1")
    opener = Opener(("serve",), 1, Batching(), Lifecycle(synthetic_warmup=False), lambda: 0)
    opener(LoadOrder("hiding", 1, str(path), False, [8, [], False, False, False])).model.close()
    found = [record.getMessage() for record in caplog.records if "may be as wide as" in record.getMessage()]
    assert len(found) == len(row_models.HIDING_FROM_ALL)
