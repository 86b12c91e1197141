"""Messages that no package of ours brings: gRPC's health and reflection services, TensorFlow's profiler, raw Examples.

They are declared here as tables and made into classes by protobuf. The packages `grpcio-health-checking` and
`grpcio-reflection` have the first two (reflection in its older version only), but each of their releases asks for a
release of protobuf, and TensorFlow's do so, too. A pool of their own keeps the declarations apart from those packages'
where both are loaded.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from ringserve.config.protos import InferenceTask, ModelSpec

_F: Final[Any] = FieldDescriptorProto
_SCALARS: Final = {
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "bool": _F.TYPE_BOOL,
    "int32": _F.TYPE_INT32,
    "int64": _F.TYPE_INT64,
    "uint32": _F.TYPE_UINT32,
    "uint64": _F.TYPE_UINT64,
    "double": _F.TYPE_DOUBLE,
}

#: Fields of a message, one a line: `number name type`, with `*` after the type when it is repeated, and after that the
#: name of the oneof that it stands in. A type: a scalar's name, `.package.Message`, or `=.package.Enum`.
Fields = str


def _message(name: str, fields: Fields = "") -> Any:
    message: Any = DescriptorProto(name=name)
    oneofs: list[str] = []
    for line in fields.strip().splitlines():
        number, field_name, kind, *oneof = line.split()
        label = _F.LABEL_REPEATED if kind.endswith("*") else _F.LABEL_OPTIONAL
        field = message.field.add(name=field_name, number=int(number), label=label)
        kind = kind.rstrip("*")
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type = _F.TYPE_ENUM if kind.startswith("=") else _F.TYPE_MESSAGE
            field.type_name = kind.lstrip("=")
        if oneof:
            if oneof[0] not in oneofs:
                oneofs.append(oneof[0])
                message.oneof_decl.add(name=oneof[0])
            field.oneof_index = oneofs.index(oneof[0])
    return message


def _map_entry(name: str, value: str) -> Any:
    """The nested message behind `map<string, value>`."""
    entry = _message(name, f"1 key string\n2 value {value}")
    entry.options.map_entry = True
    return entry


def _file(name: str, package: str, messages: dict[str, Fields], *dependencies: str) -> Any:
    file: Any = FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=dependencies)
    for message, fields in messages.items():
        file.message_type.append(_message(message, fields))
    return file


def _add_service(file: Any, name: str, **methods: tuple[str, str]) -> None:
    """methods: name = (request, response) in this file's package; `stream` before one that is streamed."""
    service = file.service.add(name=name)
    for method, (request, response) in methods.items():
        service.method.add(
            name=method,
            input_type=f".{file.package}.{request.removeprefix('stream ')}",
            output_type=f".{file.package}.{response.removeprefix('stream ')}",
            client_streaming=request.startswith("stream "),
            server_streaming=response.startswith("stream "),
        )


# ------------------------------------------------------------------------------------------------------------ health

_HEALTH: Final = _file(
    "grpc/health/v1/health.proto",
    "grpc.health.v1",
    {
        "HealthCheckRequest": "1 service string",
        "HealthCheckResponse": "1 status =.grpc.health.v1.HealthCheckResponse.ServingStatus",
        "HealthListRequest": "",
        "HealthListResponse": "1 statuses .grpc.health.v1.HealthListResponse.StatusesEntry*",
    },
)
_serving_status: Any = _HEALTH.message_type[1].enum_type.add(name="ServingStatus")
for _number, _name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
    _serving_status.value.add(name=_name, number=_number)
_HEALTH.message_type[3].nested_type.append(_map_entry("StatusesEntry", ".grpc.health.v1.HealthCheckResponse"))
_add_service(
    _HEALTH,
    "Health",
    Check=("HealthCheckRequest", "HealthCheckResponse"),
    List=("HealthListRequest", "HealthListResponse"),
    Watch=("HealthCheckRequest", "stream HealthCheckResponse"),
)

# -------------------------------------------------------------------------------------------------------- reflection


def _reflection(package: str) -> Any:
    """Both versions of the service are the same but for the package's name."""
    file = _file(
        f"{package.replace('.', '/')}/reflection.proto",
        package,
        {
            "ServerReflectionRequest": f"""
                1 host string
                3 file_by_filename string message_request
                4 file_containing_symbol string message_request
                5 file_containing_extension .{package}.ExtensionRequest message_request
                6 all_extension_numbers_of_type string message_request
                7 list_services string message_request
            """,
            "ExtensionRequest": "1 containing_type string\n2 extension_number int32",
            "ServerReflectionResponse": f"""
                1 valid_host string
                2 original_request .{package}.ServerReflectionRequest
                4 file_descriptor_response .{package}.FileDescriptorResponse message_response
                5 all_extension_numbers_response .{package}.ExtensionNumberResponse message_response
                6 list_services_response .{package}.ListServiceResponse message_response
                7 error_response .{package}.ErrorResponse message_response
            """,
            "FileDescriptorResponse": "1 file_descriptor_proto bytes*",
            "ExtensionNumberResponse": "1 base_type_name string\n2 extension_number int32*",
            "ListServiceResponse": f"1 service .{package}.ServiceResponse*",
            "ServiceResponse": "1 name string",
            "ErrorResponse": "1 error_code int32\n2 error_message string",
        },
    )
    methods = {"ServerReflectionInfo": ("stream ServerReflectionRequest", "stream ServerReflectionResponse")}
    _add_service(file, "ServerReflection", **methods)
    return file


