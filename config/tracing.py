"""The section [tracing]: whether some requests are followed through the server, and where that is told."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from ringserve.config.setting import setting


@dataclass(frozen=True)
class Tracing:
    """Traces for OpenTelemetry."""

    endpoint: str = setting(
        "", "OTLP/HTTP address that traces go to, such as 'http://127.0.0.1:4318/v1/traces'; empty: no tracing",
        flag="tracing_endpoint",
    )
    share: float = setting(
        0.001, "of the requests that come without a traceparent, this share is traced, 0 to 1",
        low=0, high=1, flag="tracing_share",
    )
    follow_clients: bool = setting(
        True, "a request whose traceparent says that it is sampled is traced", flag="tracing_follow_clients"
    )
    service_name: str = setting("ringserve", "the service's name in traces", flag="tracing_service_name")


def mistakes_of_tracing(tracing: Tracing) -> list[str]:
    """Why traces could not be sent, if so."""
    if not tracing.endpoint:
        return []
    parts = urlsplit(tracing.endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return [f"tracing endpoint: {tracing.endpoint!r} is no http:// or https:// address"]
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        return ["tracing endpoint is set, and OpenTelemetry is not installed: pip install 'ringserve[otel]'"]
    return []
