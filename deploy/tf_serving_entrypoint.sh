#!/bin/sh
# What the image runs, under the name and with the environment of TensorFlow Serving's own image. Arguments are added to
# the command line, and of a repeated flag the last counts.
#   MODEL_NAME, MODEL_BASE_PATH          one model: MODEL_BASE_PATH/MODEL_NAME; --model_config_file takes its place
#   MODEL_VERSION_POLICY                 its versions: latest, latest:2, all, 1,2, or a policy in the text format
#   TF_SERVING_BATCHING_PARAMETERS_FILE  turns batching on, with these parameters
# Every setting of ringserve's can be given as RINGSERVE_NAME besides.

if [ -n "${TF_SERVING_BATCHING_PARAMETERS_FILE:-}" ]; then
    set -- --enable_batching=true "--batching_parameters_file=$TF_SERVING_BATCHING_PARAMETERS_FILE" "$@"
fi
if [ -n "${MODEL_VERSION_POLICY:-}" ]; then
    set -- "--model_version_policy=$MODEL_VERSION_POLICY" "$@"
fi
# `exec`: the server is process 1, gets the signals, and collects orphans.
exec tensorflow_model_server --port=8500 --rest_api_port=8501 \
    "--model_name=${MODEL_NAME:-model}" "--model_base_path=${MODEL_BASE_PATH:-/models}/${MODEL_NAME:-model}" "$@"
