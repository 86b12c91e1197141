"""Which calls the access log takes, and its lines: chance and time are the test's.

Held here: the sampled share; failures of chosen kinds and slow calls are always taken; a rate bounds failures and
others apart, and what is beyond it is counted; nothing that a client sent can begin a line, a field, or a terminal's
sequence.
"""

from __future__ import annotations

import json
import random
import re

import pytest

from ringserve.broker.messages import Code
from ringserve.config.access_log import AccessLog
from ringserve.frontend.access_lines import Choice, LineMaker, code_of, error_of, status_of
from ringserve.frontend.passing import GONE

MS = 1_000_000
S = 1000 * MS
#: Gone for good: no window of a rate is open.
LATE_NS = 10**15


def choice(chance: float = 0.5, **settings: object) -> Choice:
    return Choice(AccessLog(**settings), lambda: chance)  # type: ignore[arg-type]


def test_the_share_is_taken() -> None:
    taker = Choice(AccessLog(share=0.1, lines_per_s_max=10**6), random.Random(7).random)
    taken = sum(taker.takes(0, 0, LATE_NS) for _ in range(20_000))
    assert 1_800 < taken < 2_200
    again = Choice(AccessLog(share=0.1, lines_per_s_max=10**6), random.Random(7).random)
    assert sum(again.takes(200, 0, LATE_NS) for _ in range(20_000)) == taken


@pytest.mark.parametrize(("share", "chance", "taken"), [(0.0, 0.0, False), (1.0, 0.999999, True), (0.5, 0.5, False)])
def test_the_ends_of_the_share(share: float, chance: float, taken: bool) -> None:
    assert choice(chance, share=share).takes(0, 0, LATE_NS) is taken


STATUSES = [400, 401, 403, 404, 408, 413, 429, 431, 499, 500, 501, 503, 504]


@pytest.mark.parametrize("end", [*range(1, 17), *STATUSES, GONE, 77])
def test_failures_are_always_taken(end: int) -> None:
    assert choice(share=0.0).takes(end, 0, LATE_NS)
    assert not choice(share=0.0, failures="none").takes(end, 0, LATE_NS)


@pytest.mark.parametrize("end", [0, 200, 204, 301])
def test_what_is_no_failure_is_left_to_chance(end: int) -> None:
    assert not choice(share=0.0).takes(end, 0, LATE_NS)


@pytest.mark.parametrize(
    ("end", "taken"),
    [
        (14, True), (503, True), (13, True), (500, True), (505, True), (GONE, False), (8, False), (429, False),
        (3, False), (400, False), (413, False), (2, False),
    ],
)  # fmt: skip
def test_failures_of_chosen_kinds(end: int, taken: bool) -> None:
    assert choice(share=0.0, failures="UNAVAILABLE, INTERNAL").takes(end, 0, LATE_NS) is taken


def test_a_status_that_stands_for_several_codes_counts_as_each() -> None:
    assert choice(share=0.0, failures="FAILED_PRECONDITION").takes(400, 0, LATE_NS)
    assert choice(share=0.0, failures="CANCELLED").takes(GONE, 0, LATE_NS)


@pytest.mark.parametrize(("took_ms", "slow_ms", "taken"), [(99, 100, False), (100, 100, True), (10**6, 0, False)])
def test_slow_calls_are_always_taken(took_ms: int, slow_ms: int, taken: bool) -> None:
    assert choice(share=0.0, slow_ms=slow_ms).takes(0, took_ms * MS, LATE_NS) is taken


def test_a_flood_of_failures_is_bounded_and_hides_nothing() -> None:
    taker = choice(share=1.0, lines_per_s_max=5)
    assert sum(taker.takes(14, 0, LATE_NS + number) for number in range(1000)) == 5
    assert sum(taker.takes(0, 0, LATE_NS + number) for number in range(10)) == 5
    assert taker.dropped == [995, 5]
    taker.dropped[:] = [0, 0]
    assert sum(taker.takes(14, 0, LATE_NS + S + number) for number in range(1000)) == 5
    assert taker.dropped == [995, 0]


# ---------------------------------------------------------------------------------------------------------------- lines

EVIL = [
    "a b", 'quote " here', "equals=1", "back\\slash", "new\nline", "cr\rhere", "tab\t", "\x1b[31mred", "\x00", "ünï",
    "del\x7f", "\x9b31m", "\u2028", "\ud800", "x" * 100_000, "status=OK error=", "",
]  # fmt: skip
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[!-~]+)(?: |$)')


def fields_of(text: str) -> dict[str, str]:
    found = {}
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        assert match, text[at:]
        found[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        at = match.end()
    return found


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_client_sent_stays_in_its_field(evil: str, log_format: str) -> None:
    line = LineMaker("frontend-0", log_format).line(1.5, {"model": evil, "status": 200, "rows": 0, "version": None})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) < 2_000
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    text = line.decode()[:-1]
    if log_format == "json":
        told = json.loads(text)
        assert (told["time"], told["level"], told["process"]) == ("1970-01-01T00:00:01.500Z", "info", "frontend-0")
        assert told["logger"] == "ringserve.access"
    else:
        head = "1970-01-01T00:00:01.500Z info frontend-0: access: "
        assert text.startswith(head)
        told = fields_of(text.removeprefix(head))
    expected = evil if len(evil) <= 256 else evil[:253] + "..."
    assert told.get("model", "") == expected
    assert (str(told["status"]), str(told["rows"])) == ("200", "0")
    assert "version" not in told


@pytest.mark.parametrize(("level", "priority"), [("info", "<6>"), ("warning", "<4>")])
def test_lines_for_the_journal(level: str, priority: str) -> None:
    line = LineMaker("frontend-0", "text", for_journal=True).line(1.5, {"status": "OK"}, level)
    assert line.decode() == f"{priority}frontend-0: access: status=OK\n"
    line = LineMaker("frontend-0", "json", for_journal=True).line(1.5, {"status": "OK"}, level)
    assert json.loads(line.decode().removeprefix(priority))["level"] == level


def test_ends() -> None:
    told = ["OK", "UNAVAILABLE", "UNKNOWN", 200, 503, "CANCELLED"]
    assert [status_of(end) for end in (0, 14, 77, 200, 503, GONE)] == told
    assert [code_of(end) for end in (0, 200, 429, 418, 599, 77)] == [
        Code.OK, Code.OK, Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT, Code.INTERNAL, Code.UNKNOWN,
    ]  # fmt: skip


def test_no_value_of_a_request_is_in_an_error() -> None:
    assert error_of(400, 'JSON Value: {"secret": 1} is not', ran=False) == "JSON Value: ..."
    assert error_of(14, "the server is shutting down", ran=True) == "the server is shutting down"
    assert error_of(0, "", ran=True) == ""
    assert error_of(404, "Could not find any versions of model m?key=secret", ran=False).endswith(" model m ...")
    assert error_of(403, "key k may not look at the model m?key=secret", ran=False).endswith(" model m ...")
