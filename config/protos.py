"""The official message classes of TensorFlow Serving's API and of TensorFlow's core protos, without TensorFlow.

The `_pb2` modules live inside the `tensorflow` package, whose `__init__` loads the run time (seconds, 200 MB). Only
that one `__init__` is in the way, so while they are imported a bare package with the same `__path__` stands in for it.
Afterwards every `tensorflow...` entry leaves `sys.modules` again: a later real `import tensorflow` then finds nothing
half-made, and gets these very classes, because protobuf's descriptor pool hands out one class per message type.
When the real TensorFlow is already imported, it is used as it is.

This is the one place that imports `_pb2` modules outside the workers: a stray import elsewhere would load TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import PathFinder
from typing import Any, Final

_API = "tensorflow_serving.apis"
_CONFIG = "tensorflow_serving.config"
_FRAMEWORK = "tensorflow.core.framework"
_PROTOBUF = "tensorflow.core.protobuf"

_MODULES: Final = (
    f"{_FRAMEWORK}.tensor_pb2",
    f"{_FRAMEWORK}.tensor_shape_pb2",
    f"{_FRAMEWORK}.types_pb2",
    f"{_PROTOBUF}.meta_graph_pb2",
    f"{_PROTOBUF}.saved_model_pb2",
    f"{_PROTOBUF}.tensor_bundle_pb2",
    f"{_PROTOBUF}.config_pb2",
    f"{_PROTOBUF}.error_codes_pb2",
    "tensorflow.core.example.example_pb2",
    f"{_API}.model_pb2",
    f"{_API}.predict_pb2",
    f"{_API}.prediction_service_pb2",
    f"{_API}.input_pb2",
    f"{_API}.classification_pb2",
    f"{_API}.regression_pb2",
    f"{_API}.inference_pb2",
    f"{_API}.get_model_metadata_pb2",
    f"{_API}.get_model_status_pb2",
    f"{_API}.model_management_pb2",
    f"{_API}.model_service_pb2",
    f"{_API}.prediction_log_pb2",
    f"{_API}.status_pb2",
    f"{_CONFIG}.model_server_config_pb2",
)


def _is_tensorflow(name: str) -> bool:
    return name == "tensorflow" or name.startswith("tensorflow.")


def _import_all() -> dict[str, Any]:
    if "tensorflow" in sys.modules:
        return {name: importlib.import_module(name) for name in _MODULES}
    found = PathFinder.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("the package 'tensorflow' is not installed: its message classes are needed")
    bare = types.ModuleType("tensorflow")
    bare.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = bare
    try:
        return {name: importlib.import_module(name) for name in _MODULES}
    finally:
        for name in [name for name in sys.modules if _is_tensorflow(name)]:
            del sys.modules[name]


_modules = _import_all()

# TensorFlow's own messages (package tensorflow). Generated classes have no static types, hence Any.
TensorProto: Final[Any] = _modules[f"{_FRAMEWORK}.tensor_pb2"].TensorProto
TensorShapeProto: Final[Any] = _modules[f"{_FRAMEWORK}.tensor_shape_pb2"].TensorShapeProto
DataType: Final[Any] = _modules[f"{_FRAMEWORK}.types_pb2"].DataType
SignatureDef: Final[Any] = _modules[f"{_PROTOBUF}.meta_graph_pb2"].SignatureDef
SavedModel: Final[Any] = _modules[f"{_PROTOBUF}.saved_model_pb2"].SavedModel
BundleHeader: Final[Any] = _modules[f"{_PROTOBUF}.tensor_bundle_pb2"].BundleHeaderProto
BundleEntry: Final[Any] = _modules[f"{_PROTOBUF}.tensor_bundle_pb2"].BundleEntryProto
TensorInfo: Final[Any] = _modules[f"{_PROTOBUF}.meta_graph_pb2"].TensorInfo
ConfigProto: Final[Any] = _modules[f"{_PROTOBUF}.config_pb2"].ConfigProto
Example: Final[Any] = _modules["tensorflow.core.example.example_pb2"].Example

# The API (package tensorflow.serving).
ModelSpec: Final[Any] = _modules[f"{_API}.model_pb2"].ModelSpec
PredictRequest: Final[Any] = _modules[f"{_API}.predict_pb2"].PredictRequest
PredictResponse: Final[Any] = _modules[f"{_API}.predict_pb2"].PredictResponse
Input: Final[Any] = _modules[f"{_API}.input_pb2"].Input
ClassificationRequest: Final[Any] = _modules[f"{_API}.classification_pb2"].ClassificationRequest
ClassificationResponse: Final[Any] = _modules[f"{_API}.classification_pb2"].ClassificationResponse
RegressionRequest: Final[Any] = _modules[f"{_API}.regression_pb2"].RegressionRequest
RegressionResponse: Final[Any] = _modules[f"{_API}.regression_pb2"].RegressionResponse
InferenceTask: Final[Any] = _modules[f"{_API}.inference_pb2"].InferenceTask
MultiInferenceRequest: Final[Any] = _modules[f"{_API}.inference_pb2"].MultiInferenceRequest
MultiInferenceResponse: Final[Any] = _modules[f"{_API}.inference_pb2"].MultiInferenceResponse
GetModelMetadataRequest: Final[Any] = _modules[f"{_API}.get_model_metadata_pb2"].GetModelMetadataRequest
GetModelMetadataResponse: Final[Any] = _modules[f"{_API}.get_model_metadata_pb2"].GetModelMetadataResponse
SignatureDefMap: Final[Any] = _modules[f"{_API}.get_model_metadata_pb2"].SignatureDefMap
GetModelStatusRequest: Final[Any] = _modules[f"{_API}.get_model_status_pb2"].GetModelStatusRequest
GetModelStatusResponse: Final[Any] = _modules[f"{_API}.get_model_status_pb2"].GetModelStatusResponse
ModelVersionStatus: Final[Any] = _modules[f"{_API}.get_model_status_pb2"].ModelVersionStatus
ReloadConfigRequest: Final[Any] = _modules[f"{_API}.model_management_pb2"].ReloadConfigRequest
ReloadConfigResponse: Final[Any] = _modules[f"{_API}.model_management_pb2"].ReloadConfigResponse
PredictionLog: Final[Any] = _modules[f"{_API}.prediction_log_pb2"].PredictionLog
StatusProto: Final[Any] = _modules[f"{_API}.status_pb2"].StatusProto
ModelServerConfig: Final[Any] = _modules[f"{_CONFIG}.model_server_config_pb2"].ModelServerConfig
ModelConfig: Final[Any] = _modules[f"{_CONFIG}.model_server_config_pb2"].ModelConfig

#: Descriptors of the API's services: the files that they stand in, which import the files of all their messages.
SERVICE_FILES: Final[tuple[Any, ...]] = (
    _modules[f"{_API}.prediction_service_pb2"].DESCRIPTOR,
    _modules[f"{_API}.model_service_pb2"].DESCRIPTOR,
)
