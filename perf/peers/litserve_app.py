"""LitServe: two workers, batches of up to 32."""

from __future__ import annotations

import argparse
from typing import Any

import litserve as ls
import numpy as np

from perf.peers import model


class Predict(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.run = model.load()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe makes an endpoint of what stands here
        return np.asarray(request["instances"], np.float32)

    def batch(self, inputs: Any) -> Any:
        return inputs

    def predict(self, x: Any) -> Any:
        answers = self.run(np.concatenate(x))
        return np.split(answers, np.cumsum([len(rows) for rows in x])[:-1])

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    api = Predict(max_batch_size=32, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning",
               access_log=False)  # fmt: skip
