"""TF Serving's BatchingParameters as our [batching]: its defaults, its rules, its error texts.

    max_batch_size                batch_rows_max and request_rows_max (with splitting: the latter only)
    max_execution_batch_size      batch_rows_max, with splitting
    batch_timeout_micros          batch_wait_us_max, policy timeout
    max_enqueued_batches          queue_batches_max
    num_batch_threads             batches_at_once_max
    allowed_batch_sizes           batch_rows_allowed
    pad_variable_length_inputs    pad_inputs, with pad_with = first
    enable_large_batch_splitting  split
    thread_pool_name              nothing: TF Serving leaves its label empty, too
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Final

from ringserve.config.config_protos import BatchingParameters
from ringserve.config.schema import INT_MAX, Batching
from ringserve.config.text_protos import invalid, parse_text, read_message

MAX_BATCH_SIZE: Final = 1000
MAX_ENQUEUED_BATCHES: Final = 10
#: In each version's directory, with enable_per_model_batching_parameters.
VERSION_FILE: Final = "batching_params.pbtxt"
_VERSION_FILE_BYTES_MAX: Final = 2**20


def parse_batching_parameters(text: str) -> Any:
    """A BatchingParameters from its text format. Raises ModelConfigError."""
    return parse_text(text, BatchingParameters)


def read_batching_parameters(path: str) -> Any:
    """A BatchingParameters from that file. Raises ModelConfigError."""
    return read_message(path, parse_batching_parameters)


def batching_of(parameters: Any, base: Batching) -> Batching:
    """`base` with batching as these parameters (a BatchingParameters, or its text) ask for it, TF Serving's defaults
    where they are silent. What TF Serving has no word for stays the base's, and `batches_at_once_max` stays it unless
    the parameters give num_batch_threads. Raises ModelConfigError with TF Serving's texts."""
    if isinstance(parameters, str):
        parameters = parse_batching_parameters(parameters)
    return replace(base, **changes_of(parameters, base))


def changes_of(parameters: Any, base: Batching) -> dict[str, Any]:
    """The keys of [batching] that `batching_of` changes. Raises ModelConfigError."""
    size = parameters.max_batch_size.value if parameters.HasField("max_batch_size") else MAX_BATCH_SIZE
    queued = MAX_ENQUEUED_BATCHES
    if parameters.HasField("max_enqueued_batches"):
        queued = parameters.max_enqueued_batches.value
    split = parameters.enable_large_batch_splitting.value
    executed = size
    if split and parameters.HasField("max_execution_batch_size"):
        executed = parameters.max_execution_batch_size.value
    allowed = list(parameters.allowed_batch_sizes)
    wait_us = parameters.batch_timeout_micros.value
    _check(size, executed, queued, split, wait_us, allowed)
    # A negative number becomes a huge unsigned one there; none waiting at all would mean that nothing ever runs.
    queue_batches = 0 if queued < 0 else max(1, queued)
    changes: dict[str, Any] = {
        "policy": "timeout",
        "batch_rows_max": _bounded(executed),
        "request_rows_max": _bounded(size),
        "batch_wait_us_max": _bounded(wait_us),
        "queue_batches_max": _bounded(queue_batches),
        "split": split,
        "batch_rows_allowed": ",".join(map(str, sorted(set(allowed)))),
        "pad_inputs": parameters.pad_variable_length_inputs,
        "pad_with": "first",
        # Our own bounds of a queue stand back: TF Serving's is the one that was asked for.
        "queue_rows_max": _bounded(max(base.queue_rows_max, queue_batches * executed, executed)),
        "queue_requests_max": _bounded(max(base.queue_requests_max, queue_batches * executed)),
    }
    if parameters.HasField("num_batch_threads"):
        threads = parameters.num_batch_threads.value
        if threads < 1:
            raise invalid(f"num_batch_threads must be positive; was {threads}")
        changes["batches_at_once_max"] = _bounded(threads)
    return changes


def _bounded(number: int) -> int:
    return min(number, INT_MAX)


def _check(size: int, executed: int, queued: int, split: bool, wait_us: int, allowed: list[int]) -> None:
    if allowed and allowed[-1] != size:
        raise invalid(
            "Last entry in allowed_batch_sizes must match max_batch_size; "
            f"last entry was {allowed[-1]}; expected {size}"
        )
    if any(rows < 1 for rows in allowed):
        raise invalid(f"allowed_batch_sizes must be positive; was {min(allowed)}")
    if size < 1:
        raise invalid(f"input_batch_size_limit must be positive; was {size}")
    if wait_us < 0:
        raise invalid(f"batch_timeout_micros must be non-negative; was {wait_us}")
    if split and queued == 0:
        raise invalid("max_enqueued_batches must be positive; was 0")
    if split and executed > size:
        raise invalid(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            f"max_execution_batch_size. The limit is {size}, max_execution_batch_size is {executed}"
        )
    if executed < 1:
        raise invalid(f"max_execution_batch_size must be positive; was {executed}")


def read_version_batching(path: str, base: Batching) -> Batching | None:
    """What the directory of a version says about its batching, None when it says nothing (TF Serving then does not
    batch the model). How many batches run at once is not a model's to say: that stays the base's.

    path: the version's directory. Raises ModelConfigError for a file that cannot be read or breaks a rule.
    """
    file = os.path.join(path, VERSION_FILE)
    if not os.path.lexists(file):
        return None
    if not os.path.isfile(file) or os.path.getsize(file) > _VERSION_FILE_BYTES_MAX:
        # A pipe would be waited for without an end, by the thread that looks at models.
        raise invalid(f"{file} is no file, cannot be seen, or is too large")
    parameters = read_batching_parameters(file)
    parameters.ClearField("num_batch_threads")
    return batching_of(parameters, base)
