"""`python -m tests.e2e.export_classifier FOLDER`: a TF 1 export for Classify, Regress and MultiInference as FOLDER/1.

Every Example has a float feature `x`, and perhaps a float feature `bias` (0 without). With v = x + bias:

    serving_default   classify   labels "low", "high"; scores v and 1 - v
    scores            classify   scores only
    labels            classify   labels only
    regress           regress    2 v
    as_predict        predict    regress's tensors by a signature whose method name says predict
    mean              regress    the mean of all v of the batch: one row, whatever comes
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests import exporters


def main(directory: Path) -> None:
    tf = exporters.tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], "tf_example")
        features = {
            "x": v1.FixedLenFeature([1], tf.float32),
            "bias": v1.FixedLenFeature([1], tf.float32, default_value=[0.0]),
        }
        parsed = v1.parse_example(serialized, features)
        value = parsed["x"] + parsed["bias"]
        scores = tf.concat([value, 1.0 - value], axis=1)
        labels = tf.tile(tf.constant([["low", "high"]]), [tf.shape(value)[0], 1])
        utils = v1.saved_model.signature_def_utils
        regress = utils.regression_signature_def(serialized, 2.0 * value)
        as_predict = utils.predict_signature_def({"inputs": serialized}, {"outputs": 2.0 * value})
        mean = tf.reshape(tf.reduce_mean(value), [1, 1])
        signatures = {
            "serving_default": utils.classification_signature_def(serialized, labels, scores),
            "scores": utils.classification_signature_def(serialized, None, scores),
            "labels": utils.classification_signature_def(serialized, labels, None),
            "regress": regress,
            "as_predict": as_predict,
            "mean": utils.regression_signature_def(serialized, mean),
        }
        builder = v1.saved_model.Builder(str(directory / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
