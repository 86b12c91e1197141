"""Every setting: its unit (in its name), default, bounds and one line of why, declared once.

From these dataclasses follow the command line's flags (`--port`), the environment's names (`RINGSERVE_PORT`), the
keys of the TOML file (`[server] port`), `server.toml` and docs/configuration.md. A field's name is its TOML key; its
flag is the same word unless `flag` says otherwise (a TOML key is read under its section's heading, a flag is not).

Numbers of 0 that mean "derive" are filled in by `limits.resolve`, so that the processes only ever see real numbers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from ringserve.config.access import Access
from ringserve.config.access_log import AccessLog
from ringserve.config.groups import REPLACE, Group
from ringserve.config.server import Server as Server
from ringserve.config.setting import GIB as GIB
from ringserve.config.setting import INT_MAX as INT_MAX
from ringserve.config.setting import KIB as KIB
from ringserve.config.setting import MIB as MIB
from ringserve.config.setting import setting
from ringserve.config.tracing import Tracing


@dataclass(frozen=True)
class Workers:
    """The processes that run TensorFlow."""

    workers: int = setting(0, "worker processes, at least; 0: one for every usable CPU", high=1024)
    workers_max: int = setting(0, "worker processes under load, at most; 0: as many as `workers`", high=1024)
    grow_ms: int = setting(2_000, "all workers were busy and work waited for this long: one more", low=100)
    shrink_ms: int = setting(60_000, "the load would have fitted into one fewer for this long: one less", low=100)
    devices: str = setting("cpu", "what workers run on")
    workers_replace: str = setting(
        "start_first",
        "for other models, new workers start beside the old; stop_first: in their place, where memory is tight",
        choices=REPLACE,
    )
    worker_bytes_max: int = setting(
        0, "a worker with more memory of its own than this is replaced; 0: no limit", high=1024 * GIB, shown="0"
    )
    worker_age_s_max: int = setting(0, "workers older than this are replaced; 0: no limit")
    threads_per_worker: int = setting(
        1, "TensorFlow's threads in one worker; more only for large models under little traffic", low=1, high=1024
    )
    pin: bool = setting(
        True, "bind each worker to its CPUs, where there are as many as workers need, and the broker to one"
    )
    worker_niceness: int = setting(
        5, "workers give way by so much to frontends and broker, which need a core for less time", high=19
    )
    gpu_bytes_max: int = setting(
        0,
        "memory that one worker takes of its GPU at most, CUDA's own not counted; 0: no limit in bytes",
        high=1024 * GIB,
        shown="0",
    )
    per_process_gpu_memory_fraction: float = setting(
        0.0, "the same as a part of the GPU's memory, where gpu_bytes_max is 0; 0: no limit", low=0, high=1
    )
    gpu_allocator: str = setting(
        "bfc",
        "of GPU memory: TensorFlow's own, which keeps to the limits, or CUDA's, which only gives back what is above",
        choices=("bfc", "cuda_malloc_async"),
    )
    lease_ms_max: int = setting(
        0,
        "a worker that runs one batch for longer is taken to hang and replaced; 0: 30 s, or for as long as a client "
        "waits for it, but no longer than 5 minutes",
    )
    saved_model_tags: str = setting("serve", "comma-separated tags that choose the graph of a SavedModel")
    restart_wait_ms_min: int = setting(
        100, "pause before a process that died is started again; doubled while it keeps dying", low=1
    )
    restart_wait_ms_max: int = setting(10_000, "longest such pause", low=1)
    start_failures_max: int = setting(
        5, "a process that dies this often in a row before it is ready ends the server, with its exit status", low=1
    )


@dataclass(frozen=True)
class Batching:
    """How requests are joined into batches: the default of all models, and what a model may override."""

    policy: str = setting(
        "adaptive",
        "adaptive: whatever waits when a worker is free; timeout: wait for a full batch; none: each request alone",
        choices=("adaptive", "timeout", "none"),
        flag="batching_policy",
    )
    batch_rows_max: int = setting(128, "rows of one batch at most", low=1)
    batch_wait_us_max: int = setting(
        1000, "policy timeout: how long the oldest request waits for its batch to fill"
    )
    queue_requests_max: int = setting(
        10_000, "requests waiting in one lane; one more is answered UNAVAILABLE at once", low=1
    )
    queue_rows_max: int = setting(
        100_000,
        "rows waiting in one lane, likewise; a request that is not split counts for batch_rows_max at most, and with "
        "policy none only requests and bytes count",
        low=1,
    )
    queue_bytes_max: int = setting(
        0, "bytes of inputs waiting in one lane, likewise; 0: half of request_ring_bytes, so that others find room",
        high=1024 * GIB, shown="0",
    )
    queue_ms_max: int = setting(
        0, "a request that is predicted to wait longer is answered UNAVAILABLE at once; 0: only its deadline counts"
    )
    keep_free_ms: int = setting(
        100,
        "a model whose batches run longer than spread_us leaves one worker free so long after another asked; 0: off",
        flag="batching_keep_free_ms",
    )
    lend_after_requests: int = setting(
        4,
        "after so many lone requests a frontend hands the next ones straight to the worker, past the broker; 0: never",
        flag="batching_lend_after_requests",
    )
    split: bool = setting(
        False,
        "cut a request of more rows than a batch holds, and join its answers: right only where rows do not depend on "
        "each other; else it runs whole, by itself",
        flag="batching_split",
    )
    spread_us: int = setting(
        1000,
        "a lane uses a further worker only when its batches run longer than this: cheap batches are better joined",
        flag="batching_spread_us",
    )
    workers_max: int = setting(0, "workers that one lane may use at a time; 0: all", flag="batching_workers_max")
    request_rows_max: int = setting(
        0, "rows of one request; one with more is refused; 0: no limit (TF Serving's max_batch_size)"
    )
    queue_batches_max: int = setting(
        0, "whole batches waiting in one lane; 0: no limit (TF Serving's max_enqueued_batches)"
    )
    batches_at_once_max: int = setting(
        0, "batches of all models running at the same time; 0: as many as workers (TF Serving's num_batch_threads)"
    )
    batch_rows_allowed: str = setting(
        "", "sizes up to which a batch's rows are padded, such as '1,8,32'; empty: batches keep their size"
    )
    pad_inputs: bool = setting(
        False, "requests of different inner shapes share a batch, padded to the largest (pad_variable_length_inputs)"
    )
    pad_with: str = setting(
        "zero",
        "what these are padded with; first: each tensor's first element, as in TF Serving",
        choices=("zero", "first"),
    )
    row_independence: str = setting(
        "tried",
        "tried: requests share batches once a row's outputs were seen not to depend on the other rows; assumed: at "
        "once and always, as in TF Serving's batching",
        choices=("tried", "assumed"),
        flag="batching_row_independence",
    )


@dataclass(frozen=True)
class Lifecycle:
    """How models come, change and go."""

    model_config_file: str = setting(
        "", "models in TF Serving's ModelServerConfig, text format or JSON, in place of any others; empty: none"
    )
    model_config_file_poll_wait_seconds: int = setting(0, "how often that file is read again; 0: never", low=-1)
    file_system_poll_wait_seconds: int = setting(
        1, "how often the base paths are looked at; 0: once, and when asked to; -1: only when asked to", low=-1
    )
    settle_ms: int = setting(
        2_000, "a version is loaded when nothing in its directory has changed for this long, and it is complete"
    )
    incomplete_ms_max: int = setting(
        30_000, "a directory that stays incomplete and unchanged for this long is loaded anyway, to say what is wrong"
    )
    unload_when_empty: bool = setting(
        False, "a base path that is empty or cannot be read unloads its model, as in TF Serving; else it keeps serving"
    )
    max_num_load_retries: int = setting(5, "how often a load that may yet succeed is repeated")
    load_retry_ms_max: int = setting(60_000, "longest pause before it is repeated; the first is a second")
    require_all_models: bool = setting(
        False, "end the server when a configured model cannot be loaded at the start, as TF Serving does"
    )
    allow_version_labels_for_unavailable_models: bool = setting(
        False, "a new label may point to a version that is not available (yet)"
    )
    enable_model_warmup: bool = setting(True, "replay assets.extra/tf_serving_warmup_requests before a version serves")
    num_request_iterations_for_warmup: int = setting(0, "how often each warm-up record is run; 0: once")
    synthetic_warmup: bool = setting(
        True, "without such a file: run each signature on zeros over the batch sizes that will be used"
    )
    prefer_tflite_model: bool = setting(
        False, "serve a version's model.tflite when it has one (needs the extra 'tflite')"
    )
    enable_per_model_batching_parameters: bool = setting(
        False, "read batch sizes and waits from batching_params.pbtxt in each version's directory"
    )


@dataclass(frozen=True)
class Shm:
    """The rings in shared memory that tensors travel through. Their pages take memory only once they are used."""

    request_ring_bytes: int = setting(
        256 * MIB,
        "inputs in flight of one frontend; a request that finds no room is answered RESOURCE_EXHAUSTED",
        low=1 * MIB,
        high=1024 * GIB,
        shown="256MiB",
    )
    result_ring_bytes: int = setting(
        256 * MIB, "outputs in flight of one worker", low=1 * MIB, high=1024 * GIB, shown="256MiB"
    )


@dataclass(frozen=True)
class Memory:
    """Weights in memory that workers share, and how much memory models may take."""

    weight_sharing: str = setting(
        "on",
        "a version's weights are once in memory, and every worker maps them; off: each worker loads its own",
        choices=("on", "off"),
    )
    weight_sharing_bytes_min: int = setting(
        1 * MIB, "a smaller checkpoint is loaded by each worker: sharing it gains nothing", low=1, shown="1MiB"
    )
    memory_bytes_max: int = setting(
        0,
        "what weights and processes may take together; a load beyond it is refused; 0: the host's memory, or the "
        "control group's limit (MemoryMax) where that is less",
        high=1024 * 1024 * GIB,
        shown="0",
    )


#: `versions` of a model: "latest" (the highest), "latest:N" (the N highest, N > 1), "all", or these.
Versions = str | tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """One model: [[models]] of the file. `batching` is whole: the [batching] section with this model's overrides.

    labels: (label, version) pairs, sorted. platform: `tensorflow`, the only one so far (as ModelConfig names it).
    """

    name: str
    base_path: str
    versions: Versions = "latest"
    batching: Batching = Batching()
    labels: tuple[tuple[str, int], ...] = ()
    platform: str = "tensorflow"


#: Keys of [[models]] and one line of each; `batching` is a table of the keys of [batching].
MODEL_KEYS: Final[dict[str, str]] = {
    "name": "what clients call the model",
    "base_path": "folder whose children are its versions: BASE/1/saved_model.pb",
    "versions": '"latest" (the highest number, the default), "latest:N" (the N highest), "all", or a list of numbers',
    "labels": "names of versions, for requests: { stable = 3, canary = 4 }",
    "batching": "keys of [batching] that differ for this model",
}
#: Flags without a TOML key of their own: together they are one model, in place of the file's list.
MODEL_FLAGS: Final[dict[str, str]] = {
    "model_name": "name of the one model to serve (default: 'default')",
    "model_base_path": "its base path; given, it replaces the file's [[models]]",
    "model_version_policy": "its versions: latest, latest:N, all, numbers such as 1,2, or a ServableVersionPolicy",
}


@dataclass(frozen=True)
class Settings:
    """All settings of a server, checked. Made by `load.load_settings`; children get it as JSON from the supervisor."""

    server: Server = Server()  # noqa: RUF009 (it is frozen)
    workers: Workers = Workers()
    batching: Batching = Batching()
    shm: Shm = Shm()
    lifecycle: Lifecycle = Lifecycle()
    memory: Memory = Memory()
    access: Access = Access()  # noqa: RUF009 (it is frozen)
    tracing: Tracing = Tracing()  # noqa: RUF009 (likewise)
    access_log: AccessLog = AccessLog()  # noqa: RUF009 (likewise)
    models: tuple[Model, ...] = ()
    groups: tuple[Group, ...] = ()

    def to_json(self) -> str:
        """This object as JSON text, for `from_json` of the same release."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The object whose `to_json` was `text`. Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(text)
        sections: dict[str, Any] = {name: section(**data[name]) for name, section in SECTIONS.items()}
        groups = tuple(Group(**{**group, "models": tuple(group["models"])}) for group in data["groups"])
        return cls(models=tuple(_model_of_json(model) for model in data["models"]), groups=groups, **sections)


def _model_of_json(data: dict[str, Any]) -> Model:
    versions = data["versions"] if isinstance(data["versions"], str) else tuple(data["versions"])
    labels = tuple((label, version) for label, version in data["labels"])
    return Model(data["name"], data["base_path"], versions, Batching(**data["batching"]), labels, data["platform"])


SECTIONS: Final[dict[str, type[Any]]] = {
    "server": Server,
    "workers": Workers,
    "batching": Batching,
    "shm": Shm,
    "lifecycle": Lifecycle,
    "memory": Memory,
    "access": Access,
    "tracing": Tracing,
    "access_log": AccessLog,
}
