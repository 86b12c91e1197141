"""Robyn: a front in Rust, handlers in Python, in two processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from robyn import Request, Response, Robyn

from perf.peers import model

app = Robyn(__file__)
run: Any = None


@app.post("/predict")
async def predict(request: Request) -> Response:
    global run
    if run is None:  # in each process, after the fork
        run = model.load()
    rows = np.asarray(orjson.loads(request.body)["instances"], np.float32)
    body = orjson.dumps({"predictions": run(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(200, {"Content-Type": "application/json"}, body)


if __name__ == "__main__":
    import os

    app.start(host="127.0.0.1", port=int(os.environ["PEER_PORT"]))
