"""Whether this server should get requests: what load balancers and orchestrators ask at /readyz and /readyz/MODEL."""

from __future__ import annotations

from ringserve.broker.messages import Failure
from ringserve.frontend.rest_call import RestClient


class Readiness:
    """Ready: every configured model has an AVAILABLE version, there is a broker, and the server is not stopping."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self.is_draining = False

    def answer(self, model: str, *, names: bool = True) -> tuple[int, str]:
        """(HTTP status, text). model: one model's name, or empty for all of them. names: whoever asks may know which
        models there are."""
        catalog = self._client.catalog
        if self.is_draining:
            return 503, "the server is shutting down\n"
        if not self._client.connected:
            return 503, "there is no broker just now\n"
        if model:
            if model not in catalog.names():
                return 404, f"no such model: {model}\n"
            missing = [model] if isinstance(catalog.resolve(model), Failure) else []
        else:
            missing = [name for name in catalog.names() if isinstance(catalog.resolve(name), Failure)]
        if missing and not names and not model:
            return 503, f"no available version of {len(missing)} of the models\n"
        if missing:
            return 503, f"no available version of: {', '.join(missing)}\n"
        if catalog.starting and not model:
            return 503, "the models are not known yet\n"
        return 200, "ready\n"
