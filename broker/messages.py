# long: every message in one place, and most of it is what their fields mean; docs/messages.md is made from it.
"""Every message that travels between ringserve's processes: its fields, who sends it, who owns what afterwards.

Two planes carry them. *Hot* messages (Submit .. Release), one per sender's loop turn (`wire.py`), go over cables
(`cable.py`), and Failed, which is rare, over ZeroMQ (`mailbox.py`); *control* messages (Hello .. Stop) go over the
registration socket, which also hands over descriptors and whose end-of-file is how a death is known (`control.py`).

Hot messages carry requests as plain lists of integers, not as objects: at load a message holds dozens of requests
and an object per request would cost more than the decision about it. The field order stands here and nowhere else.

Time is `time.monotonic_ns()`, one clock for all processes of a host; a deadline of 0 means "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

#: Changes when any message changes; processes of different protocol versions refuse each other at registration.
PROTOCOL_VERSION = 10


class Code(IntEnum):
    """Outcome codes: gRPC's canonical codes, which TensorFlow's `error.Code` shares number by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Failure(NamedTuple):
    """An outcome that a client may see. Never an exception: see DESIGN.md, errors."""

    code: Code
    text: str


class ModelVersion(NamedTuple):
    """A model's name and one of its versions (an integer >= 0)."""

    name: str
    version: int


class InputSpec(NamedTuple):
    """One input of a lane. `dtype` is TensorFlow's DataType number; `shape` as LaneSpec says."""

    alias: str
    dtype: int
    shape: tuple[int, ...]


class LaneSpec(NamedTuple):
    """Which requests may share a batch: equal specs and nothing else (packed, it is the lane's key on the wire).

    When `batchable`, every input's `shape` is the *inner* shape, without axis 0, and requests are joined along axis 0.
    An inner axis of -1 is left open (the model pads): each record of that input says its own shape (`shm/head.py`).
    Otherwise `shape` is the whole shape, a request counts as one row, and each request runs by itself.
    `outputs` are the aliases wanted, in the order in which results carry them.
    """

    model: str
    version: int
    signature: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    batchable: bool


class Kind(IntEnum):
    """First element of every hot message."""

    SUBMIT = 1
    CANCEL = 2
    EXECUTE = 3
    RESULT = 4
    DONE = 5
    RELEASE = 6
    FAILED = 7
    LEND = 8
    RECALL = 9
    HANDED = 10
    RETURNED = 11


# ---------------------------------------------------------------------------------------------------- hot messages


class Submit(NamedTuple):
    """frontend -> broker: new requests, grouped by lane.

    groups: [[lane_key: bytes, [request, ...]], ...]
    request: [request_id, rows, deadline_ns, offset, ...]: one offset into the frontend's request ring for each input,
    in the lane's input order. The records stay claimed, and unchanged, until the frontend has had exactly one answer:
    a Result (or, for a split request, Results that cover all its rows) or a Failed.

    again: these may have been submitted before (a worker died, or this is another broker): take only those that are
    neither queued nor leased. The rest of a message's meaning is the same.
    """

    frontend_id: int
    groups: list[list[Any]]
    again: bool = False


class Cancel(NamedTuple):
    """frontend -> broker: the clients of these requests are gone. [[lane_key, request_id], ...].

    A queued one is dropped at once and answered with Failed(CANCELLED), so that its records come back; one that runs
    is left to run and its Result is thrown away by the frontend.
    """

    frontend_id: int
    requests: list[list[Any]]


class Execute(NamedTuple):
    """broker -> worker, or frontend -> worker (see Lend): run these parts together, once.

    part: [frontend_id, request_id, rows, row_start, offset, ...]. A whole request has row_start 0; a split request's
    part starts `row_start` rows into the records at `offset`.
    waits: of a frontend's, how long its requests had waited: [[requests, ns], ...], in their order; Done repeats them.
    """

    batch_id: int
    lane_key: bytes
    parts: list[list[int]]
    waits: list[list[int]] = []  # noqa: RUF012  (never changed)


