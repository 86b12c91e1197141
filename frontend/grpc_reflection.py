"""grpc.reflection, v1 and v1alpha: what services there are, and the .proto files behind them, for tools like grpcurl.

A file goes out with all files that it imports, less those that went out on the same stream before. Only files of the
services that this server has can be seen, not everything that happens to be in protobuf's pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import SERVICE_FILES
from ringserve.frontend.grpc_draining import Draining
from ringserve.frontend.grpc_models import parsed
from ringserve.frontend.grpc_protos import POOL, REFLECTION
from ringserve.frontend.handler import Methods, Stream, StreamFailure, StreamHandler

_METHOD: Final = "ServerReflectionInfo"

#: The full names of the service, one for each version.
SERVICES: Final = tuple(f"{package}.ServerReflection" for package in REFLECTION)


class Files:
    """The .proto files of some services, with all that they import. services: full names."""

    def __init__(self, services: Iterable[str]) -> None:
        self.services = sorted(services)
        self._files: dict[str, Any] = {}
        for service in self.services:
            descriptor = _service(service)
            if descriptor is not None:
                self._add(descriptor.file)
        self._symbols: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}

    def _add(self, file: Any) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for imported in file.dependencies:
                self._add(imported)

    def by_name(self, name: str) -> Any | None:
        """The file of that name."""
        return self._files.get(name)

    def with_symbol(self, name: str) -> Any | None:
        """The file that declares a service, method, message, field, enum ... of that full name."""
        self._index()
        return self._symbols.get(name)

    def message(self, name: str) -> Any | None:
        """The descriptor of a message."""
        self._index()
        return self._messages.get(name)

    def _index(self) -> None:
        """Our own, made when it is asked for: protobuf's pools find some kinds of symbols and not others."""
        if not self._symbols:
            for file in self._files.values():
                for message in file.message_types_by_name.values():
                    self._messages.update((each.full_name, each) for each in _with_nested(message))
                self._symbols.update((name, file) for name in _names_in(file))
            self._symbols.update((name, message.file) for name, message in self._messages.items())


def _with_nested(message: Any) -> Iterator[Any]:
    yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)


def _names_in(file: Any) -> Iterator[str]:
    """Full names of all that a file declares, but messages."""
    messages = [each for top in file.message_types_by_name.values() for each in _with_nested(top)]
    members = [[*message.fields, *message.oneofs, *message.extensions] for message in messages]
    services = [[service, *service.methods] for service in file.services_by_name.values()]
    for group in (*members, *services, file.extensions_by_name.values()):
        yield from (each.full_name for each in group)
    enums = [enum for message in messages for enum in message.enum_types]
    for enum in (*enums, *file.enum_types_by_name.values()):
        yield enum.full_name
        # An enum's values are named in the scope of the enum itself.
        scope = enum.full_name.rpartition(".")[0]
        yield from (f"{scope}.{value}" for value in enum.values_by_name)


def _service(name: str) -> Any | None:
    for file in SERVICE_FILES:
        for descriptor in file.services_by_name.values():
            if descriptor.full_name == name:
                return descriptor
    try:
        return POOL.FindServiceByName(name)
    except KeyError:
        return None


def reflection_methods(services: Iterable[str], draining: Draining) -> Methods:
    """The methods of both versions, over these services and the reflection service itself."""
    files = Files({*services, *SERVICES})
    return Methods(
        stream={
            f"/{package}.ServerReflection/{_METHOD}": _method(files, draining, *classes)
            for package, classes in REFLECTION.items()
        }
    )


def _method(files: Files, draining: Draining, request_class: Any, response_class: Any) -> StreamHandler:
    async def reflect(stream: Stream) -> None:
        sent: set[str] = set()
        while (message := await draining.next_message(stream)) is not None:
            request = parsed(request_class, message)
            if isinstance(request, Failure):
                raise StreamFailure(request.code, request.text)
            response = response_class(valid_host=request.host, original_request=request)
            failure = _answer(files, request, response, sent)
            if failure is not None:
                response.error_response.error_code = failure.code
                response.error_response.error_message = failure.text
            await stream.send(response.SerializeToString())

    return reflect


def _answer(files: Files, request: Any, response: Any, sent: set[str]) -> Failure | None:
    """Fill in the response; a Failure goes into it as an error, and the stream goes on."""
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        response.list_services_response.SetInParent()
        for service in files.services:
            response.list_services_response.service.add(name=service)
    elif kind == "file_by_filename":
        return _put_file(files.by_name(request.file_by_filename), request.file_by_filename, response, sent)
    elif kind == "file_containing_symbol":
        symbol = request.file_containing_symbol
        return _put_file(files.with_symbol(symbol), symbol, response, sent)
    elif kind == "file_containing_extension":
        asked = request.file_containing_extension
        name = f"extension {asked.extension_number} of {asked.containing_type}"
        return _put_file(_file_of_extension(files, asked), name, response, sent)
    elif kind == "all_extension_numbers_of_type":
        return _put_extensions(files, request.all_extension_numbers_of_type, response)
    else:
        return Failure(Code.INVALID_ARGUMENT, "the request asks for nothing")
    return None


def _put_file(file: Any | None, name: str, response: Any, sent: set[str]) -> Failure | None:
    if file is None:
        return Failure(Code.NOT_FOUND, f"not found: {name}")
    # The file itself in any case: a client that asks again has not kept it.
    sent.discard(file.name)
    _put_with_imports(file, response.file_descriptor_response.file_descriptor_proto, sent)
    return None


def _put_with_imports(file: Any, protos: Any, sent: set[str]) -> None:
    if file.name not in sent:
        sent.add(file.name)
        protos.append(file.serialized_pb)
        for imported in file.dependencies:
            _put_with_imports(imported, protos, sent)


def _file_of_extension(files: Files, asked: Any) -> Any | None:
    message = files.message(asked.containing_type)
    if message is None:
        return None
    try:
        return message.file.pool.FindExtensionByNumber(message, asked.extension_number).file
    except KeyError:
        return None


def _put_extensions(files: Files, name: str, response: Any) -> Failure | None:
    message = files.message(name)
    if message is None:
        return Failure(Code.NOT_FOUND, f"not found: {name}")
    answer = response.all_extension_numbers_response
    answer.base_type_name = name
    answer.extension_number.extend(sorted(each.number for each in message.file.pool.FindAllExtensions(message)))
    return None
