"""The pool process and the worker processes that it forks: start -> loop -> stop."""

from __future__ import annotations

import functools
import os
import time

from ringserve.broker.messages import Fork
from ringserve.config import process
from ringserve.config.schema import Settings
from ringserve.workers import device
from ringserve.workers.pool import Pool, freeze_before_forks


def run(settings: Settings, *, name: str, death_fd: int, run_dir: str) -> int:
    """Be the pool: import TensorFlow, fork workers on order, until stopped. Returns the exit status."""
    process.begin(name, settings.server.log_level, settings.server.log_format)
    stop = process.StopWatch(death_fd)
    device.prepare(settings.workers.threads_per_worker, None)
    import ringserve.workers.serve  # noqa: F401  (imports TensorFlow, which takes seconds)

    freeze_before_forks()
    run_worker = functools.partial(_run_worker, settings, run_dir)
    pool = Pool(os.path.join(run_dir, "broker.sock"), run_worker, stop_fd=stop.fd, leave=stop.close)
    process.tell_ready()
    pool.run()
    return process.Exit.OK


def _run_worker(settings: Settings, run_dir: str, order: Fork, pool_fd: int) -> int:
    """Be a worker: load, warm, serve, until stopped or the pool is gone."""
    from ringserve.workers.execute import Executor
    from ringserve.workers.link import Link, PoolGone, StopOrdered
    from ringserve.workers.servable import Servable
    from ringserve.workers.serve import Worker, load_models, make_result_ring

    name = f"worker-{order.worker_index}"
    process.begin(name, settings.server.log_level, settings.server.log_format)
    stop = process.StopWatch()
    device.pin(order.cpu)
    segment, ring = make_result_ring(name, settings.shm.result_ring_bytes)
    link = Link(
        os.path.join(run_dir, "broker.sock"),
        os.path.join(run_dir, f"{name}-{os.getpid()}.inbox"),
        segment,
        worker_index=order.worker_index,
        generation=order.generation,
        pool_fd=pool_fd,
        wake_fds=(stop.fd,),
    )
    try:
        link.register()
        tags = tuple(settings.workers.saved_model_tags.split(","))
        load = functools.partial(Servable.load, tags=tags, threads=order.threads)
        servables, reports = load_models([(model.name, model.version, model.path) for model in order.models], load)
        executor = Executor(servables, link.rings, ring, segment.data, link.worker_id)
        process.freeze_heap()
        worker = Worker(
            link,
            executor,
            segment,
            ring,
            reports,
            stopping=lambda: stop.wanted() is not None,
            clock=time.monotonic_ns,
        )
        worker.announce()
        worker.serve()
    except (PoolGone, StopOrdered):
        pass
    link.close()
    return process.Exit.OK
