"""The gRPC methods of a server, put together for either engine: TensorFlow Serving's, and those beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ringserve.frontend import grpc_health
from ringserve.frontend.buffers import Buffers
from ringserve.frontend.crowds import Crowds
from ringserve.frontend.examples import Kind
from ringserve.frontend.grpc_access import GrpcGuard, Need, with_access
from ringserve.frontend.grpc_draining import Draining
from ringserve.frontend.grpc_examples import examples_method, multi_inference_method
from ringserve.frontend.grpc_health import Health
from ringserve.frontend.grpc_models import metadata_method, status_method
from ringserve.frontend.grpc_operators import profiler_methods, reload_method
from ringserve.frontend.grpc_predict import predict_method
from ringserve.frontend.grpc_reflection import reflection_methods
from ringserve.frontend.grpc_reply import InferClient
from ringserve.frontend.handler import Methods
from ringserve.frontend.lanes import LaneTable
from ringserve.frontend.predict_codec import PredictDecoder, PredictEncoder
from ringserve.frontend.tally import Tally

__all__ = ["GrpcSettings", "InferClient", "make_methods"]

_PREDICTION: Final = "/tensorflow.serving.PredictionService/"
_MODEL: Final = "/tensorflow.serving.ModelService/"

PREDICT: Final = f"{_PREDICTION}Predict"
CLASSIFY: Final = f"{_PREDICTION}Classify"
REGRESS: Final = f"{_PREDICTION}Regress"
MULTI_INFERENCE: Final = f"{_PREDICTION}MultiInference"
GET_MODEL_METADATA: Final = f"{_PREDICTION}GetModelMetadata"
GET_MODEL_STATUS: Final = f"{_MODEL}GetModelStatus"
HANDLE_RELOAD_CONFIG_REQUEST: Final = f"{_MODEL}HandleReloadConfigRequest"

#: Whatever is not here is for operators.
_NEEDS: Final = {
    PREDICT: Need.RUN,
    CLASSIFY: Need.RUN,
    REGRESS: Need.RUN,
    MULTI_INFERENCE: Need.RUN,
    GET_MODEL_METADATA: Need.LOOK,
    GET_MODEL_STATUS: Need.LOOK,
    grpc_health.SERVICE: Need.OPEN,
    grpc_health.LIST: Need.STATUS,
    "grpc.reflection.v1.ServerReflection": Need.STATUS,
    "grpc.reflection.v1alpha.ServerReflection": Need.STATUS,
}


@dataclass(frozen=True)
class GrpcSettings:
    """What of a server's settings the methods need.

    tensor_content: answer in TensorProto.tensor_content (enable_serialization_as_tensor_content). check_method_name:
    enable_signature_method_name_check. tensor_bytes_max: of a request's inputs; no more than the request ring takes.
    timeout_ms: of calls that run models and have no deadline; 0: none.
    health, reflection, profiler: whether there are these services. operators: who may reload models and profile:
    `all`, `local` or `off`. open_health: health needs no key.
    """

    tensor_content: bool = False
    check_method_name: bool = False
    tensor_bytes_max: int = 2**30
    health: bool = True
    reflection: bool = True
    profiler: bool = True
    operators: str = "all"
    open_health: bool = True
    timeout_ms: int = 0


def make_methods(
    client: InferClient,
    settings: GrpcSettings | None = None,
    *,
    tally: Tally | None = None,
    draining: Draining | None = None,
    guard: GrpcGuard | None = None,
    buffers: Buffers | None = None,
) -> Methods:
    """The methods, for either gRPC engine. tally: where calls are counted. draining: tells when the server stops.

    guard: judges who may ask for what; None: everybody may. buffers: where long answers lie.
    """
    settings, tally, draining = settings or GrpcSettings(), tally or Tally(), draining or Draining()
    whole_catalog = client.catalog
    client = client if guard is None else guard.client(client)
    catalog = client.catalog
    decoder = PredictDecoder(
        catalog,
        LaneTable(),
        tensor_bytes_max=settings.tensor_bytes_max,
        check_method_name=settings.check_method_name,
    )
    encoder = PredictEncoder(tensor_content=settings.tensor_content, buffers=buffers)
    # Not the decoder's: both keep pieces of their own kind of answer in their lanes.
    lanes = LaneTable()
    timeout_ns = settings.timeout_ms * 1_000_000
    of_examples: dict[str, Any] = {
        "check_method_name": settings.check_method_name, "bytes_max": settings.tensor_bytes_max
    }  # fmt: skip
    # Where it matters who asks, nobody is told anything of a model before that is known.
    crowds = Crowds(PREDICT, decoder.templates, tally) if guard is None else None
    methods = Methods(
        unary={
            PREDICT: predict_method(client, decoder, encoder, tally, timeout_ns, crowds),
            CLASSIFY: examples_method(Kind.CLASSIFY, client, lanes, tally, timeout_ns, **of_examples),
            REGRESS: examples_method(Kind.REGRESS, client, lanes, tally, timeout_ns, **of_examples),
            MULTI_INFERENCE: multi_inference_method(client, lanes, tally, timeout_ns, **of_examples),
            GET_MODEL_METADATA: metadata_method(catalog),
            GET_MODEL_STATUS: status_method(catalog),
            HANDLE_RELOAD_CONFIG_REQUEST: reload_method(client, tally),
        },
        heavy=frozenset((PREDICT, CLASSIFY, REGRESS, MULTI_INFERENCE)),
        crowds=crowds.by_size if crowds is not None else {},
    )
    if settings.profiler:
        methods.unary.update(profiler_methods(client))
    if settings.health:
        services = _services(methods) | {grpc_health.SERVICE}
        _add(methods, Health(whole_catalog, draining, services).methods())
    if settings.reflection:
        _add(methods, reflection_methods(_services(methods), draining))
    needs = _NEEDS if settings.open_health else _NEEDS | {grpc_health.SERVICE: Need.STATUS}
    return with_access(methods, needs, guard, settings.operators)


def _services(methods: Methods) -> set[str]:
    """The full names of the services whose methods these are."""
    return {path.split("/")[1] for path in (*methods.unary, *methods.stream)}


def _add(methods: Methods, more: Methods) -> None:
    methods.unary.update(more.unary)
    methods.stream.update(more.stream)
