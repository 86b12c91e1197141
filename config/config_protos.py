"""Classes of TF Serving's configuration messages that the official package leaves out, and ModelConfig with two fields
of our own. No paths, no rules: `text_protos.py` reads them, `model_config.py` and its neighbours say what they mean.

All live in a descriptor pool of their own under TF Serving's names, so that error texts name what users know, and so
that nothing clashes with other code that declares them. Fields and numbers are the API's; ours in ModelConfig:

    10001 batching_parameters   a BatchingParameters for this model alone, as a common guide writes it
    10002 batching              keys of the section [batching] and their values as text

The official ModelServerConfig carries these two as unknown fields, so a configuration survives any hop between the two
classes: `extended(message)` and `official(message)`.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from ringserve.config.protos import ModelServerConfig

_PACKAGE: Final = "tensorflow.serving"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {"bool": _Field.TYPE_BOOL, "int64": _Field.TYPE_INT64, "string": _Field.TYPE_STRING}

#: message -> (number, name, type); `*` behind a type: repeated.
_MESSAGES: Final[dict[str, tuple[tuple[int, str, str], ...]]] = {
    "BatchingParameters": (
        (1, "max_batch_size", ".google.protobuf.Int64Value"),
        (2, "batch_timeout_micros", ".google.protobuf.Int64Value"),
        (3, "max_enqueued_batches", ".google.protobuf.Int64Value"),
        (4, "num_batch_threads", ".google.protobuf.Int64Value"),
        (5, "thread_pool_name", ".google.protobuf.StringValue"),
        (6, "allowed_batch_sizes", "int64*"),
        (7, "pad_variable_length_inputs", "bool"),
        (8, "enable_large_batch_splitting", ".google.protobuf.BoolValue"),
        (9, "max_execution_batch_size", ".google.protobuf.Int64Value"),
    ),
    "PrometheusConfig": ((1, "enable", "bool"), (2, "path", "string")),
    "MonitoringConfig": ((1, "prometheus_config", f".{_PACKAGE}.PrometheusConfig"),),
    "SSLConfig": (
        (1, "server_key", "string"),
        (2, "server_cert", "string"),
        (3, "custom_ca", "string"),
        (4, "client_verify", "bool"),
    ),
}
_OURS: Final = "ringserve/tf_serving_config.proto"


def _add_field(message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    if kind.startswith("."):
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind
    else:
        field.type = _SCALARS[kind]


def _our_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_OURS, package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            _add_field(message, number, field, kind)
    return file


def _extend(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Add our two fields to ModelConfig, in the file that declares it."""
    file.dependency.append(_OURS)
    (model,) = (message for message in file.message_type if message.name == "ModelConfig")
    _add_field(model, 10001, "batching_parameters", f".{_PACKAGE}.BatchingParameters")
    _add_field(model, 10002, "batching", f".{_PACKAGE}.ModelConfig.BatchingEntry*")
    entry = model.nested_type.add(name="BatchingEntry")
    entry.options.map_entry = True
    _add_field(entry, 1, "key", "string")
    _add_field(entry, 2, "value", "string")


def _make_pool() -> Any:
    pool: Any = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(descriptor: Any) -> None:
        if descriptor.name in added:
            return
        added.add(descriptor.name)
        for needed in descriptor.dependencies:
            add(needed)
        file = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(file)
        if descriptor.name == ModelServerConfig.DESCRIPTOR.file.name:
            _extend(file)
        pool.Add(file)

    add(any_pb2.DESCRIPTOR)
    add(wrappers_pb2.DESCRIPTOR)
    pool.Add(_our_file())
    add(ModelServerConfig.DESCRIPTOR.file)
    return pool


_pool = _make_pool()


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BatchingParameters: Final[Any] = _class("BatchingParameters")
MonitoringConfig: Final[Any] = _class("MonitoringConfig")
SSLConfig: Final[Any] = _class("SSLConfig")
VersionPolicy: Final[Any] = _class("FileSystemStoragePathSourceConfig.ServableVersionPolicy")
ExtendedModelConfig: Final[Any] = _class("ModelConfig")
ExtendedModelServerConfig: Final[Any] = _class("ModelServerConfig")


def extended(message: Any) -> Any:
    """A ModelServerConfig or ModelConfig of either class as one in which our fields are visible."""
    cls = {"ModelConfig": ExtendedModelConfig, "ModelServerConfig": ExtendedModelServerConfig}[message.DESCRIPTOR.name]
    return message if type(message) is cls else cls.FromString(message.SerializeToString())


def official(message: Any) -> Any:
    """An extended ModelServerConfig as one of the official class, our fields inside as unknown ones."""
    return ModelServerConfig.FromString(message.SerializeToString())
