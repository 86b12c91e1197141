"""What must be settled before TensorFlow is imported, and after a worker is forked: environment, threads, the core.

TensorFlow reads its environment once, while it is being imported, so `prepare` comes before the first import of
anything that imports it. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection

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
