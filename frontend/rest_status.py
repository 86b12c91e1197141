"""Bodies of GET requests: status and metadata as protobuf's JSON printer writes them, and our own, fuller ones."""

from __future__ import annotations

import inspect
import json
from typing import Any, Final

from google.protobuf import json_format

from ringserve.broker.messages import Code, Failure, VersionState
from ringserve.config.protos import SignatureDefMap
from ringserve.frontend.catalog import Catalog, ServableView, TensorSpec, VersionStatus
from ringserve.frontend.status import code_name
from ringserve.shm.dtype import name_of

#: protobuf renamed the option that prints fields which are not set.
_PRINT_UNSET: Final = (
    "always_print_fields_with_no_presence"
    if "always_print_fields_with_no_presence" in inspect.signature(json_format.MessageToDict).parameters
    else "including_default_value_fields"
)


def status_body(catalog: Catalog, name: str, version: int | None) -> bytes | Failure:
    """GetModelStatusResponse: every version, newest first, or the one asked for."""
    statuses = catalog.statuses(name, version)
    if isinstance(statuses, Failure):
        return statuses
    entries = [
        {
            "version": str(status.version),
            "state": VersionState(status.state).name,
            "status": {"error_code": code_name(status.error_code), "error_message": status.error_text},
        }
        for status in statuses
    ]
    return _printed({"model_version_status": entries})


def metadata_body(catalog: Catalog, name: str, version: int | None, label: str | None) -> bytes | Failure:
    """GetModelMetadataResponse of one version: its signatures."""
    servable = catalog.resolve(name, version, label)
    if isinstance(servable, Failure):
        return servable
    options: dict[str, Any] = {"preserving_proto_field_name": True, _PRINT_UNSET: True}
    signatures = json_format.MessageToDict(SignatureDefMap.FromString(servable.signature_defs), **options)
    return _printed(
        {
            "model_spec": {"name": servable.name, "signature_name": "", "version": str(servable.version)},
            "metadata": {"signature_def": signatures},
        }
    )


# ------------------------------------------------------------------------------------------------------- our own API


def models_summary(catalog: Catalog) -> bytes:
    """Every configured model: its versions and whether it serves."""
    return _printed({"models": models_found(catalog)})


def models_found(catalog: Catalog) -> list[dict[str, Any]]:
    """The same before it is printed."""
    return [_model(catalog, name) for name in catalog.names()]


def model_summary(catalog: Catalog, name: str) -> bytes | Failure:
    """One model in full: versions with states, errors and notes, labels, and what can be asked of it."""
    statuses = catalog.statuses(name)
    if name not in catalog.names() and isinstance(statuses, Failure):
        return Failure(Code.NOT_FOUND, f"no such model: {name}") if statuses.code == Code.NOT_FOUND else statuses
    servable = catalog.resolve(name)
    signatures = {} if isinstance(servable, Failure) else _signatures(servable)
    return _printed({**_model(catalog, name), "signatures": signatures})


def _model(catalog: Catalog, name: str) -> dict[str, Any]:
    statuses = catalog.statuses(name)
    latest = catalog.resolve(name)
    return {
        "name": name,
        "ready": not isinstance(latest, Failure),
        "serving": None if isinstance(latest, Failure) else latest.version,
        "versions": [] if isinstance(statuses, Failure) else [_version(status) for status in statuses],
        "labels": catalog.labels(name),
    }


def _version(status: VersionStatus) -> dict[str, Any]:
    error = None
    if status.error_code:
        error = {"code": code_name(status.error_code), "text": status.error_text}
    state = VersionState(status.state).name
    return {"version": status.version, "state": state, "error": error, "notes": list(status.notes)}


def _signatures(servable: ServableView) -> dict[str, Any]:
    return {
        name: {
            "method_name": signature.method_name,
            "inputs": _tensors(signature.inputs),
            "outputs": _tensors(signature.outputs),
            "defaults": sorted(signature.defaults),
        }
        for name, signature in servable.signatures.items()
    }


def _tensors(specs: dict[str, TensorSpec]) -> dict[str, Any]:
    """shape: null for an unknown rank, -1 for a free axis."""
    return {alias: {"dtype": name_of(spec.dtype), "shape": spec.shape} for alias, spec in specs.items()}


def _printed(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
