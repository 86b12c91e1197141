"""REST's predict with npy files: an array as the body, an array as the answer, or one of them as JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ringserve.broker.messages import Code, Failure
from ringserve.frontend import npy
from ringserve.frontend.catalog import SignatureView
from ringserve.frontend.http1.exchange import Head
from ringserve.frontend.json_predict import Inputs
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.frontend.rest_reply import RestReply


def sends_npy(head: Head) -> bool:
    """Whether a request's body is an npy file."""
    return (head.get(b"content-type") or b"").partition(b";")[0].strip().lower() == npy.CONTENT_TYPE


def wants_npy(head: Head) -> bool:
    """Whether its answer is to be one: it says so, or sends one and does not ask for JSON."""
    accepted = (head.get(b"accept") or b"").lower()
    return npy.CONTENT_TYPE in accepted or (sends_npy(head) and b"application/json" not in accepted)


def read_input(body: bytes | bytearray, signature: SignatureView, *, hurry: bool = False) -> Inputs | Failure | None:
    """The only input of a request. hurry: as in `npy.read`."""
    if len(signature.inputs) != 1:
        return _several("inputs", signature.inputs, signature.name)
    ((alias, spec),) = signature.inputs.items()
    tensor = npy.read(body, spec.dtype, hurry=hurry)
    return tensor if tensor is None or isinstance(tensor, Failure) else Inputs({alias: tensor}, by_row=True)


def check_outputs(lane: Lane) -> Failure | None:
    """Whether an npy file can be the answer."""
    outputs = lane.spec.outputs
    return None if len(outputs) == 1 else _several("outputs", outputs, lane.spec.signature)


def _several(what: str, names: Collection[str], signature: str) -> Failure:
    return Failure(
        Code.INVALID_ARGUMENT,
        f"an npy file is one array, and signature {signature} has {len(names)} {what}: {', '.join(names)}; "
        "use JSON, or binary tensors of the Open Inference protocol",
    )


class NpyReply(RestReply):
    """Answers a predict with an array."""

    __slots__ = ()
    api = "Predict"

    def write(self, outputs: Sequence[Output], row_first: int, rows: int) -> bytes | Failure | None:
        """See RestReply."""
        (output,) = outputs
        head = npy.head_of(output.dtype, output.shape_of(rows))
        if isinstance(head, Failure):
            return head
        self._call.content_type = npy.CONTENT_TYPE
        return b"".join((head, output.raw(row_first, rows)))