class Result(NamedTuple):
    """worker -> frontend (direct): answers of one batch for this frontend.

    outputs: [[dtype, shape, offset], ...] in the lane's output order; `offset` into the worker's result ring, `shape`
    whole (axis 0 is all rows of this record when the lane is batchable).
    answers: [[request_id, row_first, rows, row_start], ...]: rows [row_first, row_first + rows) of the outputs are rows
    [row_start, ...) of that request.
    failures: [[request_id, code, text, rows, row_start], ...]: for these rows of it.
    record_id: give it back with Release when all is read; -1 when there is nothing to release.
    run: [when TensorFlow began, when it ended (monotonic ns), rows run], for traces and the access log;
    empty without these.
    """

    worker_id: int
    batch_id: int
    lane_key: bytes
    record_id: int
    outputs: list[list[Any]]
    answers: list[list[int]]
    failures: list[list[Any]]
    run: list[int] = []  # noqa: RUF012  (never changed)


class Done(NamedTuple):
    """worker -> broker: the batch is over, all its Results are sent, the lease can be settled.

    run_ns: time inside TensorFlow. rows: rows run. waited_ns: for room for its answers, or for news of a frontend.
    parts_left: so many at the end of the batch were not answered: they wait again. All of them: they were run together
    and failed; one by itself is answered. parts_max: how many the lane's batches may have from now on, as each of them
    is run by itself, or as more have failed together lately; 0 = any number.
    requests, waits: of a batch that came from a frontend, the rows of each of its requests, and Execute's waits.
    """

    worker_id: int
    batch_id: int
    run_ns: int
    rows: int
    waited_ns: int
    parts_left: int
    parts_max: int
    requests: list[int] = []  # noqa: RUF012  (never changed)
    waits: list[list[int]] = []  # noqa: RUF012  (never changed)


class Release(NamedTuple):
    """frontend -> worker: these result records are read; the worker may reuse them."""

    frontend_id: int
    record_ids: list[int]


class Failed(NamedTuple):
    """broker -> frontend: these requests will not run. [[request_id, code, text], ...].

    waits: [[lane_key, wait_ns], ...], of lanes that have just refused some for their load: how soon one more request
    could be promised an answer.
    """

    requests: list[list[Any]]
    waits: Sequence[Sequence[Any]] = ()


class Lend(NamedTuple):
    """broker -> frontend: this worker is lent to you. A request of this lane that is alone in your hands, and has no
    more than `rows_max` rows, may go straight to it as an Execute, one at a time, with the batch ids loan_id + 1,
    loan_id + 2, and so on. The worker's Done tells the broker of each.

    batch_rows_max: if not 0, so may several of this lane together, that are all that you hold and have no more rows
    than that; those that come while such a batch runs may wait for its end.
    """

    loan_id: int
    lane_key: bytes
    worker_id: int
    rows_max: int
    batch_rows_max: int


class Recall(NamedTuple):
    """broker -> frontend: hand that worker nothing more, and answer with Returned."""

    loan_id: int


class Handed(NamedTuple):
    """frontend -> broker: these requests went straight to the lent worker as this batch, at that time, and have no
    answer yet. Sent before anything else that the broker must see beside it (another Submit, a Cancel, Returned),
    when the answer is not there after some milliseconds, and when the worker has left. requests: as in Submit, in the
    batch's order; those that were answered are left out.
    """

    frontend_id: int
    worker_id: int
    batch_id: int
    lane_key: bytes
    handed_ns: int
    requests: Sequence[list[int]]


class Returned(NamedTuple):
    """frontend -> broker: that loan is over. batch_id: the last one that was used, loan_id when none was."""

    loan_id: int
    batch_id: int


# ------------------------------------------------------------------------------------------------ control messages


class Role(IntEnum):
    FRONTEND = 1
    POOL = 2
    WORKER = 3


