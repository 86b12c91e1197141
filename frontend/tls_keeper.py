"""The server's certificate, kept up to date: its files are read every few seconds, and new ones hold from then on.

A connection that is there goes on as it began. A handshake that begins takes whatever is newest. What cannot be used (a
new certificate whose key has not come yet) changes nothing, and is said once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from ringserve.config.tls import ModelConfigError, Source, SslConfig, read_source, server_context
from ringserve.config.x509_dates import validity
from ringserve.frontend.settled import read_settled

log = logging.getLogger(__name__)

_DAY_S: Final = 86_400
#: A warning is logged when the certificate's end comes nearer than each of these, the last of which is the end.
_WARN_S: Final = (14 * _DAY_S, 3 * _DAY_S, 0)


class TlsKeeper:
    """Keeps what one Source says. Lives on an event loop. Raises ModelConfigError when it cannot be used at first.

    contexts: by ALPN protocol, to be listened with; they stay the same objects. config: the texts that hold now; read
    by other threads, too. on_certificate: told of every new certificate's end (seconds since 1970), and of the first.
    """

    def __init__(
        self,
        source: Source,
        protocols: Iterable[str],
        period_s: float,
        on_certificate: Callable[[float], None] = lambda _: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._period_s = period_s
        self._on_certificate = on_certificate
        self._now_s = now_s
        self._complaint = ""
        self._warned = 0
        self._end_s = 0.0
        self.config = read_source(source)
        self._current = {alpn: server_context(self.config, alpn) for alpn in protocols}
        self.contexts = {alpn: self._door(alpn) for alpn in self._current}
        self._look_at_dates()
        self._task = asyncio.get_running_loop().create_task(self._watch())
        self._task.add_done_callback(_report)

    def close(self) -> None:
        """Look no more."""
        self._task.cancel()

    def _door(self, alpn: str) -> ssl.SSLContext:
        """What a server listens with: every handshake goes on in the context that is current when it begins."""
        door = server_context(self.config, alpn)

        def pass_on(handshake: Any, _name: str | None, _door: ssl.SSLContext) -> None:
            handshake.context = self._current[alpn]

        door.sni_callback = pass_on  # called whether a client names a server or not
        return door

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                # All of it every time, because a time stamp may lie.
                config = await read_settled(partial(read_source, self._source), self.config, self._period_s)
            except ModelConfigError as error:
                self._complain(error.text)
            else:
                self._take(config)
            self._warn()

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            log.error("TLS: %s; the certificate that was there goes on being used", text)

    def _take(self, config: SslConfig) -> None:
        if config == self.config:
            if self._complaint:
                self._complaint = ""
                log.info("TLS: the files are again those in use")
            return
        self._complaint = ""
        # Made before any of them is used: a handshake of either port sees all of the old or all of the new.
        current = {alpn: server_context(config, alpn) for alpn in self._current}
        self.config, self._current = config, current
        self._look_at_dates()
        log.info("TLS: a new certificate or key is used from now on; it ends %s", _date(self._end_s))

    def _look_at_dates(self) -> None:
        found = validity(self.config.cert)
        self._end_s = found.end_s if found is not None else 0.0
        self._warned = 0
        if found is not None:
            self._on_certificate(found.end_s)
            if found.begin_s > self._now_s():
                log.error("TLS: THE CERTIFICATE IS NOT VALID YET: clients refuse it until %s", _date(found.begin_s))
        self._warn()

    def _warn(self) -> None:
        left_s = self._end_s - self._now_s()
        near = sum(left_s < limit_s for limit_s in _WARN_S) if self._end_s else 0
        if near > self._warned:
            self._warned = near
            if near == len(_WARN_S):
                log.error("TLS: THE CERTIFICATE HAS EXPIRED: clients have refused it since %s", _date(self._end_s))
            else:
                log.warning("TLS: the certificate ends in %.1f days, %s", left_s / _DAY_S, _date(self._end_s))


def _report(done: asyncio.Task[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        done.get_loop().call_exception_handler({"message": "looking after certificates", "exception": error})


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
