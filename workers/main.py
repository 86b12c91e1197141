"""The pool process and the worker processes that it forks: start -> loop -> stop."""

from __future__ import annotations

import functools
import gc
import logging
import time

from ringserve.broker.messages import Fork
from ringserve.config import log_stream, process
from ringserve.config.schema import Settings
from ringserve.workers import device
from ringserve.workers.pool import Pool, freeze_before_forks
from ringserve.workers.quiet import quiet
from ringserve.workers.stop_signals import StopSignals
from ringserve.workers.stopped import StoppedChildren


def run(settings: Settings, *, name: str, death_fd: int, broker_path: str) -> int:
    """Be the pool: import TensorFlow, fork workers on order, until stopped. Returns the exit status."""
    process.begin(name, settings.server.log_level, settings.server.log_format)
    log_stream.never_wait(1)  # models may print to it, too
    stop = process.StopWatch(death_fd)
    device.prepare(settings.workers.threads_per_worker, verbose=settings.server.log_level == "debug")
    gc.disable()  # imports leave little to collect, and looking for it takes a seventh of their time
    with quiet(settings.server.log_level):
        # They import TensorFlow, which takes seconds.
        import ringserve.workers.author
        import ringserve.workers.opening
        import ringserve.workers.profile
        import ringserve.workers.serve
        import ringserve.workers.tflite

        if settings.lifecycle.prefer_tflite_model:
            ringserve.workers.tflite.available()  # imports its interpreter
    freeze_before_forks()
    gc.enable()
    run_worker = functools.partial(_run_worker, settings, broker_path)
    run_author = functools.partial(ringserve.workers.author.run, settings)
    beat = process.Heartbeat().beat
    stopped = StoppedChildren() if settings.server.hang_ms_max else None
    pool = Pool(broker_path, run_worker, run_author, stop_fd=stop.fd, leave=stop.close, beat=beat, stopped=stopped)
    process.tell_ready()
    pool.run()
    return process.Exit.OK


def _run_worker(settings: Settings, broker_path: str, order: Fork, pool_fd: int, weights: dict[int, int]) -> int:
    """Be a worker: load, warm, serve, until stopped or the pool is gone."""
    from ringserve.workers import session
    from ringserve.workers.execute import Executor
    from ringserve.workers.link import Link, PoolGone, StopOrdered
    from ringserve.workers.opening import Opener
    from ringserve.workers.profile import Profiler
    from ringserve.workers.serve import Models, Worker, make_loader, make_result_ring, make_told, room_ns_max

    stop = StopSignals()  # before anything starts threads
    name = f"worker-{order.worker_index}"
    process.begin(name, settings.server.log_level, settings.server.log_format)
    process.end_sooner(process.WORKER_POINTS)
    if not order.first:
        # All workers of a generation warm up alike; once is enough for an operator to read.
        logging.getLogger("ringserve.workers.warmup").setLevel(logging.WARNING)
    device.settle(order.cpus, order.gpu, order.gpu_bytes_max, settings.workers)
    with quiet(settings.server.log_level):
        session.start_threads(order.threads)
    tags = tuple(settings.workers.saved_model_tags.split(","))
    opener = Opener(tags, order.threads, settings.batching, settings.lifecycle, time.monotonic_ns, weights)
    loader = make_loader(order, opener, opener.close)
    told = make_told()
    segment, ring = make_result_ring(name, settings.shm.result_ring_bytes)
    link = Link(
        broker_path,
        segment,
        worker_index=order.worker_index,
        generation=order.generation,
        pool_fd=pool_fd,
        stop_fd=stop.fd,
        wake_fds=(loader.events.fd, told.fd),
    )
    models: Models = {}
    try:
        link.register()
        traces = bool(settings.tracing.endpoint or settings.access_log.to)
        executor = Executor(models, link.rings, ring, segment.data, link.worker_id, traces=traces, awaits=link.awaits)
        worker = Worker(
            link, executor, segment, ring, models, loader,
            answer=Profiler(told.put, name).answer,
            told=told,
            stopping=stop.wanted,
            clock=time.monotonic_ns,
            room_ns_max=room_ns_max(settings.workers),
        )
        worker.serve()
    except (PoolGone, StopOrdered):
        pass
    link.close()
    return process.Exit.OK