# ---------------------------------------------------------------------------------------------------------- profiler

# For reflection only: requests and answers pass through unread. Without the fields that hold TensorFlow's own traces.
_PROFILER: Final = _file(
    "tensorflow/profiler_service.proto",
    "tensorflow",
    {
        "ProfileOptions": """
            1 include_dataset_ops bool
            2 host_tracer_level uint32
            3 device_tracer_level uint32
            4 python_tracer_level uint32
            5 version uint32
            7 enable_hlo_proto bool
            8 start_timestamp_ns uint64
            9 duration_ms uint64
            10 repository_path string
        """,
        "ToolRequestOptions": "2 output_formats string\n3 save_to_repo bool",
        "ProfileRequest": """
            1 duration_ms uint64
            2 max_events uint64
            3 tools string*
            4 opts .tensorflow.ProfileOptions
            5 repository_root string
            6 session_id string
            7 host_name string
            8 tool_options .tensorflow.ProfileRequest.ToolOptionsEntry*
            9 emit_xspace bool
        """,
        "ProfileToolData": "1 name string\n2 data bytes",
        "ProfileResponse": "6 tool_data .tensorflow.ProfileToolData*\n7 empty_trace bool",
        "TerminateRequest": "1 session_id string",
        "TerminateResponse": "",
        "MonitorRequest": "1 duration_ms uint64\n2 monitoring_level int32\n3 timestamp bool",
        "MonitorResponse": "1 data string",
    },
)
_PROFILER.message_type[2].nested_type.append(_map_entry("ToolOptionsEntry", ".tensorflow.ToolRequestOptions"))
_add_service(
    _PROFILER,
    "ProfilerService",
    Profile=("ProfileRequest", "ProfileResponse"),
    Terminate=("TerminateRequest", "TerminateResponse"),
    Monitor=("MonitorRequest", "MonitorResponse"),
)

# ------------------------------------------------------------------------------------------------------ raw Examples

# The requests that hold Examples, with every Example left as the bytes it came in: parsing them is the model's work.
# All that protobuf says of repeated, merged and unknown fields still holds; so a context that comes in pieces is
# `repeated` here, because its pieces joined are the merged message.
_EXAMPLES: Final = _file(
    "ringserve/raw_examples.proto",
    "ringserve",
    {
        "RawExampleList": "1 examples bytes*",
        "RawExampleListWithContext": "1 examples bytes*\n2 context bytes*",
        "RawInput": """
            1 example_list .ringserve.RawExampleList kind
            2 example_list_with_context .ringserve.RawExampleListWithContext kind
        """,
        "RawExampleRequest": "1 model_spec .tensorflow.serving.ModelSpec\n2 input .ringserve.RawInput",
        "RawMultiInferenceRequest": "1 tasks .tensorflow.serving.InferenceTask*\n2 input .ringserve.RawInput",
    },
    ModelSpec.DESCRIPTOR.file.name,
    InferenceTask.DESCRIPTOR.file.name,
)

# ----------------------------------------------------------------------------------------------------------- classes

#: Where health, reflection and profiler are declared; the rest is in protobuf's default pool.
POOL: Final[Any] = DescriptorPool()
for _declared in (_HEALTH, _reflection("grpc.reflection.v1"), _reflection("grpc.reflection.v1alpha"), _PROFILER):
    POOL.AddSerializedFile(_declared.SerializeToString())
_default_pool: Any = Default()
_default_pool.AddSerializedFile(_EXAMPLES.SerializeToString())


def _class(name: str, pool: Any = POOL) -> Any:
    return GetMessageClass(pool.FindMessageTypeByName(name))


HealthCheckRequest: Final = _class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse: Final = _class("grpc.health.v1.HealthCheckResponse")
HealthListRequest: Final = _class("grpc.health.v1.HealthListRequest")
HealthListResponse: Final = _class("grpc.health.v1.HealthListResponse")
#: Request and response by version of the service: `grpc.reflection.v1` and `grpc.reflection.v1alpha`.
REFLECTION: Final[dict[str, tuple[Any, Any]]] = {
    package: (_class(f"{package}.ServerReflectionRequest"), _class(f"{package}.ServerReflectionResponse"))
    for package in ("grpc.reflection.v1", "grpc.reflection.v1alpha")
}
#: ClassificationRequest and RegressionRequest alike, and MultiInferenceRequest, with raw Examples.
RawExampleRequest: Final = _class("ringserve.RawExampleRequest", _default_pool)
RawMultiInferenceRequest: Final = _class("ringserve.RawMultiInferenceRequest", _default_pool)
