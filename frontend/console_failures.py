"""The last failures of all frontends, for the console: when, which model, what code, and a text without its data.

Each frontend keeps its own in a small file of the run directory, written at most twice a second while there are new
ones; whichever frontend is asked reads all of them. Failures of one kind, whose texts differ in numbers or in what
stands between brackets, are one entry that counts, so that one client that fails a thousand times a second does not
drive out the others. Nothing here is touched by a request that succeeds, and a server that refuses most of what comes
looks at a text once between two writes: all others like it are a lookup and an addition (`again`).
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Hashable
from typing import Any, Final

from ringserve.broker.messages import Code
from ringserve.config.rundir import is_private, open_private

log = logging.getLogger(__name__)

#: Entries that one frontend keeps, and that are shown.
ENTRIES_MAX: Final = 50
TEXT_CHARS_MAX: Final = 200
_FLUSH_S: Final = 0.5
#: Failures that are recognized without a look at their texts: clients may choose what is in them.
_LATELY_MAX: Final = 256
_PREFIX: Final = "failures_"

#: Codes whose texts are the server's own and quote nothing of a request.
_OWN_WORDS: Final = frozenset(
    (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.UNAUTHENTICATED,
     Code.PERMISSION_DENIED)
)  # fmt: skip
#: Where a text that was made before the request reached a model begins to quote it.
_QUOTES: Final = re.compile(
    r"""(?<=JSON Value: )|(?<=JSON object: )|(?<=Malformed request: )|["{?]|(?<!\w)'(?!instances'|signature_name')"""
)
#: Where any may: a GET's query is part of its model's name, and clients put keys there.
_QUERY: Final = re.compile(r"\?")
#: Where one that a model's run time wrote may: it may put any value of a tensor behind these.
_VALUES: Final = re.compile(r"""["'`{\[(=<\d]|: """)
#: What may differ between texts of one kind.
_VARIES: Final = re.compile(r"\d+(?:\.\d+)?|\([^)]*\)?")
#: What is looked at of a text: clients' names are quoted in some, as long as a message may be.
_LOOKED_AT_CHARS_MAX: Final = 4_096

#: Entry point, API, model, version, code, text.
_What = tuple[str, str, str, str, str, str]


def shown_text(code: int, text: str, *, ran: bool) -> str:
    """What of a failure's text may be kept: no value that a client sent, and not too much of it.

    ran: the request had been bound to a model, so the text may be the model's run time's.
    """
    is_own = code in _OWN_WORDS
    text = text[:_LOOKED_AT_CHARS_MAX]
    kept = text if is_own else _without_node(text)
    begins = (_QUERY if is_own else _VALUES if ran else _QUOTES).search(kept)
    if begins is not None:
        kept = f"{kept[: begins.start()].rstrip()} …".lstrip()
    return kept if len(kept) <= TEXT_CHARS_MAX else kept[: TEXT_CHARS_MAX - 2] + " …"


def _without_node(text: str) -> str:
    """The text without its first `{{node ...}}` and the blanks around it.

    By hand: a pattern that begins with blanks, or searches for an end that is not there, looks at the rest of a text
    once for each of its beginnings.
    """
    begins = text.find("{{")
    ends = text.find("}}", begins + 2) if begins >= 0 else -1
    return text if ends < 0 else text[:begins].rstrip() + text[ends + 2 :].lstrip()


class RecentFailures:
    """Those of one frontend. process: its name. later: runs a function after so many seconds (call_later)."""

    def __init__(self, run_dir: str, process: str, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._path = os.path.join(run_dir, f"{_PREFIX}{process}.json")
        self._new_path = os.path.join(run_dir, f"new_{_PREFIX}{process}.json")
        self._later = later
        self._flush_planned = False
        #: By kind; the one that came last stands last.
        self._entries: dict[_What, dict[str, Any]] = {}
        #: The same entries by how their callers know them, since the last write.
        self._lately: dict[Hashable, dict[str, Any]] = {}
        for entry in _read(self._path):  # of the process that had this place before
            self._entries[_kind_of(_what_of(entry))] = entry

    def again(self, known_as: Hashable, count: int = 1) -> bool:
        """So many more of those that were noted as this since the last write; False when there was none."""
        entry = self._lately.get(known_as)
        if entry is None:
            return False
        entry["count"] += count
        return True

    def note(self, what: _What, now_s: float, known_as: Hashable = None, count: int = 1) -> None:
        """So many more failures. The text in `what` must be one of `shown_text`."""
        kind = _kind_of(what)
        entry = self._entries.pop(kind, None) or {"count": 0, "first_s": now_s}
        entry.update(what=what, count=entry["count"] + count, last_s=now_s)
        self._entries[kind] = entry
        if known_as is not None and len(self._lately) < _LATELY_MAX:
            self._lately[known_as] = entry
        if len(self._entries) > ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        if not self._flush_planned:
            self._flush_planned = True
            self._later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write them down for the other frontends."""
        self._flush_planned = False
        self._lately.clear()
        try:
            with open(self._new_path, "w", encoding="utf-8", opener=open_private) as file:
                json.dump([*self._entries.values()], file)
            os.replace(self._new_path, self._path)
        except OSError as error:
            log.warning("the console will not show what failed: %s: %s", self._path, error)


def recent_failures(run_dir: str) -> list[dict[str, Any]]:
    """Those of all frontends, the last one first."""
    paths = glob.glob(os.path.join(glob.escape(run_dir), f"{_PREFIX}*.json")) if is_private(run_dir) else []
    merged: dict[_What, dict[str, Any]] = {}
    for entry in sorted((entry for path in paths for entry in _read(path)), key=lambda entry: -entry["last_s"]):
        what = _what_of(entry)
        entrypoint, api, model, version, code, text = what
        known = merged.setdefault(_kind_of(what), {
            "entrypoint": entrypoint, "api": api, "model": model, "version": version, "code": code, "text": text,
            "count": 0, "first_s": entry["first_s"], "last_s": entry["last_s"],
        })  # fmt: skip
        known["count"] += entry["count"]
        known["first_s"] = min(known["first_s"], entry["first_s"])
    return list(merged.values())[:ENTRIES_MAX]


def _kind_of(what: _What) -> _What:
    return (*what[:5], _VARIES.sub("#", what[5]))


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
