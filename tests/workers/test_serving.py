"""A worker beside its real neighbours: loading while it serves, what the broker is told, and leaving in the middle."""

from __future__ import annotations

import gc
import itertools
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker import wire
from ringserve.broker.messages import (
    Code,
    Dependent,
    Done,
    Execute,
    LaneSpec,
    Loaded,
    Loading,
    LoadOrder,
    ModelOptions,
    Ready,
    Stop,
    Told,
)
from ringserve.workers.interface import Independence
from tests.workers.desk import lane, rows_of
from tests.workers.functions import SPEC, FunctionModel

Start = Callable[..., tuple[Any, Any]]


@pytest.fixture
def start(tf: Any) -> Iterator[Start]:
    """Start a worker with (orders, open_model); gives the broker's end and the worker's. Both end with the test."""
    from tests.workers.broker_end import BrokerEnd, WorkerEnd, short_directory

    with short_directory() as name:
        ends: list[Any] = []

        def start(orders: list[LoadOrder], open_model: Any, **settings: Any) -> tuple[Any, Any]:
            broker = BrokerEnd(Path(name) / "b")
            worker = WorkerEnd(Path(name), orders, open_model, **settings)
            ends.extend((worker, broker))
            broker.accept(11)
            return broker, worker

        yield start
        for end in ends:
            end.close()


def order_of(name: str, version: int = 1, fallback: bool = False, options: list[Any] | None = None) -> LoadOrder:
    return LoadOrder(name, version, "", fallback, options or [])


class Models:
    """Opens models of tests/exporters.py; those of `held` wait, those of `broken` fail."""

    def __init__(self, served: Callable[[str], Any], *broken: str) -> None:
        self._served = served
        self.broken = broken
        self.held: dict[str, threading.Event] = {}
        self.opened: list[tuple[str, int]] = []

    def hold(self, name: str) -> threading.Event:
        return self.held.setdefault(name, threading.Event())

    def __call__(self, order: LoadOrder) -> Any:
        from ringserve.workers.failures import LoadError
        from ringserve.workers.loading import Opened

        self.opened.append((order.name, order.version))
        if order.name in self.held:
            assert self.held[order.name].wait(60)
        if f"{order.name}:{order.version}" in self.broken:
            raise LoadError(Code.NOT_FOUND, f"no {order.name}")
        return Opened(self._served(order.name), [f"{order.name} is warm"], 5, 0, -1)


def loaded(served: Callable[[str], Any], name: str) -> Loaded:
    return Loaded(name, 1, 0, "", served(name).signature_defs, False, [f"{name} is warm"], 5, 0, -1)


def test_each_load_is_announced_and_what_succeeded_is_ready_at_once(start: Start, served: Any) -> None:
    orders = [order_of("half"), order_of("echo"), order_of("mlp")]
    broker, _ = start(orders, Models(served, "echo:1"))
    assert broker.until(Ready([["half", 1], ["mlp", 1]], True)) == [
        Loading("half", 1),
        loaded(served, "half"),
        Ready([["half", 1]], False),
        Loading("echo", 1),
        Loaded("echo", 1, int(Code.NOT_FOUND), "no echo", b""),
        Loading("mlp", 1),
        loaded(served, "mlp"),
        Ready([["half", 1], ["mlp", 1]], False),
        Ready([["half", 1], ["mlp", 1]], True),
    ]


def test_a_worker_without_models_is_complete(start: Start, served: Any) -> None:
    broker, _ = start([], Models(served))
    assert broker.until(Ready([], True)) == [Ready([], True)]


def test_a_bug_in_one_load_leaves_the_others(start: Start, served: Any) -> None:
    models = Models(served)

    def open_model(order: LoadOrder) -> Any:
        if order.name == "echo":
            raise KeyError("nothing")
        return models(order)

    broker, _ = start([order_of("echo"), order_of("half")], open_model)
    messages = broker.until(Ready([["half", 1]], True))
    (report,) = [m for m in messages if isinstance(m, Loaded) and m.name == "echo"]
    assert (report.error_code, report.error_text) == (int(Code.INTERNAL), "Loading ended with a KeyError: 'nothing'")


