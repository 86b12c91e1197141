"""Ray Serve: two replicas, batches of up to 32."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

import numpy as np
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from perf.peers import model


@serve.deployment(num_replicas=2, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Predict:
    def __init__(self) -> None:
        self.run = model.load()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def answer(self, requests: Any) -> Any:
        answers = self.run(np.concatenate(requests))
        return np.split(answers, np.cumsum([len(rows) for rows in requests])[:-1])

    async def __call__(self, request: Request) -> Response:
        rows = np.asarray(orjson.loads(await request.body())["instances"], np.float32)
        body = orjson.dumps({"predictions": await self.answer(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    variables = {"env_vars": {"PEER_MODEL": os.environ["PEER_MODEL"], "PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=variables)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Predict.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
