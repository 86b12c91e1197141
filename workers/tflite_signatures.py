"""Which signatures a model.tflite has: those stored in its metadata, else one made from the tensors' names.

They lie in the file's metadata entry `signature_defs_metadata`, a flexbuffer map of name -> serialized SignatureDef.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2

from ringserve.broker.messages import Code
from ringserve.shm import dtype as dtypes
from ringserve.workers.failures import LoadError

_ENTRY: Final = b"signature_defs_metadata"
_DEFAULT_SIGNATURE: Final = "serving_default"
_METHOD: Final = "tensorflow/serving/predict"
#: Where the classes of TFLite's file format are: the interpreter's own package, or TensorFlow.
_SCHEMAS: Final = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")


class TensorDetail(NamedTuple):
    """An input or output of the interpreter. number: the interpreter's. shape: -1 for an axis that is left open."""

    number: int
    dtype: int
    shape: tuple[int, ...]


def plain_name(tensor_name: str) -> str:
    """`x:0` -> `x`: signatures carry the suffix, the file's tensors may not."""
    return tensor_name.removesuffix(":0")


def stored(content: bytes) -> dict[str, Any]:
    """The SignatureDefs in the file's metadata, by name; empty when it has none. Raises LoadError."""
    from flatbuffers import flexbuffers

    try:
        model = _schema().Model.GetRootAs(content, 0)
        for position in range(model.MetadataLength()):
            entry = model.Metadata(position)
            if entry.Name() == _ENTRY:
                buffer = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
                # Not `Value`, which would read the messages as UTF-8.
                found = flexbuffers.GetRoot(buffer).AsMap
                keys = [key.AsKey for key in found.Keys]
                return {str(key): meta_graph_pb2.SignatureDef.FromString(found[key].AsStringBytes) for key in keys}
    except (DecodeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise LoadError(Code.DATA_LOSS, f"The signatures stored in model.tflite cannot be read: {error}") from error
    return {}


def _schema() -> Any:
    for name in _SCHEMAS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise LoadError(Code.FAILED_PRECONDITION, "The classes of TFLite's file format are not installed.")


def made_up(inputs: Mapping[str, TensorDetail], outputs: Mapping[str, TensorDetail]) -> dict[str, Any]:
    """A `serving_default` whose aliases are the tensors' names, as TF Serving makes it."""
    signature = meta_graph_pb2.SignatureDef(method_name=_METHOD)
    for infos, tensors in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for name, detail in tensors.items():
            describe(infos[plain_name(name)], name, detail)
    return {_DEFAULT_SIGNATURE: signature}


def describe(info: Any, name: str, detail: TensorDetail) -> None:
    """Fill a TensorInfo."""
    info.name = name
    info.dtype = detail.dtype
    for size in detail.shape:
        info.tensor_shape.dim.add(size=size)


def details(tensors: Sequence[Mapping[str, Any]]) -> dict[str, TensorDetail]:
    """The interpreter's description of its inputs or outputs, by plain name. Raises LoadError for an unknown dtype."""
    found = {}
    for tensor in tensors:
        try:
            dtype = dtypes.dtype_of_numpy(np.dtype(tensor["dtype"])).number
        except (ValueError, TypeError) as error:
            text = f"Tensor {tensor['name']} of model.tflite has a type that cannot be served: {error}"
            raise LoadError(Code.UNIMPLEMENTED, text) from error
        shape = tensor.get("shape_signature", ())
        if len(shape) != len(tensor["shape"]):
            shape = tensor["shape"]
        found[plain_name(tensor["name"])] = TensorDetail(tensor["index"], dtype, tuple(int(size) for size in shape))
    return found