class Hello(NamedTuple):
    """process -> broker, first on a registration connection. A ring's memfd travels with it (not for the pool).

    inbox: a frontend's, empty for others. worker_index: which place of the fleet a worker fills; -1 for others.
    generation: as told by Fork, else 0. protocol, role and pid come first in every protocol, so that processes of other
    releases are refused in words.
    """

    protocol: int
    role: int
    pid: int
    inbox: str
    ring_bytes: int
    worker_index: int
    generation: int


class Welcome(NamedTuple):
    """broker -> process: your id (never used twice by one broker). The process's end of its cable to the broker travels
    with it (not for the pool).
    """

    peer_id: int


class PeerJoined(NamedTuple):
    """broker -> frontend or worker, before any message that names this peer. The peer's ring memfd travels with it, and
    an end of the cable between the two.
    """

    peer_id: int
    role: int
    ring_bytes: int


class PeerLeft(NamedTuple):
    """broker -> frontend or worker: unmap its ring, forget its records."""

    peer_id: int


class VersionState(IntEnum):
    """TF Serving's ModelVersionStatus.State."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class VersionInfo(NamedTuple):
    """One version of one model in the catalog.

    signature_defs: a serialized tensorflow.serving.SignatureDefMap, empty until a worker has loaded the version.
    notes: what an operator should know of this version, a sentence each (how it was warmed up, that it runs on one
    worker only, ...).
    """

    name: str
    version: int
    state: int
    error_code: int
    error_text: str
    signature_defs: bytes
    notes: list[str]


class Catalog(NamedTuple):
    """broker -> frontends: all models and versions, whole, after every change.

    versions: list of VersionInfo. models: every configured model's name, also of those without any version (readiness
    needs them). labels: {model: {label: version}}, only labels that are assigned now. pads: names of the models whose
    rows of different inner shapes are padded into one batch (their lanes leave these axes open). starting: not all
    models of the start are settled yet (AVAILABLE, failed, or without a version): what is not found may still come.
    """

    versions: list[VersionInfo]
    models: list[str]
    labels: dict[str, dict[str, int]]
    pads: list[str]
    starting: bool = False


class LoadOrder(NamedTuple):
    """One model version that a worker is to load, inside a Fork.

    fallback: load it only if no other version of this model in the same Fork loaded (it serves now, and a version
    that does not load must not take its place). options: ModelOptions' fields of this model but its name. weights_id:
    of the pool's copy of its weights, which the worker maps; 0: there is none, the worker reads them from the files.
    """

    name: str
    version: int
    path: str
    fallback: bool
    options: list[Any]
    weights_id: int = 0


class ModelOptions(NamedTuple):
    """broker -> worker: how batches of this model are to be run from now on; also inside each LoadOrder.

    batch_rows_max: rows of the largest batch (synthetic warm-up runs up to it). batch_rows_allowed: sizes up to which
    a batch's rows are padded, ascending; empty = no row padding. pad_inputs: rows of different inner shapes share a
    batch, padded at the end of each axis to the largest. pad_with_first: fill with each tensor's first element, as TF
    Serving does, in place of zeros. assumes_independence: requests share batches whatever was seen of their rows.
    """

    name: str
    batch_rows_max: int
    batch_rows_allowed: list[int]
    pad_inputs: bool
    pad_with_first: bool
    assumes_independence: bool


class Fork(NamedTuple):
    """broker -> pool: make one worker. models: LoadOrders, loaded in this order.

    cpus: cores to pin to, empty for none. threads: what one op may use. gpu: CUDA's number of the one GPU that it sees,
    -1 for none. gpu_bytes_max: what it may take of that GPU's memory; 0 = no limit. first: the one of its generation
    that is to tell operators what all of them do alike.
    """

    worker_index: int
    generation: int
    cpus: list[int]
    threads: int
    models: list[LoadOrder]
    gpu: int = -1
    gpu_bytes_max: int = 0
    first: bool = True


class PoolState(NamedTuple):
    """pool -> broker, right after Hello: TensorFlow is imported, I can fork. workers: [[worker_index, pid], ...] alive.
    weights: Authored messages of the weights that it holds.

    They are not empty when the broker is a new one: its roster must not fill places that are filled.
    """

    workers: list[list[int]]
    weights: list[Authored] = []  # noqa: RUF012  (never changed; msgpack makes lists)


class Author(NamedTuple):
    """broker -> pool: make an author, a process that loads this version, writes its weights into memory that the pool
    holds for workers to map, and exits. Answered with one Authored, however it ends, unless Forget comes first.

    weights_id: chosen by the broker, never used twice in one pool. gentle: others serve meanwhile: give way to them.
    cpus, threads: as in Fork. order: its weights_id is this one; its options are not used.
    """

    weights_id: int
    gentle: bool
    cpus: list[int]
    threads: int
    order: LoadOrder


class Authored(NamedTuple):
    """pool -> broker: an author has ended. name, version, path: as ordered.

    status: its exit status, negative for a signal; 0 also when it has found that the version cannot be loaded, which
    error_code and error_text say. bytes_shared: memory that the pool holds for its weights; 0: there is nothing to
    share, and workers load by themselves. bytes_private: of weights that each worker has of its own nevertheless (those
    of a model that changes its variables, say). notes: as in VersionInfo. load_ns: how long it all took.
    """

    weights_id: int
    name: str
    version: int
    path: str
    status: int
    error_code: int
    error_text: str
    bytes_shared: int
    bytes_private: int
    notes: list[str]
    load_ns: int


class Forget(NamedTuple):
    """broker -> pool: no worker will be forked with these weights any more: give up their memory. An author that still
    writes them is ended, and not answered for."""

    weights_ids: list[int]


class Kill(NamedTuple):
    """broker -> pool: end this worker process of yours now (its lease ran out, or it must go)."""

    pid: int


class Exited(NamedTuple):
    """pool -> broker: a worker process of mine ended. status: exit status, negative for a signal.

    pid: 0 when it could not even be forked.
    """

    pid: int
    worker_index: int
    status: int


class Loading(NamedTuple):
    """worker -> broker: I begin to load this version now. What a worker that dies while loading died of."""

    name: str
    version: int


class Dependent(NamedTuple):
    """worker -> broker, and from there to the other workers of its generation, which have the same files: requests of
    this signature, for these outputs, were answered otherwise in a batch than alone, and not by chance. They are run
    one by one from now on."""

    name: str
    version: int
    signature: str
    outputs: list[str]


class Loaded(NamedTuple):
    """worker -> broker: how a model version's load went in this worker. error_text is empty when it succeeded.

    changes_state: some signature changes the model's variables, so one worker must serve all its requests. notes: as in
    VersionInfo. load_ns: how long it took, without warm-up; 0 when it failed. warmup_ns, warmup_records: of the replay
    of its warm-up file; -1 records when there was none. again: another broker has been told of this load before.
    """

    name: str
    version: int
    error_code: int
    error_text: str
    signature_defs: bytes
    changes_state: bool = False
    notes: list[str] = []  # noqa: RUF012  (never changed; msgpack makes lists)
    load_ns: int = 0
    warmup_ns: int = 0
    warmup_records: int = -1
    again: bool = False


class Ready(NamedTuple):
    """worker -> broker: I take batches of these. loaded: [[name, version], ...], all that succeeded so far.

    Sent after each load that succeeds, so that a model answers as soon as it can; complete: all loads are over.
    """

    loaded: list[list[Any]]
    complete: bool


class Ask(NamedTuple):
    """frontend -> broker, or broker -> worker: an operator's call that the asked process must answer with one Told.

    ask_id: the asker's number for it. verb and body: see `broker/admin.py` (broker) and `workers/profile.py` (worker).
    """

    ask_id: int
    verb: str
    body: bytes


class Told(NamedTuple):
    """The answer to an Ask, back the way it came. code: a Code; body is meaningful only when it is OK."""

    ask_id: int
    code: int
    text: str
    body: bytes


class Stop(NamedTuple):
    """broker -> pool or worker: finish what you hold and exit. The same in every protocol: a process that began before
    the broker, and is of another one, gets it in place of Welcome. What replaces it is of the installation of now.
    """

    reason: str
