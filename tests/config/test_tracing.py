"""The section [tracing]: what is no address, and what is not installed, is said before anything starts."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from ringserve.config import tracing
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.tracing import Tracing, mistakes_of_tracing


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://collector:4317", "http://", "/v1/traces"])
def test_an_endpoint_that_is_no_http_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is no http:// or https:// address"):
        load_settings({"model_base_path": "/m", "tracing_endpoint": endpoint}, {}, None)


def test_without_opentelemetry_tracing_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(tracing, "find_spec", nothing)
    assert mistakes_of_tracing(Tracing()) == []
    (text,) = mistakes_of_tracing(Tracing(endpoint="http://127.0.0.1:4318/v1/traces"))
    assert "pip install 'ringserve[otel]'" in text
