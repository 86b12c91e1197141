"""Classify, Regress and MultiInference over gRPC: raw Examples in, results out, both without an object per example.

What is checked, and what the model is fed, stands in `examples.py`. A MultiInference is as many requests as it has
tasks, each of which shares batches with Classify and Regress; its answer is there when the last of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import ModelSpec
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, ServableView
from ringserve.frontend.examples import (
    Classes,
    Kind,
    bind_examples,
    classes_of,
    examples_count,
    find_example_signature,
    regressions,
    with_context,
)
from ringserve.frontend.grpc_encoder import Done, encode_aside
from ringserve.frontend.grpc_models import parsed
from ringserve.frontend.grpc_protos import RawExampleRequest, RawMultiInferenceRequest
from ringserve.frontend.grpc_reply import GrpcReply, InferClient, refuse
from ringserve.frontend.handler import Buffer, Call, UnaryHandler
from ringserve.frontend.lanes import Lane, LaneTable, Request
from ringserve.frontend.outputs import Output
from ringserve.frontend.predict_codec import model_spec_of
from ringserve.frontend.status import grpc_text
from ringserve.frontend.tally import Tally
from ringserve.frontend.tensor_proto import varint

_MULTI: Final = "MultiInference"
_ZERO: Final = bytes(4)
#: Classes and values that are encoded in the event loop: some milliseconds. More are encoded by a thread.
_AT_ONCE_MAX: Final = 8_192
_KIND_OF: Final = {kind.method_name: kind for kind in Kind}


def examples_of(raw_input: Any, bytes_max: int) -> list[bytes] | Failure:
    """The serialized Examples of a RawInput, each with its context in front; none when there is no input.

    bytes_max: see `with_context`.
    """
    kind = raw_input.WhichOneof("kind")
    if kind == "example_list":
        return list(raw_input.example_list.examples)
    if kind == "example_list_with_context":
        both = raw_input.example_list_with_context
        return with_context(b"".join(both.context), both.examples, bytes_max)
    return []


# ---------------------------------------------------------------------------------------------------------- encoding


def _field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    return b"".join((tag, varint(len(content)), content))


def encode_classes(classes: Classes) -> bytes:
    """A serialized ClassificationResult. As in all of protobuf, empty labels and scores of +0 are left out."""
    examples, width, labels, scores = classes
    values = _floats(scores) if scores is not None else [_ZERO] * (examples * width)
    if labels is None:
        scored, bare = _class_around(b"")
        pieces = [scored + value if value != _ZERO else bare for value in values]
    else:
        around = {label: _class_around(label) for label in set(labels)}  # few, however many rows
        pairs = zip(labels, values, strict=True)
        pieces = [around[label][0] + value if value != _ZERO else around[label][1] for label, value in pairs]
    return b"".join([_field(b"\x0a", b"".join(pieces[row * width : (row + 1) * width])) for row in range(examples)])


def _class_around(label: bytes) -> tuple[bytes, bytes]:
    """A Class of this label, as a field: all that stands before its score, and the whole of it without a score."""
    head = _field(b"\x0a", label) if label else b""
    return b"\x0a" + varint(len(head) + 5) + head + b"\x15", _field(b"\x0a", head)


def encode_regressions(values: npt.NDArray[np.float32]) -> bytes:
    """A serialized RegressionResult. values: float32 [examples]."""
    return b"".join([b"\x0a\x05\x0d" + value if value != _ZERO else b"\x0a\x00" for value in _floats(values)])


def _floats(values: npt.NDArray[np.float32]) -> list[bytes]:
    """The bytes of each value, row-major."""
    raw = values.tobytes()
    return [raw[at : at + 4] for at in range(0, len(raw), 4)]


def _encode_spec(lane: Lane) -> bytes:
    """The serialized ModelSpec of what ran in a lane: name, the version that ran, the effective signature."""
    encoded: bytes | None = lane.answers.get(None)
    if encoded is None:
        spec = ModelSpec(name=lane.spec.model, signature_name=lane.spec.signature)
        spec.version.value = lane.spec.version
        spec.version.SetInParent()  # version 0 is a version too
        encoded = lane.answers[None] = spec.SerializeToString()
    return encoded


def _encode_result(
    kind: Kind, lane: Lane, outputs: Sequence[Output], row_first: int, rows: int, done: Done, call: Call | None
) -> None:
    """Tell `done` of a serialized ClassificationResult or RegressionResult, or what is wrong with the outputs: now, or
    later where it takes long. call: who waits, None when it has gone."""
    if kind is Kind.CLASSIFY:
        classes = classes_of(lane, outputs, row_first, rows)
        if isinstance(classes, Failure):
            done(classes)
        elif classes.examples * (classes.width + 1) <= _AT_ONCE_MAX:
            done(encode_classes(classes))
        else:
            if classes.scores is not None:
                classes = classes._replace(scores=classes.scores.copy())
            encode_aside(encode_classes, classes, done, lane.spec.model, call)
        return
    values = regressions(lane, outputs, row_first, rows)
    if isinstance(values, Failure):
        done(values)
    elif values.size <= _AT_ONCE_MAX:
        done(encode_regressions(values))
    else:
        encode_aside(encode_regressions, values.copy(), done, lane.spec.model, call)


# ----------------------------------------------------------------------------------------------- Classify and Regress


class _ExamplesReply(GrpcReply):
    __slots__ = ()
    kind: Kind

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        if self.call is not None:
            self.tally.run(self.api, self.lane.spec.model, self.run_ns)
            _encode_result(self.kind, self.lane, outputs, row_first, rows, self._encoded, self.call)

    def _encoded(self, result: bytes | Failure) -> None:
        if isinstance(result, Failure):
            self.fail(*result)
        else:
            self.finish(_field(b"\x0a", result) + _field(b"\x12", _encode_spec(self.lane)))


class _ClassifyReply(_ExamplesReply):
    __slots__ = ()
    api = "Classify"
    kind = Kind.CLASSIFY


class _RegressReply(_ExamplesReply):
    __slots__ = ()
    api = "Regress"
    kind = Kind.REGRESS


_REPLIES: Final = {Kind.CLASSIFY: _ClassifyReply, Kind.REGRESS: _RegressReply}


def examples_method(
    kind: Kind,
    client: InferClient,
    lanes: LaneTable,
    tally: Tally,
    timeout_ns: int = 0,
    *,
    check_method_name: bool = False,
    bytes_max: int = 2**30,
) -> UnaryHandler:
    """The handler of Classify or Regress. timeout_ns: of calls without a deadline; 0 = none. bytes_max: see
    `with_context`."""
    reply_class, catalog, clock_ns = _REPLIES[kind], client.catalog, tally.clock_ns
    api = reply_class.api

    def bind(request: Any) -> Request | Failure:
        if isinstance(request, Failure):
            return request
        if not request.HasField("model_spec"):
            return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        servable = catalog.resolve(*model_spec_of(request))
        if isinstance(servable, Failure):
            return servable
        signature, examples = request.model_spec.signature_name, examples_of(request.input, bytes_max)
        if isinstance(examples, Failure):
            return examples
        return bind_examples(lanes, servable, signature, examples, kind, check_method_name=check_method_name)

    def handle(call: Call, message: Buffer) -> None:
        started_ns = clock_ns()
        request = parsed(RawExampleRequest, message)
        bound = bind(request)
        if isinstance(bound, Failure):
            model = "" if isinstance(request, Failure) else request.model_spec.name
            refuse(call, bound, tally, api, model, started_ns)
            return
        reply = reply_class(call, client, bound.lane, tally, started_ns)
        request_id = client.infer(bound.lane, bound.rows, bound.payloads, call.timeout_ns or timeout_ns, reply)
        if request_id >= 0 and reply.call is not None:
            reply.request_id = request_id
            call.on_cancel(reply.cancel)

    return handle


# ----------------------------------------------------------------------------------------------------- MultiInference


class _Task(NamedTuple):
    kind: Kind
    request: Request


class _Joint:
    """The tasks of one MultiInference. It holds its call until the last result is there, or the first failure.

    on_run: told when all tasks have ended well.
    """

    def __init__(self, call: Call, client: InferClient, tasks: Sequence[_Task], on_run: Callable[[], None]) -> None:
        self.call: Call | None = call
        self._client = client
        self._on_run = on_run
        self._request_ids: list[int] = []
        self._results: list[bytes] = [b""] * len(tasks)
        self._missing = len(tasks)

    def run(self, tasks: Sequence[_Task], timeout_ns: int) -> None:
        """Hand all requests to the client."""
        for index, task in enumerate(tasks):
            lane, rows, payloads = task.request
            request_id = self._client.infer(lane, rows, payloads, timeout_ns, _TaskReply(self, index, task))
            if self.call is None:
                return  # this task was refused (and those before it are cancelled), or it was the last result
            self._request_ids.append(request_id)
        if self.call is not None:
            self.call.on_cancel(self.cancel)

    def result(self, index: int, result: bytes | Failure) -> None:
        """One task's InferenceResult."""
        call = self.call
        if call is None:
            return
        if isinstance(result, Failure):
            self.fail(result.code, result.text)
            return
        self._results[index] = result
        self._missing -= 1
        if not self._missing:
            self.call = None
            self._on_run()
            call.finish(b"".join([_field(b"\x0a", each) for each in self._results]))

    def fail(self, code: int, text: str) -> None:
        """One task failed, and with it the call."""
        call = self.call
        if call is not None:
            self.call = None
            self._cancel_requests()
            call.fail(code, grpc_text(text))

    def cancel(self) -> None:
        """The client of the call has gone."""
        if self.call is not None:
            self.call = None
            self._cancel_requests()

    def _cancel_requests(self) -> None:
        """Nobody waits for the other tasks. Those that are over already are not known any more, and ignored."""
        request_ids, self._request_ids = self._request_ids, []
        for request_id in request_ids:
            self._client.cancel(request_id)


