"""Spec 3.8: status and metadata bodies, byte for byte."""

from __future__ import annotations

import json

from tests.frontend.rest.served import call, golden


def test_rest_3_8_status_of_all_versions_newest_first() -> None:
    response = call(None, "GET", "/v1/models/default")
    assert (response.status, response.body) == (200, golden("status.json"))
    assert response.headers == {"content-type": "application/json"}


def test_rest_3_8_status_of_one_version() -> None:
    response = call(None, "GET", "/v1/models/default/versions/123")
    assert (response.status, response.body) == (200, golden("status_version.json"))


def test_rest_3_8_a_label_is_ignored() -> None:
    assert call(None, "GET", "/v1/models/default/labels/nope").body == golden("status.json")


def test_rest_3_8_the_status_is_200_whatever_the_state() -> None:
    response = call(None, "GET", "/v1/models/loading")
    assert (response.status, response.json["model_version_status"][0]["state"]) == (200, "LOADING")


def test_rest_3_8_unknown_models_and_versions() -> None:
    missing = call(None, "GET", "/v1/models/default/versions/7")
    assert (missing.status, missing.error) == (404, "Could not find version 7 of model default")
    for name in ("nope", "default?x"):
        unknown = call(None, "GET", f"/v1/models/{name}")
        assert (unknown.status, unknown.error) == (404, f"Could not find any versions of model {name}")


def test_rest_3_8_metadata() -> None:
    response = call(None, "GET", "/v1/models/two/metadata")
    assert response.status == 200
    # Protobuf's maps have no order, so the golden file is compared by value, and the form by printing it again.
    assert response.json == json.loads(golden("metadata.json"))
    assert response.body == (json.dumps(response.json, indent=1) + "\n").encode()


def test_rest_3_8_metadata_of_versions_and_labels() -> None:
    whole = call(None, "GET", "/v1/models/default/metadata").body
    assert call(None, "GET", "/v1/models/default/versions/123/metadata").body == whole
    assert call(None, "GET", "/v1/models/default/labels/stable/metadata").body == whole
    label = call(None, "GET", "/v1/models/default/labels/L/metadata")
    assert (label.status, label.error) == (400, "Unrecognized servable version label: L")
    version = call(None, "GET", "/v1/models/default/versions/124/metadata")
    assert (version.status, version.error) == (404, "Servable not found for request: Specific(default, 124)")
