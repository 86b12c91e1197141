"""A TensorFlow session for one graph, and calls of it that run on the caller's own thread.

`make_call` is the only place that knows the private API which makes a call cheap; when a TensorFlow lacks it, the
public API does the same work slower. Nothing here may run before a worker has been forked: making a session starts
threads and lists devices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from ringserve.workers import device

log = logging.getLogger(__name__)

#: Feeds in, fetches out, positions as given to `make_call`. Raises tf.errors.OpError.
Call = Callable[..., list[Any]]

SINGLE_THREADED = "SINGLE_THREADED_EXECUTOR"
ORDINARY = ""

#: RunOptions.inter_op_thread_pool: run the ops on the calling thread, without a hand-over to a pool and back.
_INLINE = -1


def start_threads(threads: int) -> None:
    """Have TensorFlow list its devices and start the threads that all sessions of this process share.

    Threads inherit their niceness from the thread that starts them. Call this in the serving thread, or those that
    serve would be as nice as the thread that loads.
    """
    session = open_session(tf.Graph(), ORDINARY, threads)
    gpu = device.settled().gpu
    if gpu >= 0 and not has_gpu(session):
        log.warning("GPU %d is not to be had, so this worker runs on the CPU: %s", gpu, _why_no_gpu())
    session.close()


def _why_no_gpu() -> str:
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA"
    return "TensorFlow finds no driver for it, or not all of CUDA's libraries (the extra 'gpu' installs them)"


def open_session(graph: Any, executor: str, threads: int, *, fold_loops: bool = True) -> Any:
    """A session whose ops may use `threads` threads each, and which runs one op at a time.

    fold_loops: loops of constants may run when a call is made, in place of each time. TensorFlow then runs them by
    recursion, and some thousand rounds end the process with SIGSEGV.
    """
    config = config_pb2.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, allow_soft_placement=True
    )
    config.experimental.executor_type = executor
    if not fold_loops:
        # There is no narrower switch, but other constants are folded before, by Grappler, which leaves loops alone.
        config.graph_options.optimizer_options.opt_level = config_pb2.OptimizerOptions.L0
    config.gpu_options.CopyFrom(gpu_options(device.settled()))
    return tf.compat.v1.Session(graph=graph, config=config)


def gpu_options(settled: device.Settled) -> Any:
    """GPUOptions. For every session of this process alike: the first one makes the allocator that all of them use."""
    options = config_pb2.GPUOptions(allow_growth=True)
    if settled.gpu < 0:
        return options
    if settled.bytes_max:
        # The one GPU as one "virtual device", which is TensorFlow's only limit in bytes. It refuses a fraction beside.
        options.experimental.virtual_devices.add(memory_limit_mb=[settled.bytes_max / 2**20])
    elif settled.fraction:
        options.per_process_gpu_memory_fraction = settled.fraction
    return options


def run_here(session: Any, target: str, feeds: Mapping[str, Any]) -> None:
    """Run the op `target` on the calling thread, whose niceness counts. Raises tf.errors.OpError."""
    run_all_here(session, target, feeds)


def run_all_here(session: Any, fetches: Any, feeds: Mapping[str, Any]) -> Any:
    """Run ops, fetch tensors, nested as `Session.run` takes them, on the calling thread. Raises tf.errors.OpError."""
    return session.run(fetches, dict(feeds), options=config_pb2.RunOptions(inter_op_thread_pool=_INLINE))


def has_gpu(session: Any) -> bool:
    return any(device.device_type == "GPU" for device in session.list_devices())


def uses_private_api(session: Any) -> bool:
    """Whether calls of this session are made through the private API; `tests/workers` says which is expected."""
    return hasattr(session, "_make_callable_from_options")


def make_call(session: Any, feeds: Sequence[str], fetches: Sequence[str], *, private: bool = True) -> Call:
    """A call that feeds the tensors `feeds` (different ones) and fetches `fetches` (none of which is fed).

    The executor is built here, so a graph that this session's executor does not support is refused here with
    tf.errors.UnimplementedError, not by the first run (private API only).
    """
    run_options = config_pb2.RunOptions(inter_op_thread_pool=_INLINE)
    if private and uses_private_api(session):
        call: Call = session._make_callable_from_options(
            config_pb2.CallableOptions(feed=list(feeds), fetch=list(fetches), run_options=run_options)
        )
        return call
    public = session.make_callable(list(fetches), feed_list=list(feeds), accept_options=True)

    def call_public(*arrays: Any) -> list[Any]:
        # Scalars come back as numpy scalars here and as arrays of rank 0 from the private API. asarray with a dtype,
        # because the bytes of a string would otherwise become a numpy string, which loses trailing zero bytes.
        outputs = public(*arrays, options=run_options)
        return [np.asarray(o, dtype=object if isinstance(o, (bytes, str)) else None) for o in outputs]

    return call_public