class _TaskReply:
    """Who waits for one task."""

    __slots__ = ("_index", "_joint", "_kind", "_lane")

    def __init__(self, joint: _Joint, index: int, task: _Task) -> None:
        self._joint = joint
        self._index = index
        self._kind = task.kind
        self._lane = task.request.lane

    @property
    def api(self) -> str:
        """What the request is like, for whoever records it."""
        return _REPLIES[self._kind].api

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        _encode_result(self._kind, self._lane, outputs, row_first, rows, self._encoded, self._joint.call)

    def _encoded(self, result: bytes | Failure) -> None:
        if not isinstance(result, Failure):
            tag = b"\x12" if self._kind is Kind.CLASSIFY else b"\x1a"
            result = _field(b"\x0a", _encode_spec(self._lane)) + _field(tag, result)
        self._joint.result(self._index, result)

    def fail(self, code: int, text: str) -> None:
        self._joint.fail(code, text)


def multi_inference_method(
    client: InferClient, lanes: LaneTable, tally: Tally, timeout_ns: int = 0, *, check_method_name: bool = False,
    bytes_max: int = 2**30,
) -> UnaryHandler:  # fmt: skip
    """The handler of MultiInference. timeout_ns: of calls without a deadline; 0 = none. bytes_max: see
    `with_context`."""
    catalog, clock_ns = client.catalog, tally.clock_ns

    def bind(request: Any) -> list[_Task] | Failure:
        if isinstance(request, Failure):
            return request
        # As in TF Serving, the first task says which version all of them use.
        name, version, label = model_spec_of(request.tasks[0]) if request.tasks else ("", None, None)
        servable = catalog.resolve(name, version, label)
        if isinstance(servable, Failure):
            return servable
        kinds = _kinds_of(servable, request.tasks, check_method_name=check_method_name)
        if isinstance(kinds, Failure):
            return kinds
        examples = examples_of(request.input, bytes_max)
        if isinstance(examples, Failure):
            return examples
        tasks: list[_Task] = []
        for task, kind in zip(request.tasks, kinds, strict=True):
            bound = bind_examples(lanes, servable, task.model_spec.signature_name, examples, kind)
            if isinstance(bound, Failure):
                return bound
            tasks.append(_Task(kind, bound))
        return tasks

    def handle(call: Call, message: Buffer) -> None:
        tasks = bind(parsed(RawMultiInferenceRequest, message))
        if isinstance(tasks, Failure):
            call.fail(tasks.code, grpc_text(tasks.text))
            return
        run_ns = clock_ns()
        lane, rows, _ = tasks[0].request
        model, count = lane.spec.model, examples_count(lane, rows)

        def on_run() -> None:
            tally.run(_MULTI, model, run_ns)  # the one API that is counted by its examples, not its requests
            tally.examples(model, count)

        _Joint(call, client, tasks, on_run).run(tasks, call.timeout_ns or timeout_ns)

    return handle


def _kinds_of(servable: ServableView, tasks: Sequence[Any], *, check_method_name: bool) -> list[Kind] | Failure:
    """What each task asks for. TF Serving's checks of the tasks, in its order and words."""
    kinds: list[Kind] = []
    seen: set[str] = set()
    for task in tasks:
        name = task.model_spec.name
        if not name:
            return Failure(Code.INVALID_ARGUMENT, "Found ModelSpec with an empty model name.")
        if name != servable.name:
            return Failure(
                Code.INVALID_ARGUMENT, "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        signature = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature in seen:
            return Failure(Code.INVALID_ARGUMENT, f"Duplicate evaluation of signature: {signature}")
        seen.add(signature)
        if signature not in servable.signatures:
            return Failure(Code.INVALID_ARGUMENT, f"Requested signature not found in model graph: {signature}")
        kind = _KIND_OF.get(task.method_name)
        if kind is None:
            return Failure(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        found = find_example_signature(servable, signature, kind, check_method_name=check_method_name)
        if isinstance(found, Failure):
            return found
        kinds.append(kind)
    return kinds
