"""How names resolve, in TF Serving's words; what the signatures become; what statuses list."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code, Failure, VersionState
from ringserve.config.protos import SignatureDef, TensorProto
from ringserve.frontend.catalog import Catalog, ServableView
from ringserve.frontend.tensor_proto import Tensor
from ringserve.shm.dtype import FLOAT, STRING
from tests.frontend.fakes import HALF_PLUS_TWO, catalog_of, float_proto, signature_def, version_info


@pytest.fixture
def catalog() -> Catalog:
    return catalog_of(
        version_info("m", 123),
        version_info("m", 124),
        version_info("m", 125, state=VersionState.LOADING),
        version_info("broken", 1, state=VersionState.END, error=(3, "no such file")),
        version_info("zero", 0),
        labels={"m": {"stable": 123, "next": 125}},
    )


@pytest.mark.parametrize(
    ("arguments", "version"),
    [
        (("m", None, None), 124),
        (("m", 123, None), 123),
        (("m", None, "stable"), 123),
        (("zero", 0, None), 0),
        (("zero", None, None), 0),
    ],
)
def test_resolves(catalog: Catalog, arguments: tuple[Any, ...], version: int) -> None:
    servable = catalog.resolve(*arguments)
    assert isinstance(servable, ServableView)
    assert (servable.name, servable.version) == (arguments[0], version)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("", None, None), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (("m", None, "L"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: L"),
        (("nope", None, "stable"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: stable"),
        (("nope", None, None), Code.NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (("broken", None, None), Code.NOT_FOUND, "Servable not found for request: Latest(broken)"),
        (("m", 5, None), Code.NOT_FOUND, "Servable not found for request: Specific(m, 5)"),
        (("m", 125, None), Code.NOT_FOUND, "Servable not found for request: Specific(m, 125)"),
        (("m", None, "next"), Code.NOT_FOUND, "Servable not found for request: Specific(m, 125)"),
        (("m", 0, None), Code.NOT_FOUND, "Servable not found for request: Specific(m, 0)"),
        (("nope", 1, None), Code.NOT_FOUND, "Servable not found for request: Specific(nope, 1)"),
    ],
)
def test_does_not_resolve(catalog: Catalog, arguments: tuple[Any, ...], code: Code, text: str) -> None:
    assert catalog.resolve(*arguments) == Failure(code, text)


def test_epoch_moves_with_changes_only() -> None:
    catalog = Catalog()
    assert catalog.epoch == 0
    catalog.update([version_info()])
    assert catalog.epoch == 1
    catalog.update([version_info()])
    assert catalog.epoch == 1
    catalog.update([version_info()], {"default": {"a": 123}})
    assert catalog.epoch == 2
    catalog.update([version_info(), version_info(version=124)])
    assert catalog.epoch == 3
    assert isinstance(catalog.resolve("default", None, "a"), ServableView)  # labels stay when not given
    catalog.update([])
    assert catalog.epoch == 4
    assert isinstance(catalog.resolve("default"), Failure)


def test_views_outlive_updates_of_other_versions() -> None:
    catalog = catalog_of(version_info())
    before = catalog.resolve("default")
    catalog.update([version_info(), version_info(version=124)])
    assert catalog.resolve("default", 123) is before
    catalog.update([version_info(signatures={"other": HALF_PLUS_TWO})])
    after = catalog.resolve("default")
    assert isinstance(after, ServableView)
    assert list(after.signatures) == ["other"]


def test_update_takes_lists_as_they_come_off_the_wire() -> None:
    catalog = Catalog()
    catalog.update([list(version_info())])  # type: ignore[list-item]
    assert isinstance(catalog.resolve("default"), ServableView)


def test_signatures_are_read() -> None:
    signature = signature_def(
        {"b": (STRING, None), "a": (101, [])},
        {"y": (FLOAT, [-1, 3])},
        method_name="tensorflow/serving/regress",
        defaults={"a": float_proto([7.0], [])},
    )
    servable = catalog_of(version_info(signatures={"s": signature})).resolve("default")
    assert isinstance(servable, ServableView)
    view = servable.signatures["s"]
    assert list(view.inputs) == ["a", "b"]
    assert view.inputs["a"] == ("a", FLOAT, (), "a:0")  # a reference type is its plain type
    assert view.inputs["b"] == ("b", STRING, None, "b:0")
    assert view.outputs["y"].shape == (-1, 3)
    assert view.method_name == "tensorflow/serving/regress"
    assert not view.rows_joinable
    default = view.defaults["a"]
    assert isinstance(default, Tensor)
    assert bytes(default.data) == b"\x00\x00\xe0\x40"  # type: ignore[arg-type]


def test_tensor_info_without_a_shape_is_of_unknown_rank() -> None:
    signature = SignatureDef()
    signature.inputs["x"].dtype = FLOAT
    servable = catalog_of(version_info(signatures={"s": signature})).resolve("default")
    assert isinstance(servable, ServableView)
    assert servable.signatures["s"].inputs["x"].shape is None


def test_a_default_that_does_not_decode_is_kept_as_its_failure() -> None:
    signature = signature_def({"a": (FLOAT, [])}, {}, defaults={"a": TensorProto(dtype=0)})
    servable = catalog_of(version_info(signatures={"s": signature})).resolve("default")
    assert isinstance(servable, ServableView)
    assert servable.signatures["s"].defaults["a"] == Failure(Code.INVALID_ARGUMENT, "tensor parsing error: a")


def test_statuses(catalog: Catalog) -> None:
    statuses = catalog.statuses("m")
    assert not isinstance(statuses, Failure)
    assert [(status.version, status.state) for status in statuses] == [(125, 20), (124, 30), (123, 30)]
    assert catalog.statuses("m", 124) == [(124, 30, 0, "", ())]
    assert catalog.statuses("broken") == [(1, 50, 3, "no such file", ())]
    assert catalog.statuses("m", 9) == Failure(Code.NOT_FOUND, "Could not find version 9 of model m")
    assert catalog.statuses("nope") == Failure(Code.NOT_FOUND, "Could not find any versions of model nope")
    assert catalog.statuses("") == Failure(Code.NOT_FOUND, "Could not find any versions of model ")
    assert catalog.names() == ["broken", "m", "zero"]


def test_no_status_is_guessed_before_all_is_known() -> None:
    starting = Catalog()
    refused = starting.statuses("m")
    assert isinstance(refused, Failure)
    assert refused.code == Code.UNAVAILABLE
    assert "starting" in refused.text
    assert starting.statuses("m", 9) == refused
    starting.update([version_info("m", 1, state=VersionState.LOADING)], starting=True)
    known = starting.statuses("m")
    assert not isinstance(known, Failure)
    assert [status.version for status in known] == [1]
    assert starting.statuses("m", 9) == refused
    starting.update([version_info("m", 1)])
    assert starting.statuses("m", 9) == Failure(Code.NOT_FOUND, "Could not find version 9 of model m")
