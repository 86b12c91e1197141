"""Inboxes of the dead are removed, those of the living stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ringserve.broker.mailbox import remove_dead_inboxes


def test_inboxes_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"broker-{gone.pid}.inbox", f"worker-3-{os.getpid()}.inbox", "other.inbox", f"x-{gone.pid}.json"):
        (tmp_path / name).touch()
    assert remove_dead_inboxes(str(tmp_path)) == [f"broker-{gone.pid}.inbox"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["other.inbox", f"x-{gone.pid}.json", f"worker-3-{os.getpid()}.inbox"]
    )
