"""mosec: a front in Rust, workers in Python, batches of up to 32."""

from __future__ import annotations

from typing import Any

import mosec
import numpy as np
import orjson

from perf.peers import model


class Predict(mosec.Worker):
    def __init__(self) -> None:
        super().__init__()
        self.run = model.load()

    def deserialize(self, data: bytes) -> Any:
        return np.asarray(orjson.loads(data)["instances"], np.float32)

    def forward(self, data: Any) -> Any:
        answers = self.run(np.concatenate(data))
        ends = np.cumsum([len(rows) for rows in data])[:-1]
        return np.split(answers, ends)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps({"predictions": data}, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Predict, num=2, max_batch_size=32, max_wait_time=1, start_method="spawn")
    server.run()
