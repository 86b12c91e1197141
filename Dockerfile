# Built and used like TensorFlow Serving's image:
#   docker build -t ringserve .
#   docker run -p 8500:8500 -p 8501:8501 -v /models/digits:/models/digits -e MODEL_NAME=digits ringserve
# Flags after the image's name are added to tensorflow_model_server's command line; the environment that counts is
# described in deploy/tf_serving_entrypoint.sh.

FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
# Extras between commas; gpu brings CUDA's libraries, and the driver comes from the host: docker run --gpus all
ARG EXTRAS=
# A virtual environment moves between stages as one folder.
RUN python -m venv /opt/ringserve && /opt/ringserve/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12-slim
COPY --from=build /opt/ringserve /opt/ringserve
# Where images made from TensorFlow Serving's call them.
COPY --chmod=755 deploy/tf_serving_entrypoint.sh /usr/bin/tf_serving_entrypoint.sh
ENV PATH=/opt/ringserve/bin:$PATH \
    MODEL_NAME=model \
    MODEL_BASE_PATH=/models
RUN useradd --system --no-create-home ringserve && mkdir -p /models \
    && ln -s /opt/ringserve/bin/tensorflow_model_server /opt/ringserve/bin/ringserve /usr/bin/
USER ringserve
WORKDIR /
EXPOSE 8500 8501
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