def test_it_serves_while_it_loads(start: Start, served: Any, load: Any) -> None:
    """Real loads in the loading thread while the serving thread runs sessions."""
    from ringserve.workers.loading import Opened
    from tests.workers.broker_end import FrontendEnd

    models = Models(served)
    go_on = models.hold("echo")

    def open_model(order: LoadOrder) -> Any:
        models(order)
        return Opened(load(order.name), [], 0, 0, -1)

    broker, _ = start([order_of("half"), order_of("echo"), order_of("conv")], open_model)
    broker.until(Ready([["half", 1]], False))
    broker.until(Loading("echo", 1))
    frontend = FrontendEnd(broker)
    half = lane(served("half"), rows_of(1.0), ["y"])
    assert frontend.floats(half, **rows_of(1.0, 2.0, 5.0)) == [2.5, 3.0, 4.5]
    # What is not loaded yet is refused, and the refusal is forgotten once it is.
    x = {"x": np.ones((1, 2), np.float32)}
    echo = lane(served("echo"), x, ["y"])
    (failure,) = frontend.ask(echo, **x).failures
    assert failure[1] == int(Code.UNAVAILABLE)
    go_on.set()
    for turn in range(200):
        assert frontend.floats(half, **rows_of(float(turn))) == [0.5 * turn + 2.0]
    broker.until(Ready([["half", 1], ["echo", 1], ["conv", 1]], True))
    assert frontend.floats(echo, **x) == [2.0, 2.0]
    # What the loads made is out of the collector's sight, and the collector is back.
    assert (gc.isenabled(), gc.get_freeze_count() > 0) == (True, True)


def test_the_next_broker_is_told_all_of_it(start: Start, served: Any) -> None:
    models = Models(served, "mlp:1")
    go_on = models.hold("echo")
    broker, _ = start([order_of("mlp"), order_of("half"), order_of("echo")], models)
    broker.until(Loading("echo", 1))
    broker.lose()
    broker.accept(12)
    assert broker.until(Ready([["half", 1]], False)) == [
        Loaded("mlp", 1, int(Code.NOT_FOUND), "no mlp", b"", again=True),
        loaded(served, "half")._replace(again=True),
        Loading("echo", 1),
        Ready([["half", 1]], False),
    ]
    go_on.set()
    broker.until(Ready([["half", 1], ["echo", 1]], True))
    broker.lose()
    broker.accept(13)
    messages = broker.until(Ready([["half", 1], ["echo", 1]], True))
    assert [m.name for m in messages if isinstance(m, Loaded)] == ["mlp", "half", "echo"]
    assert not [m for m in messages if isinstance(m, Loading)]


def test_what_a_frontend_may_still_read_is_kept_until_it_hangs_up(start: Start, served: Any) -> None:
    """However long the one stood still that has not noticed the old broker's end; nobody else's answers lie there."""
    from tests.workers.broker_end import FrontendEnd, wait_for

    hours = itertools.count(0, 3_600_000_000_000)
    broker, _ = start([order_of("half")], Models(served), clock=lambda: next(hours))
    broker.until(Ready([["half", 1]], True))
    spec, rows = lane(served("half"), rows_of(1.0), ["y"]), rows_of(*range(100))
    slow = FrontendEnd(broker, 1)
    first = slow.ask(spec, **rows)
    _, shape, offset = first.outputs[0]
    kept = np.ndarray(shape, np.float32, broker.results.data, offset)
    expected = kept.copy()
    broker.lose()
    broker.accept(12)
    broker.until(Ready([["half", 1]], True))
    other = FrontendEnd(broker, 2)
    records = [other.ask(spec, **rows_of(*range(1000, 1100))).record_id for _ in range(20)]
    assert first.record_id not in records
    assert np.array_equal(kept, expected)
    slow.cable.close()

    def reused() -> bool | None:
        return other.ask(spec, **rows).record_id == first.record_id or None

    wait_for(reused, "the first one's record")


