"""Predict over gRPC: decode, `client.infer`, encode. The hot path: see `predict_codec.py` for what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ringserve.broker.messages import Failure
from ringserve.frontend.crowds import Crowds
from ringserve.frontend.grpc_reply import GrpcReply, InferClient, refuse
from ringserve.frontend.handler import Buffer, Call, UnaryHandler
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output, answer_all
from ringserve.frontend.predict_codec import PredictDecoder, PredictEncoder
from ringserve.frontend.predict_templates import Template
from ringserve.frontend.tally import GRPC, Tally

_API: Final = "Predict"


class _PredictReply(GrpcReply):
    """GrpcReply, spelled out where it is hot: each call of a method costs a twentieth of all that is done here."""

    __slots__ = ("encoder",)
    api = _API

    def __init__(
        self, call: Call, client: InferClient, lane: Lane, tally: Tally, started_ns: int, encoder: PredictEncoder
    ) -> None:
        self.call = call
        self.client = client
        self.lane = lane
        self.tally = tally
        self.started_ns = started_ns
        self.run_ns = tally.clock_ns()
        self.request_id = -1
        self.encoder = encoder

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        call = self.call
        if call is None:
            return
        self.call = None
        tally, lane = self.tally, self.lane
        model = lane.spec.model
        tally.run(_API, model, self.run_ns)
        call.finish(self.encoder.encode(lane, outputs, row_first, rows))
        tally.request(GRPC, _API, model, 0, self.started_ns, lane)

    @staticmethod
    def answer_together(answered: list[tuple[Any, int, int]], outputs: Sequence[Output]) -> None:
        """`answer` of each: replies of this class, to requests of one lane. Most are alike, and cost a third then."""
        first, _, rows = answered[0]
        kind = first.call.__class__
        finish_together = getattr(kind, "finish_together", None)
        alike = [one for one in answered if one[2] == rows and one[0].call.__class__ is kind]
        lane: Lane = first.lane
        encoder: PredictEncoder = first.encoder
        encoded = None
        if finish_together is not None:
            encoded = encoder.encode_alike(lane, outputs, [row_first for _, row_first, _ in alike], rows)
        if finish_together is None or encoded is None:
            for reply, row_first, count in answered:
                reply.answer(outputs, row_first, count)
            return
        tally: Tally = first.tally
        now_ns = tally.clock_ns()
        finish_together([reply.call for reply, _, _ in alike], *encoded)
        runs_ns, requests_ns = [], []
        for reply, _, _ in alike:
            reply.call = None
            runs_ns.append(now_ns - reply.run_ns)
            requests_ns.append(now_ns - reply.started_ns)
        tally.answered(GRPC, _API, lane.spec.model, lane, runs_ns, requests_ns)
        if len(alike) < len(answered):
            answer_all([one for one in answered if one[0].call is not None], outputs)


def predict_method(
    client: InferClient,
    decoder: PredictDecoder,
    encoder: PredictEncoder,
    tally: Tally,
    timeout_ns: int = 0,
    crowds: Crowds | None = None,
) -> UnaryHandler:
    """The handler of Predict. `encoder` must be the only one that uses the decoder's lanes.

    timeout_ns: of calls without a deadline; 0 = none. crowds: hears which calls are refused.
    """
    decode, infer, clock_ns = decoder.decode, client.infer, tally.clock_ns

    def predict(call: Call, message: Buffer) -> None:
        started_ns = clock_ns()
        request = decode(message)
        if isinstance(request, Failure):
            refuse(call, request, tally, _API, decoder.model_sent, started_ns)
            return
        lane, rows, payloads = request
        reply = _PredictReply(call, client, lane, tally, started_ns, encoder)
        request_id = infer(lane, rows, payloads, call.timeout_ns or timeout_ns, reply)
        if request_id >= 0 and reply.call is not None:
            reply.request_id = request_id
            call.on_cancel(reply.cancel)
        elif request_id < 0 and crowds is not None:
            crowds.saw(message, lane, rows)

    infer_together = getattr(client, "infer_together", None)
    if infer_together is not None and crowds is not None:
        together = _Together(client, infer_together, decoder, encoder, tally, timeout_ns, crowds)
        predict.together = together  # type: ignore[attr-defined]
    return predict


class _Together:
    """`handler.Together` of Predict: what `predict` does, for calls that differ in their payloads and deadlines."""

    def __init__(
        self,
        client: InferClient,
        infer_together: Callable[..., list[int]],
        decoder: PredictDecoder,
        encoder: PredictEncoder,
        tally: Tally,
        timeout_ns: int,
        crowds: Crowds,
    ) -> None:
        self.kind = decoder.kind
        self._client = client
        self._infer_together = infer_together
        self._encoder = encoder
        self._tally = tally
        self._timeout_ns = timeout_ns
        self._crowds = crowds

    def take(self, calls: Sequence[Call], kind: Template, data: bytes, places: Sequence[int]) -> None:
        """See handler."""
        tally, lane, client, encoder = self._tally, kind.lane, self._client, self._encoder
        started_ns, default_ns = tally.clock_ns(), self._timeout_ns
        kind.hits += len(calls)
        replies = [_PredictReply(call, client, lane, tally, started_ns, encoder) for call in calls]
        view, place = memoryview(data), kind.payloads[0]
        payloads = [view[at + place.start : at + place.stop] for at in places]
        timeouts_ns = [call.timeout_ns or default_ns for call in calls]
        ids = self._infer_together(lane, kind.rows, payloads, timeouts_ns, replies)
        for request_id, reply, call, at in zip(ids, replies, calls, places, strict=True):
            if request_id < 0:
                self._crowds.saw(data[at : at + kind.suffix_slice.stop], lane, kind.rows)
            elif reply.call is not None:
                reply.request_id = request_id
                call.on_cancel(reply.cancel)
