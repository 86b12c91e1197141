"""Operators' calls that a worker answers: tensorflow.ProfilerService, on the worker that the broker chose.

| verb               | body                    | answer                                                                |
|--------------------|-------------------------|-----------------------------------------------------------------------|
| `profile/Profile`  | tensorflow.ProfileRequest   | tensorflow.ProfileResponse after `duration_ms`, with the XSpace   |
| `profile/Monitor`  | tensorflow.MonitorRequest   | tensorflow.MonitorResponse after `duration_ms`: a text            |
| `profile/Terminate`| tensorflow.TerminateRequest | tensorflow.TerminateResponse; that session's Profile ends early   |

The trace comes back in the response, as `xspace` when the request says `emit_xspace`, else as tool data `xplane.pb`,
which TensorFlow's client writes where its own process may write. TensorFlow's C++ service writes the latter into
`repository_root` on the *server*; here nobody on the network makes this process write files.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tensorflow.python.profiler.internal import _pywrap_profiler
from tensorflow.tsl.profiler.protobuf import profiler_options_pb2

from ringserve.broker.messages import Ask, Code, Told

_DURATION_MS_MAX: Final = 10 * 60 * 1000
#: A larger trace would not pass through the broker.
_TRACE_BYTES_MAX: Final = 128 * 2**20
_MIB: Final = 2**20

# -------------------------------------------------------------------------------------------------------- the messages
# TensorFlow's wheel has these messages for C++ only. (name, number, type, repeated), of those fields that are used;
# what a peer sends beside them is kept or skipped, as of any unknown field.

_TYPES: Final = descriptor_pb2.FieldDescriptorProto
_FIELDS: Final[dict[str, tuple[tuple[str, int, int | str, bool], ...]]] = {
    "ProfileRequest": (
        ("duration_ms", 1, _TYPES.TYPE_UINT64, False),
        ("opts", 4, ".tensorflow.ProfileOptions", False),
        ("session_id", 6, _TYPES.TYPE_STRING, False),
        ("emit_xspace", 9, _TYPES.TYPE_BOOL, False),
    ),
    "ProfileToolData": (("name", 1, _TYPES.TYPE_STRING, False), ("data", 2, _TYPES.TYPE_BYTES, False)),
    "ProfileResponse": (
        ("tool_data", 6, ".ringserve.profiler.ProfileToolData", True),
        ("empty_trace", 7, _TYPES.TYPE_BOOL, False),
        ("xspace", 8, _TYPES.TYPE_BYTES, False),  # a tensorflow.profiler.XSpace: on the wire the same
    ),
    "TerminateRequest": (("session_id", 1, _TYPES.TYPE_STRING, False),),
    "MonitorRequest": (
        ("duration_ms", 1, _TYPES.TYPE_UINT64, False),
        ("monitoring_level", 2, _TYPES.TYPE_INT32, False),
        ("timestamp", 3, _TYPES.TYPE_BOOL, False),
    ),
    "MonitorResponse": (("data", 1, _TYPES.TYPE_STRING, False),),
    # Of the trace no more than is looked at: it is large, and the names in it need not be UTF-8.
    "XPlane": (("lines", 3, _TYPES.TYPE_BYTES, True),),
    "XSpace": (("planes", 1, ".ringserve.profiler.XPlane", True),),
}


def _message_classes() -> dict[str, Any]:
    # Under a name of our own: another library of this process may bring the official one, and a name is given once.
    file = descriptor_pb2.FileDescriptorProto(
        name="ringserve/profiler_service.proto",
        package="ringserve.profiler",
        syntax="proto3",
        dependency=[profiler_options_pb2.DESCRIPTOR.name],
    )
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _TYPES.TYPE_MESSAGE, kind
            else:
                field.type = _TYPES.Type.ValueType(kind)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ringserve.profiler.{name}"))
        for name in _FIELDS
    }


_classes = _message_classes()
ProfileRequest: Final[Any] = _classes["ProfileRequest"]
ProfileResponse: Final[Any] = _classes["ProfileResponse"]
TerminateRequest: Final[Any] = _classes["TerminateRequest"]
MonitorRequest: Final[Any] = _classes["MonitorRequest"]
MonitorResponse: Final[Any] = _classes["MonitorResponse"]
XSpace: Final[Any] = _classes["XSpace"]

_OPTIONS: Final = ("host_tracer_level", "device_tracer_level", "python_tracer_level")

# -------------------------------------------------------------------------------------------------------- the service


class Profiler:
    """Answers the calls of one worker. tell: takes late answers, from any thread. title: of the worker, for Monitor."""

    def __init__(self, tell: Callable[[Told], None], title: str) -> None:
        self._tell = tell
        self._title = title
        #: The profile that runs: its session and how it is ended. TensorFlow has one at a time.
        self._session_id = ""
        self._end: threading.Event | None = None

    def answer(self, ask: Ask) -> Told | None:
        """The answer, or None when it comes later through `tell`. Call it in the serving thread."""
        calls = {
            "profile/Profile": (ProfileRequest, self._on_profile),
            "profile/Monitor": (MonitorRequest, self._on_monitor),
            "profile/Terminate": (TerminateRequest, self._on_terminate),
        }
        if ask.verb == "canary":  # from `broker/operators.py`: that this worker answers is all that is asked
            return Told(ask.ask_id, int(Code.OK), "", b"")
        if ask.verb not in calls:
            return Told(ask.ask_id, int(Code.UNIMPLEMENTED), f"A worker does not know how to {ask.verb}.", b"")
        message_class, call = calls[ask.verb]
        try:
            request = message_class.FromString(ask.body)
        except DecodeError as error:
            return Told(ask.ask_id, int(Code.INVALID_ARGUMENT), f"The request cannot be parsed: {error}", b"")
        if getattr(request, "duration_ms", 0) > _DURATION_MS_MAX:
            text = f"duration_ms may be {_DURATION_MS_MAX} at most."
            return Told(ask.ask_id, int(Code.INVALID_ARGUMENT), text, b"")
        return call(ask.ask_id, request)

    def _on_profile(self, ask_id: int, request: Any) -> Told | None:
        if self._end is not None:
            return Told(ask_id, int(Code.INTERNAL), "Another profiling session is active.", b"")
        self._session_id = request.session_id
        self._end = threading.Event()
        self._start(self._profile, ask_id, request, self._end)
        return None

    def _on_monitor(self, ask_id: int, request: Any) -> Told | None:
        self._start(self._monitor, ask_id, request)
        return None

    def _on_terminate(self, ask_id: int, request: Any) -> Told | None:
        if self._end is not None and request.session_id == self._session_id:
            self._end.set()
        return Told(ask_id, int(Code.OK), "", b"")

    def _start(self, work: Callable[..., Told], ask_id: int, *arguments: Any) -> None:
        def run() -> None:
            try:
                told = work(ask_id, *arguments)
            except Exception as error:  # an operator's call must not end a worker that serves
                told = Told(ask_id, int(Code.INTERNAL), f"{type(error).__name__}: {error}", b"")
            self._tell(told)

        threading.Thread(target=run, name="profiler", daemon=True).start()

    # ----------------------------------------------------------------------------------------------- side threads

    def _profile(self, ask_id: int, request: Any, end: threading.Event) -> Told:
        try:
            session = _pywrap_profiler.ProfilerSession()
            # An option that is not set means TensorFlow's default, in a message without a version.
            options = {name: getattr(request.opts, name) for name in _OPTIONS} if request.opts.version else {}
            with tempfile.TemporaryDirectory(prefix="ringserve-profile-") as folder:
                session.start(folder, options)
                end.wait(request.duration_ms / 1000)
                # `session.stop()` would give the events of the trace viewer, which are no XSpace.
                session.export_to_tb()
                trace = b"".join(file.read_bytes() for file in Path(folder).rglob("*.xplane.pb"))
        finally:
            self._end = None
        if len(trace) > _TRACE_BYTES_MAX:
            text = f"The trace has {len(trace)} bytes, {_TRACE_BYTES_MAX} are the limit: profile for a shorter time."
            return Told(ask_id, int(Code.RESOURCE_EXHAUSTED), text, b"")
        response = ProfileResponse(empty_trace=not any(plane.lines for plane in XSpace.FromString(trace).planes))
        if request.emit_xspace:
            response.xspace = trace
        else:
            response.tool_data.add(name="xplane.pb", data=trace)
        return Told(ask_id, int(Code.OK), "", response.SerializeToString())

    def _monitor(self, ask_id: int, request: Any) -> Told:
        before = _cpu_s()
        # A request without a duration is answered from the worker's whole life.
        threading.Event().wait(request.duration_ms / 1000)
        lines = [time.strftime("Timestamp: %H:%M:%S", time.gmtime())] if request.timestamp else []
        lines.append(f"Worker: {self._title}, process {os.getpid()}, TensorFlow {tf.__version__}")
        if request.duration_ms:
            used = 100_000 * (_cpu_s() - before) / request.duration_ms
            lines.append(f"CPU: {used:.1f} % of one core over {request.duration_ms} ms")
        else:
            lines.append(f"CPU: {before:.1f} s since it was forked")
        lines.append(f"Peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB:.0f} MiB")
        response = MonitorResponse(data="\n".join(lines) + "\n")
        return Told(ask_id, int(Code.OK), "", response.SerializeToString())


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
