"""Who waits for a REST request's outputs: writes the answer's JSON while they are there, or copies them for later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.examples import Kind, classes_of, regressions
from ringserve.frontend.json_examples import write_classes, write_regressions
from ringserve.frontend.json_write import NamedOutput, arrays_count, write_columns, write_rows
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.frontend.rest_call import RestCall, RestClient, Side
from ringserve.frontend.tally import Tally
from ringserve.shm.dtype import STRING

#: Answers of more tensor bytes than this are copied, to be written elsewhere than in the event loop.
COPY_BYTES_MIN: Final = 2**16
#: What a string counts for beside its bytes, and an array where there may be more of them than of numbers: both take
#: time to write, and need have no byte of data.
_STRING_BYTES: Final = 8
_ARRAY_BYTES: Final = 16
_FLAT_AXES_MAX: Final = 2


def named_outputs(
    lane: Lane, outputs: Sequence[Output], row_first: int, rows: int
) -> tuple[list[NamedOutput], int]:
    """These rows of the outputs with their names, in the lane's order, and how many bytes they have or count for."""
    size = 0
    named: list[NamedOutput] = []
    for alias, output in zip(lane.spec.outputs, outputs, strict=True):
        data: bytes | memoryview | list[bytes]
        if output.dtype == STRING:
            data = output.strings(row_first, rows)
            size += sum(map(len, data)) + _STRING_BYTES * len(data)
        else:
            data = output.raw(row_first, rows)
            size += len(data)
        shape = output.shape_of(rows)
        if len(shape) > _FLAT_AXES_MAX or not data:
            size += _ARRAY_BYTES * arrays_count(shape)
        named.append(NamedOutput(alias, output.dtype, shape, data))
    return named, size


def copied(named: Sequence[NamedOutput]) -> list[NamedOutput]:
    """The same, for who needs them longer than the record is there."""
    return [each if each.dtype == STRING else each._replace(data=bytes(each.data)) for each in named]  # type: ignore[arg-type]


class RestReply:
    """The waiting side of one request; a `Reply`. Subclasses write. Make one right before the request is run."""

    __slots__ = ("_call", "_client", "_lane", "_request_id", "_run_ns", "_side", "_tally")

    #: How the run is counted: `Predict`.
    api: str

    def __init__(self, call: RestCall, client: RestClient, lane: Lane, tally: Tally, side: Side) -> None:
        self._call = call
        self._client = client
        self._lane = lane
        self._tally = tally
        self._side = side
        self._run_ns = tally.clock_ns()
        self._request_id = -1

    def run(self, rows: int, payloads: Sequence[bytes | memoryview | list[bytes]], timeout_ns: int) -> None:
        """Hand the request to the client."""
        call = self._call
        call.lane = self._lane
        request_id = self._client.infer(self._lane, rows, payloads, timeout_ns, self)
        if request_id >= 0 and not call.is_over:
            self._request_id = request_id
            call.on_cancel(self._cancel)

    def _cancel(self) -> None:
        """The client of the call has gone."""
        self._client.cancel(self._request_id)
        self._call.cancel()

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """The answer's body; None when the outputs were copied, and the answer comes later."""
        raise NotImplementedError

    def write_aside(self, writer: Callable[[Any, bool], bytes | Failure], kept: Any) -> None:
        """Answer with what `writer` makes of this elsewhere than in the event loop, gently."""

        async def later() -> None:
            self._call.settle(await self._side.quick(writer, kept, True))

        self._call.on_cancel(self._call.cancel)
        self._side.run(self._call, later())

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        """See Reply."""
        call = self._call
        if call.is_over:
            return
        self._tally.run(self.api, call.model, self._run_ns)
        try:
            body = self.write(outputs, row_first, rows)
        except Exception:
            # A bug in writing one answer must not take the others of the same batch along.
            call.bug("writing an answer of")
            return
        if body is not None:
            call.settle(body)

    def fail(self, code: int, text: str) -> None:
        """See Reply."""
        try:
            known = Code(code)
        except ValueError:
            known = Code.UNKNOWN
        self._call.fail(Failure(known, text))


class PredictReply(RestReply):
    """Answers a predict. by_row: in row format."""

    __slots__ = ("_by_row",)
    api = "Predict"

    def __init__(
        self, call: RestCall, client: RestClient, lane: Lane, tally: Tally, side: Side, *, by_row: bool
    ) -> None:
        # RestReply's own, spelled out: each call costs, and this one is made for every request.
        self._call = call
        self._client = client
        self._lane = lane
        self._tally = tally
        self._side = side
        self._run_ns = tally.clock_ns()
        self._request_id = -1
        self._by_row = by_row

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """See RestReply."""
        named, size = named_outputs(self._lane, outputs, row_first, rows)
        writer = write_rows if self._by_row else write_columns
        if size <= COPY_BYTES_MIN:
            return writer(named)
        self.write_aside(writer, copied(named))
        return None


class ClassifyReply(RestReply):
    """Answers a classify."""

    __slots__ = ()
    api = "Classify"

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """See RestReply."""
        classes = classes_of(self._lane, outputs, row_first, rows)
        if isinstance(classes, Failure):
            return classes
        if _STRING_BYTES * classes.examples * (classes.width + 1) <= COPY_BYTES_MIN:
            return write_classes(classes)
        if classes.scores is not None:  # they lie in the record; labels are copies
            classes = classes._replace(scores=classes.scores.copy())
        self.write_aside(write_classes, classes)
        return None


class RegressReply(RestReply):
    """Answers a regress."""

    __slots__ = ()
    api = "Regress"

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """See RestReply."""
        values = regressions(self._lane, outputs, row_first, rows)
        if isinstance(values, Failure) or values.nbytes <= COPY_BYTES_MIN:
            return values if isinstance(values, Failure) else write_regressions(values)
        self.write_aside(write_regressions, values.copy())
        return None


EXAMPLE_REPLIES: Final = {Kind.CLASSIFY: ClassifyReply, Kind.REGRESS: RegressReply}
