"""BentoML: two workers, each with a model of its own."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np

from perf.peers import model


@bentoml.service(workers=2, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Predict:
    def __init__(self) -> None:
        self.run = model.load()

    @bentoml.api
    def predict(self, instances: list[list[float]]) -> dict[str, Any]:
        return {"predictions": self.run(np.asarray(instances, np.float32)).tolist()}
