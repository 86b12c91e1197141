"""Small TFLite models, made by TensorFlow's converter, with and without a SignatureDef in their metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.exporters import concrete, tensorflow


def convert(directory: Path, function: Callable[..., Any], **inputs: tuple[list[int | None], str]) -> Path:
    """`directory`/model.tflite of this function, without stored signatures."""
    tf = tensorflow()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete(function, **inputs)])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.tflite").write_bytes(converter.convert())
    return directory


def dense(directory: Path) -> Path:
    """float x [-1, 3] -> float [-1, 2]: a product with weights. A row of ones gives [6, 15]."""
    tf = tensorflow()
    weights = tf.constant([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    return convert(directory, lambda x: {"y": x @ weights}, x=([None, 3], "float32"))


class _Raw(bytes):
    """What the builder takes for a text: the C++ one writes any bytes as a string."""

    def encode(self, *_: Any) -> bytes:
        return bytes(self)


def add_signatures(directory: Path, **signatures: tuple[dict[str, str], dict[str, str]]) -> Path:
    """Store SignatureDefs (alias -> tensor name, of floats) in the metadata of `directory`/model.tflite."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers
    from tensorflow.core.protobuf import meta_graph_pb2

    builder = flexbuffers.Builder()
    with builder.Map():
        for name, (inputs, outputs) in signatures.items():
            signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
            for infos, tensors in ((signature.inputs, inputs), (signature.outputs, outputs)):
                for alias, tensor_name in tensors.items():
                    infos[alias].name = tensor_name
                    infos[alias].dtype = 1
                    infos[alias].tensor_shape.dim.add(size=-1)
            builder.Key(name)
            builder.String(_Raw(signature.SerializeToString()))
    file = directory / "model.tflite"
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))
    buffer = schema.BufferT()
    buffer.data = list(builder.Finish())
    entry = schema.MetadataT()
    entry.name, entry.buffer = "signature_defs_metadata", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    packed = flatbuffers.Builder(1024)
    packed.Finish(model.Pack(packed), b"TFL3")
    file.write_bytes(bytes(packed.Output()))
    return directory
