"""The pool: imports TensorFlow once, then forks every worker, and every author of weights, from itself in no time.

It runs no TensorFlow op and lists no device, ever: a process forked before that has TensorFlow's code and none of its
threads or device state (DESIGN.md, "Fork after import"). It stays single-threaded, so that a fork copies a consistent
process, and it has nothing that starts threads for the same reason.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Collection
from typing import NoReturn

from ringserve.broker.control import ControlChannel, ControlClosed
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Author,
    Authored,
    Exited,
    Forget,
    Fork,
    Hello,
    Kill,
    PoolState,
    Role,
    Stop,
    Welcome,
)
from ringserve.workers.dead import DeadChildren
from ringserve.workers.leaving import leave_gently, let_go_of_code
from ringserve.workers.stopped import StoppedChildren
from ringserve.workers.vault import Vault

log = logging.getLogger(__name__)

_RECONNECT_MS = 20
#: After a broker did not welcome this process: it is of another release, or just ending.
_REFUSED_MS = 1000
_KILL_AFTER_NS = 10_000_000_000
#: The status of a worker that could not be forked (sysexits' EX_OSERR).
_NO_PROCESS = 71
#: From a fork until the worker is registered; a tenth of a second as a rule, some seconds with a GPU.
REGISTER_S_MAX = 120

#: Runs in the new process; returns its exit status. (fork, pool_fd, weights): end-of-file on pool_fd means the pool is
#: gone; weights: descriptors of those that its orders name, by weights_id, the worker's to close.
RunWorker = Callable[[Fork, int, dict[int, int]], int]
#: Likewise of an author. (order, weights_fd, report_fd, pool_fd).
RunAuthor = Callable[[Author, int, int, int], int]


class Pool:
    """Forks workers and authors on the broker's order and tells it of their ends; holds the memory of the weights.

    stop_fd: readable when this process shall stop. leave: closes in the child what only the pool may hold. beat: called
    in every turn with the time; returns when to call it again at the latest, 0 = no need to. stopped: finds children
    that are to be killed because a signal has stopped them; None: none are.
    """

    def __init__(
        self,
        registration_path: str,
        run_worker: RunWorker,
        run_author: RunAuthor,
        *,
        stop_fd: int,
        leave: Callable[[], None],
        beat: Callable[[int], int] = lambda _: 0,
        stopped: StoppedChildren | None = None,
    ) -> None:
        self._beat = beat
        self._stopped = stopped
        self._registration_path = registration_path
        self._run_worker = run_worker
        self._run_author = run_author
        self._stop_fd = stop_fd
        self._leave = leave
        self._channel: ControlChannel | None = None
        self._workers: dict[int, int] = {}  # pid -> worker index
        self._vault = Vault()
        self._pidfds: dict[int, int] = {}  # pidfd -> pid, of workers and authors
        self._dead = DeadChildren()
        # The workers hold the reading end; nobody ever writes. Only this process holds the writing end.
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        self._stopping = False
        self._welcome = False  # the broker of the moment has taken this process
        self._refused_told = False

    def run(self) -> None:
        """Serve until stopped; then end the workers and wait for them."""
        while not self._stopping:
            channel = self._register()
            if channel is None:
                break
            self._channel = channel
            self._welcome = False
            try:
                while not self._stopping:
                    self._turn(channel)
            except ControlClosed:
                if not self._welcome:
                    self._refused()
                else:
                    log.warning("lost the broker; registering again")
                # Its successor orders what it wants by itself.
                _end(self._vault.abandon_all())
            channel.close()
            self._channel = None
        self._end_workers()

    def _refused(self) -> None:
        """Not taken: try again, and not so often that it hurts. Say so once."""
        if not self._refused_told:
            self._refused_told = True
            log.warning("the broker does not take this process: see its log; trying again every second")
        end_ns = time.monotonic_ns() + _REFUSED_MS * 1_000_000
        while not self._stopping and (left_ns := end_ns - time.monotonic_ns()) > 0:
            self._beat(time.monotonic_ns())
            self._wait(None, left_ns // 1_000_000 + 1)

    def _register(self) -> ControlChannel | None:
        while True:
            try:
                channel = ControlChannel.connect(self._registration_path)
            except OSError:
                self._beat(time.monotonic_ns())
                self._wait(None, _RECONNECT_MS)
                if self._stopping:
                    return None
                continue
            channel.send(Hello(PROTOCOL_VERSION, int(Role.POOL), os.getpid(), "", 0, -1, 0))
            channel.send(PoolState([[index, pid] for pid, index in self._workers.items()], self._vault.held()))
            return channel

    def _turn(self, channel: ControlChannel) -> None:
        if self._wait(channel, self._idle_ms()):
            for message, _ in channel.receive():
                if isinstance(message, Welcome):
                    self._welcome, self._refused_told = True, False
                elif isinstance(message, Fork):
                    self._fork(message)
                elif isinstance(message, Author):
                    self._author(message)
                elif isinstance(message, Forget):
                    _end(self._vault.forget(message.weights_ids))
                elif isinstance(message, Kill):
                    self._kill(message.pid)
                elif isinstance(message, Stop):
                    log.info("stopping: %s", message.reason)
                    self._stopping = True
                self._beat(time.monotonic_ns())  # a fork takes tens of ms, and there may be many to do

    def _idle_ms(self) -> int | None:
        """How long to sleep when nothing happens; None: for ever."""
        now_ns = time.monotonic_ns()
        stopped_ns = self._stopped.wake_ns if self._stopped is not None else 0
        times = (self._beat(now_ns), self._dead.wake_ns, stopped_ns)
        due_ns = min((time_ns for time_ns in times if time_ns), default=0)
        return max(due_ns - now_ns, 0) // 1_000_000 + 1 if due_ns else None

    def _wait(self, channel: ControlChannel | None, timeout_ms: int | None) -> bool:
        """Sleep; handle ends of workers and a stop. True when the channel has something to read."""
        poller = select.poll()
        poller.register(self._stop_fd, select.POLLIN)
        if self._stopped is not None:
            poller.register(self._stopped.fd, select.POLLIN)
        for pidfd in self._pidfds:
            poller.register(pidfd, select.POLLIN)
        if channel is not None:
            poller.register(channel.fd, select.POLLIN | (select.POLLOUT if channel.unsent else 0))
        readable = False
        for fd, events in poller.poll(timeout_ms):
            if fd == self._stop_fd:
                self._stopping = True
            elif fd in self._pidfds:
                self._ended(fd)
            elif self._stopped is not None and fd == self._stopped.fd:
                self._end_stopped(self._stopped)
            elif channel is not None:
                channel.flush()
                readable = bool(events & ~select.POLLOUT)
        if self._stopped is not None and self._stopped.wake_ns:
            self._end_stopped(self._stopped)
        if self._dead.wake_ns and not readable:
            self._dead.reap(time.monotonic_ns())
        return readable

    def _end_stopped(self, stopped: StoppedChildren) -> None:
        for pid in stopped.look(self._pidfds.values(), time.monotonic_ns()):
            log.error("process %d hangs: somebody stopped it: killing it", pid)
            os.kill(pid, signal.SIGKILL)

    def _fork(self, order: Fork) -> None:
        try:
            pid = self._spawn(f"worker {order.worker_index}", lambda: self._be_worker(order))
        except OSError as error:
            log.error("cannot fork worker %d: %s", order.worker_index, error)
            self._tell(Exited(0, order.worker_index, _NO_PROCESS))
            return
        self._workers[pid] = order.worker_index
        log.info("forked worker %d (process %d)", order.worker_index, pid)

    def _be_worker(self, order: Fork) -> int:
        # Until it has registered nobody else would notice that it hangs (in a GPU's driver, say): `Link.register` ends
        # this, or the kernel the process, whatever code it is in.
        signal.alarm(REGISTER_S_MAX)
        weights = self._vault.keep_only({each.weights_id for each in order.models})
        return self._run_worker(order, self._life_read, weights)

    def _author(self, order: Author) -> None:
        try:
            writing = self._vault.open(order, time.monotonic_ns())
        except OSError as error:
            self._not_shared(order, f"no memory to share them in: {error}")
            return

        def be_author() -> int:
            self._vault.keep_only(())
            return self._run_author(order, writing.weights_fd, writing.report_fd, self._life_read)

        try:
            pid = self._spawn(f"the author of weights {order.weights_id}", be_author)
        except OSError as error:
            self._vault.close(writing)
            self._not_shared(order, f"no process to write them: {error}")
            return
        self._vault.begin(pid, writing)
        name, version = order.order.name, order.order.version
        log.info("forked author %d of model %s version %d (process %d)", order.weights_id, name, version, pid)

    def _not_shared(self, order: Author, why: str) -> None:
        log.error("model %s version %d: %s", order.order.name, order.order.version, why)
        note = f"its weights are private to each worker: {why}"
        of = order.order
        self._tell(Authored(order.weights_id, of.name, of.version, of.path, 0, 0, "", 0, 0, [note], 0))

    def _spawn(self, name: str, live: Callable[[], int]) -> int:
        """A new process that does `live`; returns its process id, which `_ended` will be asked for. Raises OSError when
        the system has no room for one, which says nothing about those that are there."""
        try:
            pid = os.fork()
        except BlockingIOError:
            self._dead.reap_all()  # against a limit of processes they count
            pid = os.fork()
        if pid == 0:
            self._child(name, live)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._pidfds[pidfd] = pid
        return pid

    def _child(self, name: str, live: Callable[[], int]) -> NoReturn:
        """The new process's life. Never returns: the pool's own stack lies above."""
        status = 1
        try:
            # A copy of the pool's descriptors kept open here would hide the pool's death from the broker and siblings.
            os.close(self._life_write)
            for pidfd in self._pidfds:
                os.close(pidfd)
            if self._channel is not None:
                self._channel.close()
            if self._stopped is not None:
                self._stopped.leave()
            self._leave()
            status = live()
        except BaseException:
            log.exception("%s ends on a bug", name)
        finally:
            logging.shutdown()
            leave_gently()
            # No interpreter shutdown: TensorFlow's destructors have nothing to save and can only hang.
            os._exit(status)

    def _kill(self, pid: int) -> None:
        # Only a child of ours that is not yet reaped: its number cannot have been given to another process.
        if pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _ended(self, pidfd: int) -> None:
        pid, now_ns = self._pidfds.pop(pidfd), time.monotonic_ns()
        status = self._dead.ended(pidfd, now_ns)
        os.close(pidfd)
        if pid in self._vault.authors:
            authored = self._vault.end(pid, status, now_ns)
            log.info("author (process %d) ended with status %d", pid, status)
            if authored is not None:
                self._tell(authored)
            return
        index = self._workers.pop(pid)
        log.info("worker %d (process %d) ended with status %d", index, pid, status)
        self._tell(Exited(pid, index, status))

    def _tell(self, message: Authored | Exited) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _end_workers(self) -> None:
        _end(self._vault.abandon_all())
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        deadline_ns = time.monotonic_ns() + _KILL_AFTER_NS
        while self._pidfds:
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0:
                _end(self._workers)
            poller = select.poll()
            for pidfd in self._pidfds:
                poller.register(pidfd, select.POLLIN)
            for fd, _ in poller.poll(max(left_ns // 1_000_000, 10)):
                self._ended(fd)
        self._dead.reap_all()


def _end(pids: Collection[int]) -> None:
    """Of children that are not yet reaped: their numbers cannot have been given to other processes."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def freeze_before_forks() -> None:
    """Move all that the imports made out of the collector's sight, so that no child copies pages by collecting; and let
    go of the code that only they ran."""
    gc.collect()
    gc.freeze()
    let_go_of_code()
