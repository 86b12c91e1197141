"""What becomes of a call whose answer cannot be encoded."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.frontend import grpc_examples
from ringserve.frontend.grpc_api import CLASSIFY, MULTI_INFERENCE, REGRESS, GrpcSettings, make_methods
from ringserve.frontend.grpc_encoder import ENCODERS
from ringserve.shm.dtype import FLOAT, STRING
from tests.frontend.fakes import FakeCall
from tests.frontend.grpc_kit import BOTH, TWO, answers, classification, make_client, multi, regression
from tests.frontend.rest.served import CountingTally


@pytest.mark.parametrize(
    ("method", "request_of_many"),
    [
        (CLASSIFY, classification(*TWO * 5_000)),
        (REGRESS, regression(*TWO * 5_000)),
        (MULTI_INFERENCE, multi(*BOTH, examples=TWO * 5_000)),
    ],
)
@pytest.mark.parametrize("leaves", [False, True])
def test_a_bug_while_a_long_answer_is_encoded_ends_its_call_alone(
    method: str, request_of_many: Any, leaves: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> bytes:
        raise MemoryError

    for name in ("encode_classes", "encode_regressions"):
        monkeypatch.setattr(grpc_examples, name, broken)
    client, tally = make_client(), CountingTally()
    found: list[Any] = []
    client.model = answers(
        classes=(STRING, (10_000, 1), [[b"a"]] * 10_000),
        scores=(FLOAT, (10_000, 1), np.zeros((10_000, 1), "<f4")),
        outputs=(FLOAT, (10_000, 1), np.zeros((10_000, 1), "<f4")),
    )

    async def called() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: found.append(context))
        made = FakeCall()
        made.metadata = [("x-request-id", b"abc")]
        make_methods(client, GrpcSettings(), tally=tally).unary[method](made, request_of_many.SerializeToString())
        if leaves:
            assert made.cancel is not None
            made.cancel()
        await loop.run_in_executor(ENCODERS, int)  # what comes behind it
        return made

    with caplog.at_level(logging.ERROR):
        made = asyncio.run(called())
    assert made.failure == (None if leaves else (int(Code.INTERNAL), "internal error"))
    assert found == [], "this would end the process"
    records = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(records) == (2 if method == MULTI_INFERENCE else 1)
    for record in records:
        assert record.exc_info is not None
        assert record.exc_info[0] is MemoryError
        assert getattr(record, "request_id", "") == "abc"
    if method != MULTI_INFERENCE:  # which is counted when it ends well
        ((*_, code),) = tally.requests
        assert code == (Code.CANCELLED if leaves else Code.INTERNAL)
