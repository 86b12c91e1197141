# Built and used like TensorFlow Serving's image (docs/container.md says the rest):
#   docker build -t ringserve .
#   docker run -p 8500:8500 -p 8501:8501 -v /models/digits:/models/digits -e MODEL_NAME=digits ringserve
# Flags after the image's name are added to tensorflow_model_server's command line; the environment that counts is
# described in deploy/tf_serving_entrypoint.sh.

# ------------------------------------------------------------------ what ringserve needs: changes with pyproject.toml
FROM python:3.12-slim AS libraries
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Extras between commas; gpu brings CUDA's libraries, and the driver comes from the host: docker run --gpus all
ARG EXTRAS=
COPY pyproject.toml deploy/requirements.py ./
# A virtual environment moves between stages as one folder. It has no pip of its own: the image's is used on it.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/ringserve \
    && python requirements.py "$EXTRAS" > requirements.txt \
    && pip --python /opt/ringserve/bin/python install -r requirements.txt
# Not used while serving: C++ headers (430 MB), a C++ parser (60 MB), names of functions that no linker needs (250 MB).
RUN site=$(/opt/ringserve/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -rf "$site/tensorflow/include" "$site/clang" \
    && find "$site/tensorflow" -name '*.so*' -type f -exec strip --strip-unneeded {} + \
    && /opt/ringserve/bin/python -c 'import tensorflow as tf; print(tf.reduce_sum(tf.ones([2, 3])).numpy())'

# ------------------------------------------------------------------------------------------------- ringserve itself
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

# -------------------------------------------------------------------------------------------------------- the image
FROM python:3.12-slim
ARG VERSION=unversioned
LABEL org.opencontainers.image.title="ringserve" \
      org.opencontainers.image.description="A model server for TensorFlow SavedModels with TensorFlow Serving's APIs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
# Numbers, so that Kubernetes can see that it is not root.
RUN groupadd --gid 10001 ringserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ringserve \
    && mkdir /models \
    && ln -s /opt/ringserve/bin/tensorflow_model_server /opt/ringserve/bin/ringserve /usr/bin/
COPY --from=libraries /opt/ringserve /opt/ringserve
# A layer of its own, so that another ringserve is a small download.
COPY --from=build /dist /tmp/dist
RUN pip --python /opt/ringserve/bin/python install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl \
    && rm -rf /tmp/dist
# Where images made from TensorFlow Serving's call them.
COPY --chmod=755 deploy/tf_serving_entrypoint.sh /usr/bin/tf_serving_entrypoint.sh
COPY --chmod=755 deploy/healthcheck.py /usr/bin/ringserve-healthcheck
# The folder of the sockets between the processes is named, so that the health check finds the operators' one.
ENV PATH=/opt/ringserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RINGSERVE_RUN_DIR=/tmp/ringserve \
    MODEL_NAME=model \
    MODEL_BASE_PATH=/models
USER 10001:10001
WORKDIR /
# gRPC, REST, and metrics where RINGSERVE_METRICS_PORT=8502 turns them on
EXPOSE 8500 8501 8502
STOPSIGNAL SIGTERM
# Loading may take long; unhealthy is who has been ready, or had three minutes, and is not.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["/usr/bin/ringserve-healthcheck"]
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
