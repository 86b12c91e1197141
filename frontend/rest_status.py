"""Bodies of GET requests: model status and metadata as protobuf's JSON printer writes them, and our health pages."""

from __future__ import annotations

import inspect
import json
from typing import Any, Final

from google.protobuf import json_format

from ringserve.broker.messages import Failure, VersionState
from ringserve.config.protos import SignatureDefMap
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.status import code_name

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


def models_not_ready(catalog: Catalog) -> list[str]:
    """Names of the models without an AVAILABLE version."""
    return [name for name in catalog.names() if isinstance(catalog.resolve(name), Failure)]


def _printed(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
