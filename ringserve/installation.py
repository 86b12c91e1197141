"""Which installation of ringserve this is: whether its files were replaced since the process started (pip does that).

A server whose files were replaced runs on, of the old release; but a process that it starts from then on is of the new
one, and need not understand it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import ringserve


class Mark(NamedTuple):
    """Of the file that every release has; pip writes it anew, whatever the release. 0, 0: it is not there."""

    inode: int
    modified_ns: int


def mark() -> Mark:
    """The installation as it is on the disk now."""
    try:
        found = os.stat(ringserve.__file__)
    except OSError:
        return Mark(0, 0)
    return Mark(found.st_ino, found.st_mtime_ns)
