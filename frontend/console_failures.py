"""The last failures of all frontends, for the console: when, which model, what code, and a text without its data.

Each frontend keeps its own in a small file of the run directory, written at most twice a second while there are new
ones; whichever frontend is asked reads all of them. Equal failures are one entry that counts, so that one client that
fails a thousand times a second does not drive out the others. Nothing here is touched by a request that succeeds.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Callable
from typing import Any, Final

from ringserve.broker.messages import Code

log = logging.getLogger(__name__)

#: Entries that one frontend keeps, and that are shown.
ENTRIES_MAX: Final = 50
TEXT_CHARS_MAX: Final = 200
_FLUSH_S: Final = 0.5
_PREFIX: Final = "failures_"

#: Codes whose texts are the server's own and quote nothing of a request.
_OWN_WORDS: Final = frozenset(
    (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.UNAUTHENTICATED,
     Code.PERMISSION_DENIED)
)  # fmt: skip
#: Where a text that was made before the request reached a model begins to quote it.
_QUOTES: Final = re.compile(
    r"""(?<=JSON Value: )|(?<=JSON object: )|(?<=Malformed request: )|["{]|(?<!\w)'(?!instances'|signature_name')"""
)
#: Where one that a model's run time wrote may: it may put any value of a tensor behind these.
_VALUES: Final = re.compile(r"""["'`{\[(=<\d]|: """)
_NODE: Final = re.compile(r"\s*\{\{.*?\}\}\s*")

#: Entry point, API, model, version, code, text.
_What = tuple[str, str, str, str, str, str]


def shown_text(code: int, text: str, *, ran: bool) -> str:
    """What of a failure's text may be kept: no value that a client sent, and not too much of it.

    ran: the request had been bound to a model, so the text may be the model's run time's.
    """
    kept = text
    if code not in _OWN_WORDS:
        kept = _NODE.sub("", text, count=1)
        begins = (_VALUES if ran else _QUOTES).search(kept)
        if begins is not None:
            kept = f"{kept[: begins.start()].rstrip()} …".lstrip()
    return kept if len(kept) <= TEXT_CHARS_MAX else kept[: TEXT_CHARS_MAX - 2] + " …"


class RecentFailures:
    """Those of one frontend. process: its name. later: runs a function after so many seconds (call_later)."""

    def __init__(self, run_dir: str, process: str, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._path = os.path.join(run_dir, f"{_PREFIX}{process}.json")
        self._new_path = os.path.join(run_dir, f"new_{_PREFIX}{process}.json")
        self._later = later
        self._flush_planned = False
        #: How often, and when first and last (seconds since 1970 began); the one that came last stands last.
        self._entries: dict[_What, list[float]] = {}
        for entry in _read(self._path):  # of the process that had this place before
            self._entries[_what_of(entry)] = [entry["count"], entry["first_s"], entry["last_s"]]

    def note(self, what: _What, now_s: float) -> None:
        """One more failure. The text in `what` must be one of `shown_text`."""
        times = self._entries.pop(what, None) or [0, now_s, now_s]
        self._entries[what] = [times[0] + 1, times[1], now_s]
        if len(self._entries) > ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        if not self._flush_planned:
            self._flush_planned = True
            self._later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write them down for the other frontends."""
        self._flush_planned = False
        entries = [
            {"what": what, "count": count, "first_s": first_s, "last_s": last_s}
            for what, (count, first_s, last_s) in self._entries.items()
        ]
        try:
            fd = os.open(self._new_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(entries, file)
            os.replace(self._new_path, self._path)
        except OSError as error:
            log.warning("the console will not show what failed: %s: %s", self._path, error)


def recent_failures(run_dir: str) -> list[dict[str, Any]]:
    """Those of all frontends, the last one first."""
    paths = glob.glob(os.path.join(glob.escape(run_dir), f"{_PREFIX}*.json"))
    merged: dict[_What, dict[str, Any]] = {}
    for entry in (entry for path in sorted(paths) for entry in _read(path)):
        what = _what_of(entry)
        entrypoint, api, model, version, code, text = what
        known = merged.get(what)
        if known is None:
            merged[what] = {
                "entrypoint": entrypoint, "api": api, "model": model, "version": version, "code": code, "text": text,
                "count": entry["count"], "first_s": entry["first_s"], "last_s": entry["last_s"],
            }  # fmt: skip
        else:
            known["count"] += entry["count"]
            known["first_s"] = min(known["first_s"], entry["first_s"])
            known["last_s"] = max(known["last_s"], entry["last_s"])
    return sorted(merged.values(), key=lambda entry: -entry["last_s"])[:ENTRIES_MAX]


def _what_of(entry: dict[str, Any]) -> _What:
    entrypoint, api, model, version, code, text = entry["what"]
    return entrypoint, api, model, version, code, text


def _read(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            entries: list[dict[str, Any]] = json.load(file)
            return entries
    except (OSError, ValueError):
        return []  # there is none, or a machine went down while it was written
