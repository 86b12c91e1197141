"""The frame that every process shares: its name, its log, when to stop, telling who started it that it is ready.

    process.begin("frontend-0", settings.server.log_level, settings.server.log_format)
    stop = process.StopWatch(death_fd)          # stop.fd: give it to the poll loop
    ...                                          # open sockets, connect, load
    process.freeze_heap()
    process.tell_ready()
    ...                                          # serve until stop.fd is readable and stop.wanted() says why,
                                                 # with a process.Heartbeat's beat in every turn
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any, Final, NamedTuple

from ringserve.config import log_stream, privilege

log = logging.getLogger(__name__)

_PR_SET_NAME: Final = 15
_NAME_BYTES_MAX: Final = 15

#: `end_sooner` of a worker. Without it the pool is the largest process of a server with small models, by some 100 MB of
#: TensorFlow's code: all workers would end with it, and calls wait until another has imported TensorFlow.
WORKER_POINTS: Final = 200
#: Of a process that only makes a version's weights: the version loads later, or each worker loads its own.
AUTHOR_POINTS: Final = 300
_POINTS_MAX: Final = 1_000


class Exit(IntEnum):
    """Exit statuses of ringserve's processes; part of the protocol between a process and whoever restarts it."""

    OK = 0
    #: Something went wrong; starting again may help.
    FAILED = 1
    #: The server must end, and not because of this process (a model that is required did not load): the process wrote
    #: why with `rundir.write_fatal` before it exited (sysexits' EX_UNAVAILABLE).
    FATAL = 69
    #: The configuration or the machine does not let this process work (sysexits' EX_CONFIG): starting again is useless.
    CONFIG = 78


# ------------------------------------------------------------------------------------------------------ name and log


def begin(name: str, log_level: str, log_format: str) -> None:
    """Name this process (`broker`, `frontend-0`, …) for `ps`, `top` and its log lines, and set its log up; give up what
    it does not need."""
    set_title(f"rs-{name}")
    set_up_log(name, log_level, log_format)
    privilege.settle(name)


def set_title(title: str) -> None:
    """Name the calling thread as `ps -c`, `top` and /proc/PID/comm show it; cut to the 15 bytes that Linux keeps."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, title.encode()[:_NAME_BYTES_MAX], 0, 0, 0)


def open_standard_descriptors() -> None:
    """Put /dev/null where this process was started without standard input, output or error. Call it before anything is
    opened: that would get their numbers, and whatever is said there would be written into it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def end_sooner(points: int) -> None:
    """Let the kernel's OOM killer take this process for larger, by so many thousandths of the memory that is short (the
    host's, or a control group's): it ends the largest one, and some of a server's are not missed."""
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            present = int(file.read())
            file.seek(0)
            file.write(str(min(present + points, _POINTS_MAX)))
    except OSError as error:
        log.debug("the OOM killer is not told that it may end this process first: %s", error)


def set_up_log(name: str, log_level: str, log_format: str) -> None:
    """Send every log record to standard error, one line each, and never wait for whoever reads it. Called again (after
    a fork), it replaces the first."""
    to_journal = goes_to_journal()
    plain = _JsonFormatter(name) if log_format == "json" else _TextFormatter(name, bare=to_journal)
    formatter = _JournalFormatter(plain) if to_journal else plain

    def note(lost_lines: int) -> str:
        text = "standard error takes lines again; lines that are lost: %d"
        return formatter.format(log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (lost_lines,), None))

    handler = logging.StreamHandler(log_stream.take_over(note))
    if to_journal:
        log_stream.wait_briefly(sys.stderr.fileno())
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())


def timestamp(time_s: float) -> str:
    """A time as all log lines have it: `2025-01-31T12:00:00.123Z`. time_s: since 1970 began."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))
    return f"{seconds}.{int(time_s % 1 * 1000):03d}Z"


def of_request(request_id: str) -> dict[str, str]:
    """What a log call's `extra` must be, that its line names the request that it is about."""
    return {"request_id": request_id}


#: What a terminal would obey, and what could be taken for the end of a line; a line end itself is one.
_CONTROL: Final = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_NEXT_LINE: Final = re.compile(r"\n(?! )")


def _shown(text: str) -> str:
    """A text without control characters, each further line of it indented: names of models and texts of TensorFlow are
    in it, as others wrote them."""
    if text.isprintable():
        return text
    text = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return _NEXT_LINE.sub("\n  ", text)


class _TextFormatter(logging.Formatter):
    """`2025-01-31T12:00:00.123Z info broker: text`. bare: without time and level, which the reader adds."""

    def __init__(self, name: str, *, bare: bool = False) -> None:
        super().__init__()
        self._name = name
        self._bare = bare

    def format(self, record: logging.LogRecord) -> str:
        text = _shown(record.getMessage())
        request_id = getattr(record, "request_id", "")
        if request_id:
            text += f" (request {request_id})"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._bare:
            return f"{self._name}: {text}"
        return f"{timestamp(record.created)} {record.levelname.lower()} {self._name}: {text}"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, pid, logger, text; request_id and exception where there are any."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "process": self._name,
            "pid": os.getpid(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        request_id = getattr(record, "request_id", "")
        if request_id:
            fields["request_id"] = request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(fields, ensure_ascii=False))


