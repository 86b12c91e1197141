# Built and used like TensorFlow Serving's image:
#   docker build -t ringserve .
#   docker run -p 8500:8500 -p 8501:8501 -v /models/digits:/models/digits -e MODEL_NAME=digits ringserve
# Flags after the image's name are added to the command line.

FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
# A virtual environment moves between stages as one folder.
RUN python -m venv /opt/ringserve && /opt/ringserve/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/ringserve /opt/ringserve
ENV PATH=/opt/ringserve/bin:$PATH \
    MODEL_NAME=model \
    MODEL_BASE_PATH=/models
RUN useradd --system --no-create-home ringserve && mkdir -p /models
USER ringserve
WORKDIR /
EXPOSE 8500 8501
# `exec`: the supervisor is process 1, gets the signals, and collects orphans.
ENTRYPOINT ["/bin/sh", "-c", "exec ringserve serve --port=8500 --rest_api_port=8501 --model_name=\"$MODEL_NAME\" --model_base_path=\"$MODEL_BASE_PATH/$MODEL_NAME\" \"$@\"", "ringserve"]
CMD []
