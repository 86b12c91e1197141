"""The thread that encodes gRPC answers which would hold up the event loop for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from ringserve.broker.messages import Code, Failure
from ringserve.config.process import of_request
from ringserve.frontend import request_ids
from ringserve.frontend.bugs import BUG_RATE
from ringserve.frontend.handler import Call

log = logging.getLogger(__name__)
log.addFilter(BUG_RATE)

ENCODERS: Final = ThreadPoolExecutor(1, thread_name_prefix="grpc-encoder")
BUG: Final = Failure(Code.INTERNAL, "internal error")
Done = Callable[[bytes | Failure], None]


def encode_aside(encode: Callable[[Any], bytes], kept: Any, done: Done, model: str, call: Call | None) -> None:
    """Tell `done` what `encode` makes of this in the thread for it; BUG where it raises, and the log says more.

    kept: nothing that lies in a record. It is all that a bug could have spoilt, so that no other call is touched.
    call: which the log is to name; None when its client has gone.
    """

    def tell(over: asyncio.Future[bytes]) -> None:
        error = over.exception()
        if error is None:
            done(over.result())
            return
        sent_id = request_ids.sent(call.metadata) if call is not None else ""
        log.error("encoding an answer of model %r", model, exc_info=error, extra=of_request(sent_id))
        done(BUG)

    asyncio.get_running_loop().run_in_executor(ENCODERS, encode, kept).add_done_callback(tell)
