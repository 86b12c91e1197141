"""`ringserve serve`: starts broker, pool and frontends, keeps them running, stops them in order, leaves nothing behind.

    check the ports -> run directory, sockets -> start all -> loop: reap, restart -> frontends, pool, broker -> clean up

Children hold the reading end of a pipe whose writing end only this process has: if this process dies, however that
happens, they see its end-of-file and stop by themselves, and the broker removes the run directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ringserve import activation
from ringserve.canary import Canary
from ringserve.children import Child, ChildSpec, CommandOf, Fatal, Stage, describe_status
from ringserve.config import allocator, limits, privilege, process
from ringserve.config.devices import DeviceError
from ringserve.config.keys_file import RATE_SLOTS
from ringserve.config.rundir import ADMIN_SOCKET, RunDir, RunDirError, make_run_dir, read_fatal, remove_run_dir
from ringserve.config.schema import Settings
from ringserve.config.topology import read_topology
from ringserve.hangs import Watchdog
from ringserve.installation import mark
from ringserve.orphans import Orphans, become_subreaper, children_of_this_process
from ringserve.ports import ADMIN_SOCKET_MODE, PortError, take_ports, unix_listener
from ringserve.run_files import RunFiles
from ringserve.shm.words import make_words

log = logging.getLogger(__name__)

#: How often orphans are looked for when nothing else happens.
_IDLE_MS: Final = 10_000
#: Times `hang_ms_max`. The C code that reads JSON holds the interpreter, for 4 s per 100 MiB of short strings on a busy
#: host: 256 MiB of them must not look like a hang, or a client could have frontends killed.
_FRONTEND_PATIENCE: Final = 3
_MS_NS: Final = 1_000_000
_S_NS: Final = 1_000_000_000
#: How long each stage may take to stop once nothing is left to drain; the pool waits 10 s for its workers.
_STOP_MS: Final = {Stage.FRONTEND: 2_000, Stage.POOL: 12_000, Stage.BROKER: 5_000}


class StartError(Exception):
    """The server cannot start on this machine as it is now: a port is taken, no run directory can be had."""


class ServerFailed(Exception):
    """The server has ended itself, orderly: a process of it wrote why (`rundir.write_fatal`), as `CODE: text`."""


def command_of(spec: ChildSpec) -> list[str]:
    """The command line of a child: this interpreter, this installation."""
    return [sys.executable, "-m", "ringserve", *spec.arguments]


def run(settings: Settings, *, command_of: CommandOf = command_of) -> int:
    """Serve until stopped. Returns the exit status: 0 after an orderly stop, a child's when that ended the server.

    Raises StartError while nothing is started yet, ServerFailed when all has ended.
    Owns the calling process: its signal handlers, its log, and every process that it or its children start.
    """
    process.begin("supervisor", settings.server.log_level, settings.server.log_format)
    if not os.path.exists("/proc/self/fd"):
        raise StartError("/proc is not mounted, and the server's processes look after each other there")
    machine = read_topology()
    try:
        settings = limits.resolve(settings, machine)
        limits.slots_of(settings, machine)
    except DeviceError as error:
        raise StartError(str(error)) from error
    for warning in limits.warnings(settings):
        log.warning("%s", warning)
    try:
        sockets = activation.take(os.environ)
        settings = replace(settings, server=activation.settled(settings.server, sockets))
    except activation.ActivationError as error:
        raise StartError(str(error)) from error
    with contextlib.ExitStack() as stack:
        try:
            settings = take_ports(settings, stack, sockets)
            path = settings.server.grpc_socket_path
            grpc_socket = stack.enter_context(unix_listener(path)) if path else None
            run_dir = make_run_dir(settings.server.run_dir)
            stack.callback(os.close, run_dir.lock_fd)
            stack.callback(remove_run_dir, run_dir.path)
            path = settings.server.admin_socket_path or os.path.join(run_dir.path, ADMIN_SOCKET)
            server = replace(settings.server, admin_socket_path=path, run_dir=run_dir.path)
            settings = replace(settings, server=server)
            admin = unix_listener(path, "admin_socket_path", ADMIN_SOCKET_MODE)
            admin_socket = stack.enter_context(admin)
        except (PortError, RunDirError) as error:
            raise StartError(str(error)) from error
        rates_fd = make_words("ringserve-rates", RATE_SLOTS) if settings.access.keys_file else -1
        log.info("memory beside the models, at most:\n  %s", "\n  ".join(limits.memory_bill(settings)))
        given = [(f"--{name}-fd", fd) for name in (activation.GRPC, activation.REST) for fd in sockets.get(name, ())]
        try:
            supervisor = Supervisor(settings, run_dir, command_of, grpc_socket, admin_socket, rates_fd, given)
        except OSError as error:
            raise StartError(f"run directory {run_dir.path} cannot be used: {error.strerror}") from error
        return supervisor.run()


class Supervisor:
    """The children of one server. `run_dir` and the sockets, which all frontends listen on, stay the caller's.

    rates_fd: what the frontends count the requests of keys in, or -1. given: what the frontends inherit besides, by the
    names of their options: sockets that outlive this server.
    """

    def __init__(
        self,
        settings: Settings,
        run_dir: RunDir,
        command_of: CommandOf,
        grpc_socket: socket.socket | None = None,
        admin_socket: socket.socket | None = None,
        rates_fd: int = -1,
        given: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._command_of = command_of
        #: What frontends inherit: descriptors by the names of their options.
        self._inherited = [
            (f"--{name}-socket-fd", listener.fileno())
            for name, listener in (("grpc", grpc_socket), ("admin", admin_socket))
            if listener is not None
        ]
        self._inherited += [*given, *([("--rates-fd", rates_fd)] if rates_fd >= 0 else [])]
        self._installation = mark()
        self._stop_ns: int | None = None
        self._hurry = False
        self._ready_told = False
        # Whoever started us may have left us children that are none of ours (a shell's `exec` does that).
        self._strangers = children_of_this_process()
        become_subreaper()
        self._orphans = Orphans(_STOP_MS[Stage.POOL] * _MS_NS)
        _raise_descriptor_limit()
        self._death_read, self._death_write = os.pipe2(os.O_CLOEXEC)
        self._watch = process.StopWatch(on_second=self._on_second_signal)
        server = settings.server
        self._files = RunFiles(run_dir, settings.to_json(), server.admin_socket_path)
        self._environment = process.watched_environment(self._files.notify_path, server.hang_ms_max)
        self._watchdog = Watchdog(server.hang_ms_max, server.start_ms_max)
        #: To whoever started this process.
        self._heartbeat = process.Heartbeat()
        self._canary = Canary(self._files.admin_path, self._heartbeat.period_ns)
        self.children = [Child(spec) for spec in self._specs()]

    def run(self) -> int:
        """Start, keep running, stop. Returns the exit status. Raises ServerFailed."""
        fatal: Fatal | None = None
        try:
            while fatal is None and self._watch.wanted() is None:
                self._start_due(self.children)
                fatal = self._turn()
            if fatal is not None:
                log.error("%s: stopping", fatal.reason)
            else:
                log.info("stopping: %s", wanted.reason if (wanted := self._watch.wanted()) else "")
            process.tell_stopping()
            self._stop_in_order(replace=fatal is None)
        finally:
            self._kill_all()
            self._close()
        if fatal is not None and fatal.status == process.Exit.FATAL:
            raise ServerFailed(fatal.reason)
        return process.Exit.OK if fatal is None else fatal.status

    # ------------------------------------------------------------------------------------------------------ set-up

    def _specs(self) -> list[ChildSpec]:
        files = self._files
        shared_fds = (self._death_read, self._run_dir.lock_fd, *files.fds)
        handed = ("--resolved", files.settings_path, "--broker-path", files.broker_path)
        common = (*handed, "--death-fd", str(self._death_read))

        def spec(name: str, stage: Stage, *arguments: str, fds: tuple[int, ...] = ()) -> ChildSpec:
            words = (stage.name.lower(), *common, "--name", name, *arguments)
            patience = _FRONTEND_PATIENCE if stage is Stage.FRONTEND else 1
            return ChildSpec(name, stage, words, shared_fds + fds, patience)

        listen_fd = files.listener.fileno()
        inherited = [word for name, fd in self._inherited for word in (name, str(fd))]
        inherited_fds = tuple(fd for _, fd in self._inherited)
        return [
            spec("broker", Stage.BROKER, "--listen-fd", str(listen_fd), fds=(listen_fd,)),
            spec("pool", Stage.POOL),
            *(
                spec(f"frontend-{index}", Stage.FRONTEND, "--index", str(index), *inherited, fds=inherited_fds)
                for index in range(self._settings.server.frontends)
            ),
        ]

    # -------------------------------------------------------------------------------------------------------- loop

    def _start_due(self, children: Sequence[Child]) -> None:
        now_ns = time.monotonic_ns()
        self._files.mend(now_ns)
        for child in children:
            if not child.alive and child.due_ns <= now_ns:
                if not self._files.usable:
                    child.could_not_start(now_ns, self._settings.workers)
                    continue
                name = child.spec.name
                environment = allocator.environment(name, privilege.environment(name, self._environment))
                try:
                    child.start(self._command_of(child.spec), environment, now_ns)
                except OSError as error:
                    log.error("cannot start %s: %s", child.spec.name, error)
                    child.could_not_start(now_ns, self._settings.workers)
                    continue
                log.info("started %s (process %d)", child.spec.name, child.pid)

    def _turn(self) -> Fatal | None:
        """Sleep until something happens, and handle it."""
        starts = (child.due_ns for child in self.children if not child.alive)
        now_ns = time.monotonic_ns()
        # Whoever becomes ready wakes us, so that nothing is missed while not all are.
        beat_ns = self._heartbeat.due_ns if self._all_well(now_ns) else 0
        times = [time_ns for time_ns in (*starts, self._watchdog.look_ns, self._orphans.wake_ns, beat_ns) if time_ns]
        wait_ms = max(0, min(times) - now_ns) // _MS_NS + 1 if times else _IDLE_MS
        self._poll(min(wait_ms, _IDLE_MS), self._watch.fd, self._files.notices.fd)
        self._read_notices()
        self._tend()
        fatal = self._reap_children()
        self._reap_orphans()
        return fatal

    def _poll(self, timeout_ms: int, *fds: int) -> None:
        poller = select.poll()
        for fd in (*fds, *(child.pidfd for child in self.children if child.alive)):
            poller.register(fd, select.POLLIN)
        poller.poll(timeout_ms)

    def _read_notices(self) -> None:
        now_ns = time.monotonic_ns()
        for notice in self._files.notices.read():
            child = next((child for child in self.children if child.pid == notice.pid), None)
            if child is None:
                continue
            child.heard_ns = now_ns
            if notice.ready:
                child.became_ready()
                log.info("%s is ready", child.spec.name)
        if not self._ready_told and all(child.ready for child in self.children):
            self._ready_told = True
            log.info("all processes are ready")
            process.tell_ready()

    def _tend(self) -> None:
        """End what hangs. Tell whoever watches us that all is well, while it is."""
        now_ns = time.monotonic_ns()
        for child in self._watchdog.overdue(self.children, now_ns):
            silent_s = (now_ns - child.heard_ns) / _S_NS
            what = f"has been silent for {silent_s:.1f} s" if child.ready else f"is not ready after {silent_s:.1f} s"
            log.error("%s (process %d) hangs: it %s: killing it", child.spec.name, child.pid, what)
            child.condemned = True
            child.signal(signal.SIGKILL)
        if self._all_well(now_ns):
            self._heartbeat.beat(now_ns)

    def _all_well(self, now_ns: int) -> bool:
        return all(child.ready and not child.condemned for child in self.children) and self._canary.is_well(now_ns)

    def _reap_orphans(self) -> None:
        ours = {child.pid for child in self.children}
        living = []
        for pid in children_of_this_process() - self._strangers - ours:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                log.info("orphan process %d ended with %s", pid, describe_status(os.waitstatus_to_exitcode(status)))
            else:
                living.append(pid)
        for pid in self._orphans.look(living, time.monotonic_ns()):
            log.error("orphan process %d hangs: it outlives the process that started it: killing it", pid)
            os.kill(pid, signal.SIGKILL)

    def _reap_children(self) -> Fatal | None:
        now_ns = time.monotonic_ns()
        for child in self._ended():
            pid, status = child.pid, child.reap()
            self._orphans.leader_died(pid)
            log.error("%s (process %d) ended with %s", child.spec.name, pid, describe_status(status))
            fatal = child.after(status, now_ns, self._settings.workers)
            if fatal is None and mark() != self._installation:
                # What would take its place need not understand the others, nor they it.
                why = "ringserve was installed anew since this server started: all of it must be started anew"
                return Fatal(f"{child.spec.name} ended, and {why}", process.Exit.FAILED)
            if fatal is not None:
                told = read_fatal(self._run_dir.path) if fatal.status == process.Exit.FATAL else ""
                return fatal._replace(reason=told or fatal.reason)
        return None

    def _ended(self) -> list[Child]:
        poller = select.poll()
        by_fd = {child.pidfd: child for child in self.children if child.alive}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        return [by_fd[fd] for fd, _ in poller.poll(0)]

    # ---------------------------------------------------------------------------------------------------- stopping

    def _on_second_signal(self, _number: int) -> None:
        """In a signal handler: the operator does not want to wait."""
        self._hurry = True
        for child in self.children:
            child.signal(signal.SIGKILL)

    def _stop_in_order(self, *, replace: bool) -> None:
        """replace: while frontends drain, whom they still need is started again."""
        for stage in Stage:
            children = [child for child in self.children if child.spec.stage is stage]
            for child in children:
                child.signal(signal.SIGKILL if self._hurry else signal.SIGTERM)
            server = self._settings.server
            drain_ms = server.lame_duck_ms + server.drain_ms_max if stage is Stage.FRONTEND else 0
            if not replace and not all(child.alive for child in self.children if child.spec.stage > stage):
                drain_ms = 0  # nobody is left, nor will be, who could answer what the frontends hold
            deadline_ns = time.monotonic_ns() + (drain_ms + _STOP_MS[stage]) * 1_000_000
            while any(child.alive for child in children):
                now_ns = time.monotonic_ns()
                if now_ns >= deadline_ns:
                    break
                needed = [child for child in self.children if child.spec.stage > stage]
                if stage is not Stage.FRONTEND or not replace or self._hurry:
                    needed = []
                self._start_due(needed)
                wake_ns = min((child.due_ns for child in needed if not child.alive), default=deadline_ns)
                # A signal that comes now kills the children (above), which ends this wait.
                self._poll(max(min(wake_ns, deadline_ns) - now_ns, 0) // _MS_NS + 1, self._files.notices.fd)
                self._read_notices()  # ten that nobody reads, and whoever says READY or STOPPING waits for ever
                for child in self._ended():
                    status = child.reap()
                    log.info("%s stopped with %s", child.spec.name, describe_status(status))
                    if child in needed and child.after(status, time.monotonic_ns(), self._settings.workers):
                        child.due_ns = deadline_ns  # it never comes up: no help to anybody
            for child in children:
                if child.alive:
                    log.error("%s did not stop in time: killing it", child.spec.name)
                    child.signal(signal.SIGKILL)

    def _kill_all(self) -> None:
        """Whatever is still there, children's children included."""
        for child in self.children:
            if child.alive:
                child.signal(signal.SIGKILL)
                child.reap()
        while orphans := children_of_this_process() - self._strangers:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _close(self) -> None:
        self._watch.close()
        self._canary.close()
        self._files.close()
        os.close(self._death_read)
        os.close(self._death_write)


def _raise_descriptor_limit() -> None:
    """A connection is a descriptor; the usual soft limit of 1024 is there for select(), which nobody here uses."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
