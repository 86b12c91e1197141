"""The configuration as it is now, in the run directory: a broker that follows another goes on with it.

Models that operators added, and labels that they moved, live in the broker only; it may be killed at any time. A
broker that is started with other models configured than its predecessor begins with these.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, replace
from typing import NamedTuple

from ringserve.config.schema import Batching, Model, Settings

log = logging.getLogger(__name__)

_NAME = "models.json"


class State(NamedTuple):
    """models: as configured now. file_digest: of the content of model_config_file that was applied last."""

    models: tuple[Model, ...]
    file_digest: str


class StateFile:
    """That file, in the run directory of one server, which is emptied when the server starts."""

    def __init__(self, run_dir: str) -> None:
        self._path = os.path.join(run_dir, _NAME)

    def save(self, settings: Settings, state: State) -> None:
        """Replace the file. It lies in memory on most systems, so that this does not wait for a disk.

        Raises OSError when there is no room for it; what was saved before is there still.
        """
        text = json.dumps(
            {
                "settings": replace(settings, models=state.models).to_json(),
                "file_digest": state.file_digest,
                "configured": _digest(settings),
            }
        )
        # The name's end tells that the file is ours, see config/rundir.py.
        temporary = f"{self._path}.new.json"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, self._path)

    def load(self, settings: Settings) -> State | None:
        """What was saved; None when nothing was that is of use, which makes this the server's first broker."""
        try:
            with open(self._path, encoding="utf-8") as file:
                data = json.load(file)
        except FileNotFoundError:
            return None
        if data.get("configured") != _digest(settings):
            return None
        try:
            return State(Settings.from_json(data["settings"]).models, data["file_digest"])
        except (ValueError, KeyError, TypeError) as error:
            log.warning("another release left models that cannot be read (%r): back to those configured", error)
            return None


def _digest(settings: Settings) -> str:
    """Of the models that the configuration lists, in what any release says of them."""
    usual = asdict(Batching())
    models = [
        (
            *(model.name, model.base_path, model.versions, model.labels),
            {key: value for key, value in asdict(model.batching).items() if value != usual.get(key)},
        )
        for model in settings.models
    ]
    return hashlib.sha256(json.dumps(models).encode()).hexdigest()
