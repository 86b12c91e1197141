"""A host with a real systemd, for tests: a container (systemd-nspawn) over a Debian root, which stays as it is.

Needs root, systemd-nspawn and a root made once with
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3-minimal,libpython3-stdlib,procps,curl \\
        bookworm ROOT
This source tree and the packages of the running interpreter are bound in, read-only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Self

from tests.e2e.server import wait_until

_SOURCE = Path(__file__).resolve().parents[2]
_COMMAND = """#!/bin/sh
export PYTHONPATH=/opt/first:/opt/src:/opt/site
exec /usr/bin/python3 -m ringserve "$@"
"""
#: Makes every process that is started from then on one of a later release, whose protocol is another one.
_NEWER_MARK = "/opt/first/newer"
_CUSTOMIZE = f"""
import os
if os.path.exists("{_NEWER_MARK}"):
    from ringserve.broker import messages
    messages.PROTOCOL_VERSION += 1
"""
_CGROUP = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()


def missing(root: Path) -> str:
    """Why there can be no such host here; empty when there can."""
    if os.geteuid() != 0:
        return "only root can start a container"
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is not installed (apt-get install systemd-container)"
    if not (root / "lib/systemd/systemd").exists():
        return f"{root} is no root of a Debian with systemd (see tests/systemd/host.py)"
    if sys.version_info[:2] != (3, 11):
        return "the packages of this interpreter are not for the Python 3.11 of Debian 12"
    return ""


def _removed(cgroup: Path) -> bool:
    """Remove a control group; False while a process of it is still ending."""
    for path, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return not cgroup.exists()


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


class Host:
    """Use it as a context manager; leaving it pulls the plug. models: bound to /models, read-only."""

    def __init__(self, root: Path, models: Path) -> None:
        self._root = root
        self._models = models
        self._folder = Path(tempfile.mkdtemp(prefix="rs-host-", dir="/tmp"))
        self._cgroups: list[Path] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self._clear()
            raise
        return self

    def _boot(self) -> None:
        upper, work, merged = (self._folder / name for name in ("upper", "work", "merged"))
        for path in (upper, work, merged):
            path.mkdir()
        options = f"lowerdir={self._root},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
        self._write(merged / "usr/bin/ringserve", _COMMAND, 0o755)
        for name in ("opt/first", "opt/src", "opt/site", "models"):
            (merged / name).mkdir(parents=True, exist_ok=True)
        self._write(merged / "opt/first/sitecustomize.py", _CUSTOMIZE, 0o644)
        name = f"rs-host-{os.getpid()}-{next(_NUMBERS)}"
        for hierarchy in ("unified", "systemd", "pids"):
            if (_CGROUP / hierarchy / "cgroup.procs").exists():
                self._cgroups.append(_CGROUP / hierarchy / name)
        command = [
            *("systemd-nspawn", "-q", "-D", str(merged), "--boot", "--keep-unit", "--register=no"),
            *(f"--machine={name}", "--private-network", "--link-journal=no", "--console=pipe"),
            *(f"--bind-ro={_SOURCE}:/opt/src", f"--bind-ro={sysconfig.get_path('purelib')}:/opt/site"),
            f"--bind-ro={self._models}:/models",
        ]
        for cgroup in self._cgroups:
            cgroup.mkdir()
        join = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in self._cgroups)
        log = (self._folder / "log").open("wb")
        self._nspawn = subprocess.Popen(
            ["sh", "-c", f'{join}exec "$@"', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_until(self._find_init, "the container's init")
        wait_until(lambda: self.run("systemctl", "is-system-running", check=False) != "", "systemd to answer")
        wait_until(lambda: self.run("systemctl", "is-system-running", check=False) in ("running", "degraded"), "boot")

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> None:
        path.write_text(text)
        path.chmod(mode)

    def _find_init(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, (self._folder / "log").read_text()
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        # Those before it only prepare its namespaces.
        inits = [pid for pid in children if _name_of(pid) == "systemd"]
        self._init = int(inits[0]) if inits else 0
        return bool(self._init)

    def words(self, *command: str) -> list[str]:
        """The command line that runs `command` inside."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0"]
        return ["nsenter", "-t", str(self._init), "-a", *environment, *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run it inside; returns its standard output, without blanks around it."""
        ran = subprocess.run(self.words(*command), capture_output=True, text=True, check=False, timeout=170)
        if check and ran.returncode:
            raise AssertionError(f"{' '.join(command)}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout.strip()

    def put(self, path: str, text: str) -> None:
        """Write a file inside."""
        words = self.words("sh", "-c", f"mkdir -p $(dirname {path}); cat > {path}")
        subprocess.run(words, input=text, text=True, check=True)

    def install_later_release(self) -> None:
        """As pip would over the installation: what runs stays as it is, and what is started is of another protocol."""
        code = "from ringserve.broker import messages; print(messages.PROTOCOL_VERSION)"
        ask = ("env", "PYTHONPATH=/opt/first:/opt/src:/opt/site", "python3", "-c", code)
        before = self.run(*ask)
        self.put(_NEWER_MARK, "")
        assert self.run(*ask) != before

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-P", key, unit)

    def journal(self, unit: str = "ringserve*") -> str:
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit, check=False)

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            sys.stderr.write(self.journal()[-8000:] + "\n")
        self._clear()

    def _clear(self) -> None:
        if self._nspawn is not None:
            for pid in (self._init, self._nspawn.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid or self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait(60)
        subprocess.run(["umount", self._folder / "merged"], check=False)
        for cgroup in self._cgroups:
            wait_until(lambda cgroup=cgroup: _removed(cgroup), f"{cgroup} to be empty")  # type: ignore[misc]
        shutil.rmtree(self._folder, ignore_errors=True)
