"""Faults inside a server under test: each of its processes runs this file first, as PYTHONPATH names its folder.

It wraps a few functions of ringserve (`POINTS`). When a process comes to one of these points and an order for it lies
in the folder `RS_FAULTS`, the first process there takes the order (by renaming its file, so that it counts once) and
obeys it. Nothing in ringserve knows of this. Orders are made by tests/faults/orders.py; their words:

    hold     wait until the order's file is removed, or says something else; a test does meanwhile what it wants, at
             this exact moment
    kill, stop, abort, exit     what it says, to this very process
    raise N  OSError with errno N in place of the function
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_FOLDER = os.environ.get("RS_FAULTS", "")

#: Where a process can be made to fail: name -> (module, function or Class.method).
POINTS = {
    "broker.start": ("ringserve.broker.main", "run"),
    "broker.save": ("ringserve.broker.state_file", "StateFile.save"),
    "pool.start": ("ringserve.workers.main", "run"),
    "pool.fork": ("ringserve.workers.pool", "Pool._spawn"),
    "pool.vault": ("ringserve.workers.vault", "Vault.open"),
    "frontend.start": ("ringserve.frontend.main", "run"),
    "worker.start": ("ringserve.workers.main", "_run_worker"),
    "worker.load": ("ringserve.workers.loading", "Loader._load"),
    "worker.batch": ("ringserve.workers.execute", "Executor._call"),
    "worker.result": ("ringserve.workers.serve", "Worker._send"),
    "worker.leave": ("ringserve.workers.link", "Link.close"),
    "author.start": ("ringserve.workers.author", "run"),
    "author.write": ("ringserve.workers.weights", "WeightsWriter.add"),
    "segment": ("ringserve.shm.segment", "Segment.create"),
    "supervisor.start": ("ringserve.children", "Child.start"),
}


def _take(point: str) -> tuple[str, str]:
    """(word and number of an order for this point, its file, which is ours now); empty when there is none."""
    prefix = f"{point}@"
    for name in sorted(os.listdir(_FOLDER)):
        if name.startswith(prefix):
            mine = os.path.join(_FOLDER, f"taken-{name}-{os.getpid()}")
            try:
                os.rename(os.path.join(_FOLDER, name), mine)
            except FileNotFoundError:
                continue  # another process was quicker
            with open(mine, encoding="ascii") as file:
                return file.read(), mine
    return "", ""


def _obey(point: str) -> None:
    order, path = _take(point)
    word, _, number = order.partition(" ")
    while word == "hold":
        time.sleep(0.002)  # polls for the file by whose removal the test lets this process go on
        try:
            with open(path, encoding="ascii") as file:
                word = file.read()
        except FileNotFoundError:
            word = ""
    if word in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if word == "kill" else signal.SIGSTOP)
    elif word == "abort":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
    elif word == "exit":
        os._exit(3)
    elif word == "raise":
        raise OSError(int(number), os.strerror(int(number)))


def _wrap(point: str, function: Any) -> Any:
    if point == "worker.result":
        return _between_result_and_done(function)
    inner = function.__func__ if isinstance(function, classmethod) else function

    def wrapper(*arguments: Any, **named: Any) -> Any:
        _obey(point)
        return inner(*arguments, **named)

    return classmethod(wrapper) if isinstance(function, classmethod) else wrapper


def _between_result_and_done(send: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """The worker's messages of one batch, with a moment between the Results and the Done."""

    def wrapper(worker: Any, batch: Any) -> None:
        if batch.done is not None and any(name.startswith("worker.result@") for name in os.listdir(_FOLDER)):
            done, batch.done = batch.done, None
            send(worker, batch)
            time.sleep(0.05)  # in which the frontends answer
            _obey("worker.result")
            batch.done = done
        send(worker, batch)

    return wrapper


def _change(module: ModuleType) -> None:
    for point, (name, path) in POINTS.items():
        if name == module.__name__:
            *owners, attribute = path.split(".")
            owner: Any = module
            for part in owners:
                owner = getattr(owner, part)
            setattr(owner, attribute, _wrap(point, owner.__dict__[attribute]))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of POINTS as ever, and changes them when they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(fullname == module for module, _ in POINTS.values()):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _change(module)

            loader.exec_module = exec_module
        return spec


if _FOLDER:
    sys.meta_path.insert(0, _Finder())
