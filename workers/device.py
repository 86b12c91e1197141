"""What must be settled before TensorFlow is imported, and after a worker is forked: environment, threads, cores, GPU.

TensorFlow reads most of its environment once, while it is being imported, so `prepare` comes before the first import of
anything that imports it. Nothing here imports TensorFlow.

What CUDA reads is another matter, and `settle` relies on it. Certain (tests/workers/test_device.py, with a driver
library that only writes down who calls it): importing TensorFlow does not even open libcuda; the first session of a
process does, calls cuInit then, and finds in its environment what `os.environ` got after the import and after the fork.
So the pool never has a state of CUDA's that a fork could break, and each worker sees the one GPU it is told, or none.
From TensorFlow's source, and not tried for want of a GPU: TF_GPU_ALLOCATOR is read when a process makes the allocator
of its first GPU, which is later still; and what memory limits do (`Settled`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from typing import Final, NamedTuple

from ringserve.config.schema import Workers
from ringserve.config.topology import PCI_ORDER, visible_entries
from ringserve.workers import numa

#: Set only where the user has not said otherwise (TF_ENABLE_ONEDNN_OPTS is left alone altogether).
_DEFAULTS = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only: the banners at import are no news to an operator
    # oneDNN's own allocator never gives freed memory back to the system; with this it uses malloc.
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several workers may share one GPU
    "TF_NUM_INTEROP_THREADS": "1",
}

#: Thread pools of the libraries beside TensorFlow; each would otherwise start one thread per core in every worker.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

#: The allocator that TensorFlow has of its own; any other goes into TF_GPU_ALLOCATOR.
OWN_ALLOCATOR: Final = "bfc"

_NO_GPU: Final = "-1"  # in CUDA_VISIBLE_DEVICES
_DEFAULT: Final = Workers()


class Settled(NamedTuple):
    """What this process may use of GPUs. gpu: the broker's number of it, -1 for none.

    bytes_max: of its memory, 0 for no limit. fraction: likewise, from 0 to 1, and 0 beside bytes_max. TensorFlow's own
    allocator keeps to them; CUDA's context, its libraries and compiled kernels come on top (some hundred MB). For
    cuda_malloc_async they are only the amount above which it gives memory back.
    """

    gpu: int = -1
    bytes_max: int = 0
    fraction: float = 0.0


_settled = Settled()


def settled() -> Settled:
    """What `settle` was told last: for the sessions of this process, which must all say the same."""
    return _settled


def settle(cpus: Collection[int], gpu: int = -1, gpu_bytes_max: int = 0, workers: Workers = _DEFAULT) -> None:
    """Be a process for these cores, their memory, and this GPU or none: right after the fork, before any session.

    cpus: empty for any. gpu: CUDA's number for it in the environment that this process was given, -1 for none.
    gpu_bytes_max: of its memory; 0: what the settings `workers` say.
    """
    global _settled
    if pin(cpus):
        numa.stay_on_node(cpus)
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), workers.worker_niceness))
    os.environ["CUDA_VISIBLE_DEVICES"] = cuda_name(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    os.environ.setdefault("CUDA_DEVICE_ORDER", PCI_ORDER)  # as the broker counted them
    if workers.gpu_allocator != OWN_ALLOCATOR:
        os.environ.setdefault("TF_GPU_ALLOCATOR", workers.gpu_allocator)
    bytes_max = gpu_bytes_max or workers.gpu_bytes_max
    _settled = Settled(gpu, bytes_max, 0.0 if bytes_max else workers.per_process_gpu_memory_fraction)


def cuda_name(gpu: int, listed: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES must be for this one GPU, -1 for none; listed: what it was, None if it was not set.

    The number counts the entries of the list, which are numbers or identifiers of their own.
    """
    if gpu < 0:
        return _NO_GPU
    if listed is None:
        return str(gpu)
    entries = visible_entries(listed)
    return entries[gpu] if gpu < len(entries) else _NO_GPU


def prepare(threads: int, *, verbose: bool = False) -> None:
    """Set this process up for a TensorFlow that runs `threads` threads.

    verbose: let TensorFlow log what it likes, not errors only.
    Call it before TensorFlow is imported; in a process that has imported it already nothing takes effect (a session's
    own thread counts come from `Servable.load`).
    """
    if "tensorflow" not in sys.modules:
        if verbose:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
        else:
            logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its Python side: deprecations
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        for name in _THREAD_VARIABLES:
            os.environ.setdefault(name, str(threads))


def pin(cpus: Collection[int]) -> bool:
    """Keep this process (and threads it starts from now on) on these cores; none of them means "leave it".

    False when the system does not let us use any of them (a cpuset, an unplugged core): serving on another core is
    better than not serving, so the caller only logs it.
    """
    if not cpus:
        return True
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return False
    return True
