"""A real limit on processes: a control group in which none may be started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup/pids")


@contextmanager
def group_without_room(pid: int) -> Iterator[Path]:
    """A control group (version 1) of this process and its threads, which may start none. It leaves the group at the
    end, with those whom it has started by then."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = [path for _, name, path in own if name == "pids"]
    if not paths:
        pytest.skip("there are no version 1 control groups of processes here")
    above = _ROOT / paths[0].lstrip("/")
    group = above / f"ringserve-faults-{os.getpid()}-{pid}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield group
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (above / "cgroup.procs").write_text(member)
        group.rmdir()
