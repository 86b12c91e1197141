"""tensorflow.ProfilerService in a worker: real traces of real runs, read with TensorFlow's own message classes."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Ask, Code, Told
from tests.workers.desk import lane, rows_of


@pytest.fixture
def told() -> queue.Queue[Told]:
    return queue.Queue()


@pytest.fixture
def profiler(tf: Any, told: queue.Queue[Told]) -> Any:
    from ringserve.workers.profile import Profiler

    return Profiler(told.put, "worker-3")


def profile(session_id: str = "s", duration_ms: int = 60_000, **fields: Any) -> Ask:
    from ringserve.workers.profile import ProfileRequest

    request = ProfileRequest(session_id=session_id, duration_ms=duration_ms, **fields)
    return Ask(5, "profile/Profile", request.SerializeToString())


def terminate(session_id: str) -> Ask:
    from ringserve.workers.profile import TerminateRequest

    return Ask(6, "profile/Terminate", TerminateRequest(session_id=session_id).SerializeToString())


@pytest.mark.parametrize(("ordinary", "emit_xspace"), [(False, False), (True, False), (True, True)])
def test_a_trace_of_what_ran_meanwhile(
    profiler: Any,
    told: queue.Queue[Told],
    load: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    ordinary: bool,
    emit_xspace: bool,
) -> None:
    """The ordinary executor tells the profiler of ops, the single-threaded one of whole runs only."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from ringserve.workers import session
    from ringserve.workers.profile import ProfileResponse

    if ordinary:
        monkeypatch.setattr(session, "SINGLE_THREADED", session.ORDINARY)
    servable = load("mlp")
    x = np.ones((2, 784), np.float32)
    plan = servable.plan(lane(servable, {"x": x}, ["probabilities"]))
    assert profiler.answer(profile(duration_ms=200, emit_xspace=emit_xspace)) is None
    while told.empty():
        plan.run([x])
    answer = told.get()
    assert (answer.ask_id, answer.code) == (5, int(Code.OK))
    response = ProfileResponse.FromString(answer.body)
    assert not response.empty_trace
    if emit_xspace:
        serialized = response.xspace
        assert not response.tool_data
    else:
        ((tool, serialized),) = [(data.name, data.data) for data in response.tool_data]
        assert tool == "xplane.pb"
    planes = {plane.name: plane for plane in xplane_pb2.XSpace.FromString(serialized).planes}
    events = {metadata.name for metadata in planes["/host:CPU"].event_metadata.values()}
    assert any("Session" in event for event in events), events
    assert any("MatMul" in event for event in events) is ordinary, events


def test_one_at_a_time_until_it_is_ended(profiler: Any, told: queue.Queue[Told]) -> None:
    for _ in range(2):
        assert profiler.answer(profile()) is None
        # Somebody else's end does not end it; a second profile at the same time is refused.
        assert profiler.answer(terminate("other")) == Told(6, int(Code.OK), "", b"")
        text = "Another profiling session is active."
        assert profiler.answer(profile("second")) == Told(5, int(Code.INTERNAL), text, b"")
        assert told.empty()
        profiler.answer(terminate("s"))
        assert told.get(timeout=60).code == int(Code.OK)


def test_the_messages_are_tensorflows_on_the_wire(tf: Any) -> None:
    """Field numbers as in the official headers; an unknown field of a client does no harm."""
    from ringserve.workers.profile import MonitorResponse, ProfileRequest, ProfileResponse

    request = ProfileRequest.FromString(
        b"\x08\x07"
        + b"\x1a\x01t"
        + b"\x22\x04\x28\x01\x10\x02"
        + b"\x2a\x02/r"
        + b"\x32\x01s"
        + b"\x3a\x01h"
        + b"\x48\x01"
    )
    assert (request.duration_ms, request.session_id, request.emit_xspace) == (7, "s", True)
    assert (request.opts.version, request.opts.host_tracer_level) == (1, 2)
    response = ProfileResponse(empty_trace=True)
    response.tool_data.add(name="n", data=b"d")
    assert response.SerializeToString() == b"\x32\x06\x0a\x01n\x12\x01d\x38\x01"
    assert MonitorResponse(data="x").SerializeToString() == b"\x0a\x01x"


@pytest.mark.parametrize(
    ("verb", "body", "code", "text"),
    [
        ("profile/Profile", b"\xff", Code.INVALID_ARGUMENT, "The request cannot be parsed: "),
        ("profile/Profile", b"\x08\xc1\xcf\x24", Code.INVALID_ARGUMENT, "duration_ms may be 600000 at most."),
        ("profile/Else", b"", Code.UNIMPLEMENTED, "A worker does not know how to profile/Else."),
    ],
)
def test_what_is_refused(profiler: Any, verb: str, body: bytes, code: Code, text: str) -> None:
    answer = profiler.answer(Ask(9, verb, body))
    assert (answer.ask_id, answer.code, answer.text[: len(text)]) == (9, int(code), text)


@pytest.mark.parametrize("duration_ms", [0, 5])
def test_monitor(profiler: Any, told: queue.Queue[Told], duration_ms: int) -> None:
    from ringserve.workers.profile import MonitorRequest, MonitorResponse

    request = MonitorRequest(duration_ms=duration_ms, monitoring_level=1, timestamp=True)
    assert profiler.answer(Ask(8, "profile/Monitor", request.SerializeToString())) is None
    answer = told.get(timeout=60)
    assert (answer.ask_id, answer.code) == (8, int(Code.OK))
    lines = MonitorResponse.FromString(answer.body).data.splitlines()
    assert lines[0].startswith("Timestamp: ")
    assert lines[1].startswith("Worker: worker-3, process ")
    assert lines[2].startswith("CPU: ")


def test_a_bug_in_a_side_thread_is_an_answer(
    profiler: Any, told: queue.Queue[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow.python.profiler.internal import _pywrap_profiler

    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no profiler in this build")

    monkeypatch.setattr(_pywrap_profiler, "ProfilerSession", Broken)
    assert profiler.answer(profile()) is None
    assert told.get(timeout=60) == Told(5, int(Code.INTERNAL), "RuntimeError: no profiler in this build", b"")
    monkeypatch.undo()
    assert profiler.answer(profile(duration_ms=1)) is None
    assert told.get(timeout=60).code == int(Code.OK)


def test_profiling_leaves_answers_as_they_are(
    profiler: Any, told: queue.Queue[Told], served: Callable[[str], Any]
) -> None:
    servable = served("half")
    plan = servable.plan(lane(servable, rows_of(1.0), ["y"]))
    profiler.answer(profile())
    assert plan.run([rows_of(1.0, 2.0, 5.0)["x"]])[0].tolist() == [2.5, 3.0, 4.5]
    profiler.answer(terminate("s"))
    assert told.get(timeout=60).code == int(Code.OK)
