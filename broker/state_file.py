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

from ringserve.config.rundir import open_private
from ringserve.config.schema import Batching, Model, Settings

log = logging.getLogger(__name__)

_NAME = "models.json"
#: How often it is seen to that the file is there. A broker that finds none takes itself for the server's first.
_LOOK_NS = 1_000_000_000


class State(NamedTuple):
    """models: as configured now. file_digest: of the content of model_config_file that was applied last."""

    models: tuple[Model, ...]
    file_digest: str


class StateFile:
    """That file, in the run directory of one server, which is emptied when the server starts."""

    def __init__(self, run_dir: str) -> None:
        self._path = os.path.join(run_dir, _NAME)
        self._text = ""
        self._look_ns = 0
        self._is_failing = False

    def save(self, settings: Settings, state: State) -> None:
        """Replace the file. It lies in memory on most systems, so that this does not wait for a disk.

        Raises OSError when there is no room for it; what was saved before is there still.
        """
        self._text = json.dumps(
            {
                "settings": replace(settings, models=state.models).to_json(),
                "file_digest": state.file_digest,
                "configured": _digest(settings),
            }
        )
        self._write()

    def keep(self, now_ns: int) -> int:
        """Write it again where somebody has removed it. Call it often; returns when to call it again at the latest.
        """
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + _LOOK_NS
            if self._text and not os.path.lexists(self._path):
                self._restore()
        return self._look_ns

    def _restore(self) -> None:
        try:
            self._write()
        except OSError as error:
            if not self._is_failing:
                log.error("%s is missing and cannot be written: %s", self._path, error)
            self._is_failing = True
        else:
            self._is_failing = False
            log.warning("%s was missing: written anew, for the broker that follows this one", self._path)

    def _write(self) -> None:
        # The name's end tells that the file is ours, see config/rundir.py.
        temporary = f"{self._path}.new.json"
        with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
            file.write(self._text)
        os.replace(temporary, self._path)

    def load(self, settings: Settings) -> State | None:
        """What was saved; None when nothing was that is of use, which makes this the server's first broker."""
        try:
            with open(self._path, encoding="utf-8", opener=open_private) as file:
                data = json.load(file)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            log.error("what operators changed is not taken up: %s", error)
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