def test_a_frontend_that_takes_no_answers_does_not_hold_up_those_of_others(start: Start, served: Any) -> None:
    """What it has not read takes half of the ring at most. Whoever finds no room is told so, after a while, and is
    served when there is some."""
    from tests.workers.broker_end import FrontendEnd

    hours = itertools.count(0, 3_600_000_000_000)
    broker, _ = start([order_of("echo")], Models(served), clock=lambda: next(hours))
    broker.until(Ready([["echo", 1]], True))
    x = {"x": np.ones((1, 60_000), np.float32)}
    spec = lane(served("echo"), x, ["y"])
    stopped, other = FrontendEnd(broker, 1), FrontendEnd(broker, 2)
    while not (failures := stopped.ask(spec, **x).failures):
        pass
    assert [failure[1] for failure in failures] == [Code.RESOURCE_EXHAUSTED]
    for _ in range(20):
        result = other.ask(spec, **x)
        assert not result.failures
        other.give_back(result)
    large = {"x": np.ones((1, 200_000), np.float32)}
    (failure,) = other.ask(lane(served("echo"), large, ["y"]), **large).failures
    assert failure[1] == Code.RESOURCE_EXHAUSTED
    assert "result_ring_bytes" in failure[2]
    small = {"x": np.ones((1, 2), np.float32)}
    assert other.floats(lane(served("echo"), small, ["y"]), **small) == [2.0, 2.0]
    stopped.leave()
    assert other.floats(spec, **x) == [2.0] * 60_000


def test_a_stop_while_it_loads_is_obeyed_at_once(start: Start, served: Any) -> None:
    from ringserve.workers.link import StopOrdered

    models = Models(served)
    go_on = models.hold("half")
    broker, worker = start([order_of("half")], models)
    broker.until(Loading("half", 1))
    broker.channel.send(Stop("a newer generation serves"))
    # It ends although the load never does.
    assert isinstance(worker.join(), StopOrdered)
    assert not go_on.is_set()
    go_on.set()


def test_what_waits_from_side_threads_does_not_cut_the_pauses_between_tries_to_register_short() -> None:
    from ringserve.shm.segment import Segment
    from ringserve.workers.handover import Handover
    from ringserve.workers.link import Link
    from tests.workers.broker_end import short_directory

    told: Handover[int] = Handover()
    pool, other = socket.socketpair()
    with short_directory() as name, pool, other:
        link = Link(
            f"{name}/b", Segment.create("t", 4096), worker_index=0, generation=0, pool_fd=pool.fileno(),
            wake_fds=(told.fd,),
        )  # fmt: skip
        told.put(1)
        assert (told.fd, select.POLLIN) in link._poller.poll(0)
        assert link._pauser.poll(0) == []
        assert told.take() == [1]
        assert (told.fd, select.POLLIN) not in link._poller.poll(0)
        link.close()


@pytest.mark.parametrize(
    ("orders", "broken", "expected"),
    [
        # (name, version, fallback) ... -> what is opened
        ([("m", 2, False), ("m", 1, True)], [], [("m", 2)]),
        ([("m", 2, False), ("m", 1, True)], ["m:2"], [("m", 2), ("m", 1)]),
        ([("m", 1, True), ("n", 1, False), ("m", 2, False)], ["m:2"], [("n", 1), ("m", 2), ("m", 1)]),
        ([("m", 2, False), ("m", 1, True), ("n", 1, False)], ["m:2"], [("m", 2), ("m", 1), ("n", 1)]),
        ([("m", 3, False), ("m", 2, False), ("m", 1, True)], ["m:3"], [("m", 3), ("m", 2)]),
        ([("m", 1, True)], [], [("m", 1)]),
        ([("m", 2, True), ("m", 1, True)], [], [("m", 2)]),
        ([], [], []),
    ],
)
def test_fallbacks_are_loaded_when_nothing_else_of_the_model_did(
    orders: list[tuple[str, int, bool]], broken: list[str], expected: list[tuple[str, int]]
) -> None:
    from ringserve.workers.loading import in_turn

    succeeded: set[str] = set()
    opened = []
    for order in in_turn([order_of(*fields) for fields in orders], succeeded):
        opened.append((order.name, order.version))
        if f"{order.name}:{order.version}" not in broken:
            succeeded.add(order.name)
    assert opened == expected