class _JournalFormatter(logging.Formatter):
    """Another formatter's lines with their priority in front, as sd-daemon(3) has it, so that `journalctl -p` works."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


#: syslog's.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def goes_to_journal() -> bool:
    """Whether the journal reads standard error: systemd names its stream in $JOURNAL_STREAM, which is inherited further
    than the stream."""
    named = os.environ.get("JOURNAL_STREAM", "")
    if not named or sys.stderr is None:
        return False
    about = os.fstat(sys.stderr.fileno())
    return named == f"{about.st_dev}:{about.st_ino}"


# ---------------------------------------------------------------------------------------------------------- stopping


class Stop(NamedTuple):
    """Why to stop. at_once: nobody waits for a drain any more (the supervisor is gone)."""

    reason: str
    at_once: bool


class StopWatch:
    """Turns SIGTERM, SIGINT and the supervisor's death into one readable descriptor, which any poll loop can watch.

    death_fd: read end of a pipe whose other end only the supervisor holds; its end-of-file is the supervisor's death,
    however it died. -1 when nobody's death matters. Stays the caller's.

    The first signal asks for an orderly stop. The second calls `on_second` (in the signal handler) with the signal's
    number; by default the process ends at once with the status 128 + number, as the shell shows a death by signal.
    Make it in the main thread. `fd` stays readable once a stop is wanted.
    """

    def __init__(self, death_fd: int = -1, on_second: Callable[[int], None] | None = None) -> None:
        self._reason = ""
        self._on_second = on_second or _exit_at_once
        self._death_fd = death_fd
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Two reasons to wake, one descriptor: an epoll descriptor is itself readable when one of its own is.
        self._epoll = select.epoll()
        self._epoll.register(self._event_fd, select.EPOLLIN)
        if death_fd >= 0:
            self._epoll.register(death_fd, select.EPOLLIN)
        self.fd = self._epoll.fileno()
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._reason:
            self._on_second(number)
        self.request(signal.Signals(number).name)

    def request(self, reason: str) -> None:
        """Ask for an orderly stop, as a signal does."""
        self._reason = self._reason or reason
        os.eventfd_write(self._event_fd, 1)

    def wanted(self) -> Stop | None:
        """Why to stop, or None while there is no reason. Never waits."""
        if self._death_fd >= 0 and any(fd == self._death_fd for fd, _ in self._epoll.poll(0)):
            return Stop("the supervisor is gone", at_once=True)
        return Stop(self._reason, at_once=False) if self._reason else None

    def wait(self, timeout_s: float | None = None) -> Stop | None:
        """Wait until a stop is wanted, or for that long. For processes that have no loop of their own."""
        poller = select.poll()  # not select(), which refuses descriptors above 1023
        poller.register(self.fd, select.POLLIN)
        poller.poll(None if timeout_s is None else timeout_s * 1000)
        return self.wanted()

    def close(self) -> None:
        """Put the signals' previous handlers back and close what was opened."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._epoll.close()
        os.close(self._event_fd)


def _exit_at_once(number: int) -> None:
    os._exit(128 + number)


# --------------------------------------------------------------------------------------------------------- telling


def tell_ready() -> None:
    """Say READY to whoever started this process: systemd, or the supervisor, which counts on it."""
    notify("READY=1")


def tell_stopping() -> None:
    """Say STOPPING likewise, when the drain begins."""
    notify("STOPPING=1")


def notify(text: str, *, wait: bool = True) -> bool:
    """Send one sd_notify(3) message to the socket named by $NOTIFY_SOCKET; does nothing where there is none.

    wait: while the listener does not read. Else the message is lost then, and False is returned.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(text.encode(), 0 if wait else socket.MSG_DONTWAIT, address)
        except BlockingIOError:
            return False
        except OSError as error:
            # The listener may be gone before us; that is no reason to end.
            logging.getLogger(__name__).warning("cannot notify %s: %s", address, error)
    return True


# ---------------------------------------------------------------------------------------------------------- watchdog


def watchdog_interval_s() -> float:
    """How often this process is to say WATCHDOG=1, in seconds: half of the silence that whoever started it allows
    ($WATCHDOG_USEC, as of sd_watchdog_enabled(3)). 0.0: nobody listens."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # meant for another process, from which the environment was inherited
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdecimal() and os.environ.get("NOTIFY_SOCKET") else 0.0


def watched_environment(notify_socket: str, silence_ms_max: int) -> dict[str, str]:
    """This process's environment for a child that is to speak at that socket. silence_ms_max: 0 = it need not."""
    environment = {**os.environ, "NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": str(silence_ms_max * 1000)}
    environment.pop("WATCHDOG_PID", None)
    return environment


#: What the listener had no room for is said again after this part of the usual pause.
_AGAIN: Final = 10


class Heartbeat:
    """Says WATCHDOG=1 from a process's own loop, so that a loop that is stuck is noticed. Never from a side thread,
    which lives on while the loop does not.

    due_ns: when `beat` is to be called next, by the clock that `now_ns` is of; 0 = never. Call it in every turn of the
    loop; until it is time it costs a comparison.
    """

    def __init__(self) -> None:
        self.period_ns = int(watchdog_interval_s() * 1e9)
        self.due_ns = 1 if self.period_ns else 0

    def beat(self, now_ns: int) -> int:
        """The loop turns. Returns due_ns."""
        if 0 < self.due_ns <= now_ns:
            log_stream.catch_up()
            # A listener that does not read must not become a reason for us to hang, too; nor to seem to: what was lost
            # is said again long before the next is due.
            taken = notify("WATCHDOG=1", wait=False)
            self.due_ns = now_ns + (self.period_ns if taken else self.period_ns // _AGAIN)
        return self.due_ns


# ------------------------------------------------------------------------------------------------------------- heap


def freeze_heap() -> None:
    """Put everything allocated so far out of the cyclic collector's sight. Call once, when all is loaded and ready.

    With TensorFlow loaded a full collection takes 200 ms and more, in the middle of somebody's request, and finds
    nothing, because modules live for ever. After this, collections see only what requests left, and the youngest
    generation runs seldom: our hot paths make no cycles, other people's code may.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
