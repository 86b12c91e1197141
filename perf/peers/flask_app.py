"""Flask: what most tutorials show, with orjson in place of the slower json."""

from __future__ import annotations

import flask
import numpy as np
import orjson

from perf.peers import model

app = flask.Flask(__name__)
run = model.load()


@app.post("/predict")
def predict() -> flask.Response:
    rows = np.asarray(orjson.loads(flask.request.get_data())["instances"], np.float32)
    body = orjson.dumps({"predictions": run(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return flask.Response(body, content_type="application/json")