def test_options_of_the_order_and_of_later_messages(start: Start, served: Any) -> None:
    from ringserve.workers.loading import Opened
    from tests.workers.broker_end import FrontendEnd

    model = Recording(served("half"))
    order = order_of("half", options=[8, [4, 8], False, False, False])
    broker, _ = start([order], lambda _: Opened(model, [], 0, 0, -1))
    broker.until(Ready([["half", 1]], True))
    frontend = FrontendEnd(broker)
    spec = lane(served("half"), rows_of(1.0), ["y"])
    assert frontend.floats(spec, **rows_of(1.0, 2.0, 5.0)) == [2.5, 3.0, 4.5]
    assert model.rows == [4]
    broker.channel.send(ModelOptions("half", 16, [16], False, False, False))
    broker.ask("nothing")  # answered after the options were taken in
    assert frontend.floats(spec, **rows_of(1.0)) == [2.5]
    assert model.rows == [4, 16]


def together(frontend: Any, spec: LaneSpec, *values: float) -> Done:
    """One batch of requests of one row each; what the broker is told of it."""
    from tests.workers.broker_end import wait_for

    offsets = [frontend.ring.put(rows_of(value)["x"]) for value in values]
    frontend.batches += len(values)
    parts = [[frontend.peer_id, 1000 * frontend.batches + at, 1, 0, offset] for at, offset in enumerate(offsets)]
    frontend.broker.worker.send(wire.pack(Execute(frontend.batches, wire.pack_lane(spec), parts)))
    (data,) = wait_for(lambda: frontend.broker.worker.receive() or None, "a Done")
    return wire.unpack(data)  # type: ignore[return-value]


def test_a_worker_heeds_what_another_found(start: Start, served: Any) -> None:
    from ringserve.workers.loading import Opened
    from tests.workers.broker_end import FrontendEnd

    model = Recording(served("half"))
    broker, _ = start([order_of("half")], lambda _: Opened(model, [], 0, 0, -1))
    broker.until(Ready([["half", 1]], True))
    frontend = FrontendEnd(broker)
    spec = lane(served("half"), rows_of(1.0), ["y"])
    assert together(frontend, spec, 1.0, 2.0).parts_max == 0
    broker.channel.send(Dependent("absent", 1, "serving_default", ["y"]))
    broker.channel.send(Dependent("half", 1, "serving_default", ["y"]))
    broker.ask("nothing")  # answered after the news was taken in
    done = together(frontend, spec, 1.0, 2.0)
    assert (done.parts_left, done.parts_max, model.rows) == (1, 1, [2, 1])


def test_a_worker_tells_what_it_found(start: Start) -> None:
    from ringserve.workers.loading import Opened
    from tests.workers.broker_end import FrontendEnd

    model: Any = FunctionModel(lambda x: x - x.mean(), Independence.SHOWN)
    broker, _ = start([order_of("m")], lambda _: Opened(model, [], 0, 0, -1))
    broker.until(Ready([["m", 1]], True))
    frontend = FrontendEnd(broker)
    for _ in range(5):
        together(frontend, SPEC, 1.0, 2.0)
    broker.until(Dependent("m", 1, "s", ["y"]))
    assert (model.runs[:4], model.runs.count(2)) == ([2] * 4, 5)


class Recording:
    """A model that notes how many rows it is fed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def plan(self, spec: Any) -> Any:
        plan = self._model.plan(spec)
        recording = self

        class Plan:
            per_row, changes_state, output_dtypes = plan.per_row, plan.changes_state, plan.output_dtypes
            independence = plan.independence

            def run(self, feeds: list[Any]) -> list[Any]:
                recording.rows.append(len(feeds[0]))
                answers: list[Any] = plan.run(feeds)
                return answers

        return Plan()


def test_operators_calls_are_answered_at_once_or_later(start: Start, served: Any) -> None:
    from ringserve.workers.handover import Handover

    told: Handover[Told] = Handover()

    def answer(ask: Any) -> Told | None:
        if ask.verb == "later":
            threading.Thread(target=lambda: told.put(Told(ask.ask_id, 0, "", ask.body * 2))).start()
            return None
        return Told(ask.ask_id, int(Code.UNIMPLEMENTED), ask.verb, b"")

    broker, _ = start([], Models(served), answer=answer, told=told)
    assert broker.ask("what") == Told(7, int(Code.UNIMPLEMENTED), "what", b"")
    assert broker.ask("later", b"xy") == Told(7, 0, "", b"xyxy")
