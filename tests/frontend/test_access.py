"""Who may ask for what: the decisions, without a network or a clock."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.config.keys_file import (
    RATE_SLOTS,
    Entry,
    KeysError,
    Scopes,
    digest_of,
    new_token,
    parse_anonymous,
    parse_keys,
    parse_scopes,
    read_keys,
    written,
)
from ringserve.frontend.access import Access, Key, Refusal

S = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5 * S

    def __call__(self) -> int:
        return self.now_ns


def entry(
    name: str, token: str = "", scopes: str = "predict", *, certificate: str = "", rate: float = 0.0, burst: int = 1
) -> Entry:
    digest = b"" if certificate else digest_of((token or name).encode())
    return Entry(name, digest, certificate, parse_scopes(scopes.split()), rate, burst)


def access(*entries: Entry, clock: Clock | None = None, anonymous: str = "", rates: list[int] | None = None) -> Access:
    scopes = parse_anonymous(anonymous)
    made = Access(rates if rates is not None else [0] * RATE_SLOTS, clock or Clock(), scopes)
    made.use(entries)
    return made


def name_of(outcome: Key | Refusal) -> str:
    return outcome.name if isinstance(outcome, Key) else f"{outcome.code.name} {outcome.reason}"


A, B = entry("a", "token-a"), entry("b", "token-b", "status")
CERTIFIED = entry("c", certificate="dns:client.example")


@pytest.mark.parametrize(
    ("shown", "names", "expected"),
    [
        (b"Bearer token-a", (), "a"),
        (b"bearer token-a", (), "a"),
        (b"BEARER  token-a ", (), "a"),
        (b"token-b", (), "b"),  # x-api-key
        (b"Bearer token-b", ("dns:client.example",), "b"),
        (None, ("dns:other", "dns:client.example"), "c"),
        (None, (), "UNAUTHENTICATED missing"),
        (None, ("dns:other", "cn:client.example", "client.example"), "UNAUTHENTICATED missing"),
        (b"", ("dns:client.example",), "UNAUTHENTICATED unknown"),
        (b"Bearer token-c", (), "UNAUTHENTICATED unknown"),
        (b"Bearer token-", (), "UNAUTHENTICATED unknown"),
        (b"Bearer token-aa", (), "UNAUTHENTICATED unknown"),
        (b"Bearertoken-a", (), "UNAUTHENTICATED unknown"),
        (b"Basic token-a", (), "UNAUTHENTICATED unknown"),
        (b"Bearer Bearer token-a", (), "UNAUTHENTICATED unknown"),
        # a wrong token is not made up for by a right certificate
        (b"Bearer x", ("dns:client.example",), "UNAUTHENTICATED unknown"),
        (b"\xff\x00", (), "UNAUTHENTICATED unknown"),
        (digest_of(b"token-a"), (), "UNAUTHENTICATED unknown"),
        (digest_of(b"token-a").hex().encode(), (), "UNAUTHENTICATED unknown"),
    ],
)
def test_who_is_it(shown: bytes | None, names: tuple[str, ...], expected: str) -> None:
    made = access(A, B, CERTIFIED)
    for _ in range(3):  # the first time, and when it is remembered
        assert name_of(made.admit(shown, names)) == expected


@given(st.binary(max_size=80))
def test_no_other_bytes_are_a_token(shown: bytes) -> None:
    assert isinstance(access(A, B).admit(b"Bearer x" + shown, ()), Refusal)


def test_nothing_wrong_is_remembered_and_what_is_remembered_is_bounded() -> None:
    made = access(A)
    for number in range(10_000):
        made.admit(b"Bearer wrong-%d" % number, ())
        made.admit(b"Bearer" + b" " * (number + 1) + b"token-a", ())
    assert len(made._known) <= 4_096
    assert set(made._known.values()) == {made._by_digest[A.digest]}


def test_keys_that_are_gone_do_not_hold_any_more() -> None:
    made = access(A, CERTIFIED)
    assert name_of(made.admit(b"token-a", ())) == "a"
    made.use([B])
    assert name_of(made.admit(b"token-a", ())) == "UNAUTHENTICATED unknown"
    assert name_of(made.admit(None, ("dns:client.example",))) == "UNAUTHENTICATED missing"
    assert name_of(made.admit(b"token-b", ())) == "b"
    made.use([])
    assert name_of(made.admit(b"token-b", ())) == "UNAUTHENTICATED unknown"


def test_scopes_that_change_hold_at_once() -> None:
    made = access(A)
    key = made.admit(b"token-a", ())
    assert isinstance(key, Key)
    assert key.may_predict("m")
    made.use([A._replace(scopes=Scopes(("other",)))])
    key = made.admit(b"token-a", ())
    assert isinstance(key, Key)
    assert not key.may_predict("m")


def test_anonymous_scopes() -> None:
    made = access(A, anonymous="status, predict:public-*")
    key = made.admit(None, ())
    assert isinstance(key, Key)
    assert (key.is_status, key.is_admin) == (True, False)
    assert (key.may_predict("public-x"), key.may_predict("x")) == (True, False)
    assert name_of(made.admit(b"wrong", ())) == "UNAUTHENTICATED unknown"
    assert name_of(made.admit(b"token-a", ())) == "a"


@pytest.mark.parametrize(
    ("scopes", "model", "predict", "look", "status", "admin"),
    [
        ("predict", "any", True, True, False, False),
        ("predict:digits*", "digits-2", True, True, False, False),
        ("predict:digits*", "my-digits", False, False, False, False),
        ("predict:digits*", "Digits", False, False, False, False),
        ("predict:a predict:b?", "bx", True, True, False, False),
        ("predict:a predict:b?", "b", False, False, False, False),
        ("predict:a.c", "abc", False, False, False, False),
        ("predict:[ab]", "b", True, True, False, False),
        ("predict:m", "m\n", False, False, False, False),
        ("status", "m", False, True, True, False),
        ("admin", "m", False, True, True, True),
    ],
)
def test_scopes(scopes: str, model: str, predict: bool, look: bool, status: bool, admin: bool) -> None:
    key = Key("k", parse_scopes(scopes.split()))
    for _ in range(2):
        assert (key.may_predict(model), key.may_look(model)) == (predict, look)
    assert (key.is_status, key.is_admin) == (status, admin)


def test_models_that_are_remembered_are_bounded() -> None:
    key = Key("k", Scopes(("a*",)))
    assert all(key.may_predict(f"{letter}{number}") is (letter == "a") for number in range(3000) for letter in "ab")
    assert len(key._models) <= 1_024


# --------------------------------------------------------------------------------------------------------------- rates


def admitted(made: Access, count: int, shown: bytes = b"k") -> int:
    return sum(isinstance(made.admit(shown, ()), Key) for _ in range(count))


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    made = access(entry("k", rate=10, burst=5), clock=clock)
    assert admitted(made, 20) == 5
    clock.now_ns += S // 10
    assert admitted(made, 20) == 1
    clock.now_ns += S
    assert admitted(made, 20) == 5  # a pause gives no more than a burst
    for _ in range(100):
        clock.now_ns += S // 10
        assert admitted(made, 2) == 1


def test_a_refusal_says_when_to_come_again() -> None:
    clock = Clock()
    made = access(entry("k", rate=0.1, burst=2), clock=clock)
    assert admitted(made, 2) == 2
    refusal = made.admit(b"k", ())
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason, refusal.retry_after_s) == (Code.RESOURCE_EXHAUSTED, "rate", 10)
    clock.now_ns += refusal.retry_after_s * S
    assert admitted(made, 2) == 1
    clock.now_ns += 9 * S + S // 2
    refusal = made.admit(b"k", ())
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == 1


def test_rates_are_the_keys_own_and_shared_between_processes() -> None:
    clock, rates = Clock(), [0] * RATE_SLOTS
    entries = [entry("k", rate=1, burst=3), entry("other", rate=1, burst=3), entry("free")]
    one, two = (access(*entries, clock=clock, rates=rates) for _ in range(2))
    assert admitted(one, 2) + admitted(two, 2) + admitted(one, 2) == 3
    assert admitted(two, 10, b"other") == 3
    assert admitted(one, 10, b"free") == 10
    assert sum(map(bool, rates)) == 2


def test_a_new_rate_is_not_held_up_by_the_old_one() -> None:
    clock = Clock()
    made = access(entry("k", rate=1 / 3600, burst=100), clock=clock)
    assert admitted(made, 200) == 100
    made.use([entry("k", rate=10, burst=1)])
    assert admitted(made, 1) == 0
    clock.now_ns += S // 10
    assert admitted(made, 5) == 1


@given(st.lists(st.integers(0, 3 * S), max_size=60), st.integers(1, 5), st.sampled_from([0.5, 1.0, 7.0]))
def test_never_more_than_the_burst_and_the_rate_allow(pauses: list[int], burst: int, rate: float) -> None:
    clock = Clock()
    made = access(entry("k", rate=rate, burst=burst), clock=clock)
    start_ns, count = clock.now_ns, 0
    for pause in pauses:
        clock.now_ns += pause
        count += admitted(made, 1)
        assert count <= burst + (clock.now_ns - start_ns) * rate / S + 1e-6


def test_names_whose_places_collide_do_not_share_one() -> None:
    made = access(*(entry(f"k{number}", rate=1) for number in range(2000)))
    slots = [key.slot for key in made._by_digest.values()]
    assert len(set(slots)) == 2000
    assert max(slots) < RATE_SLOTS


# ------------------------------------------------------------------------------------------------------------ the file

HASH = hashlib.sha256(b"t").hexdigest()


def test_a_file_of_keys(tmp_path: object) -> None:
    text = f"""
[[keys]]
name = "a"
sha256 = "{HASH.upper()}"
scopes = ["predict:x*", "admin"]
requests_per_s = 2.5
[[keys]]
name = "b"
certificate = "uri:spiffe://example/b"
scopes = ["status"]
"""
    assert parse_keys(text, "f") == (
        Entry("a", bytes.fromhex(HASH), "", Scopes(("x*",), True, True), 2.5, 2),
        Entry("b", b"", "uri:spiffe://example/b", Scopes((), True, False)),
    )
    assert parse_keys("", "f") == ()


GOOD = f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = [", "f: not a TOML file"),
        ("x = 1", "f: 'x' is nothing that belongs here"),
        ("keys = 1", "keys must be tables"),
        ("[[keys]]\nscopes = ['predict']", "f: key 1 has no name"),
        ("[[keys]]\nname = 'a\\u0007'", "f: key 1"),
        (GOOD.replace("scopes", "scope"), r"key 1: 'scope' is nothing"),
        (GOOD.replace('sha256 = "', 'certificate = "dns:x"\nsha256 = "'), r"key 1 \(a\) must have either"),
        (GOOD.replace("sha256", "certificate"), "certificate must begin with one of dns:"),
        (GOOD.replace(HASH, HASH[1:]), "sha256 must be 64 hexadecimal digits"),
        (GOOD.replace(HASH, "x" * 64), "sha256 must be 64 hexadecimal digits"),
        (GOOD.replace('"predict"', ""), "scopes must be a list"),
        (GOOD.replace('["predict"]', '"predict"'), "scopes must be a list"),
        (GOOD.replace("predict", "predict:"), "'predict:' is no scope"),
        (GOOD.replace("predict", "Admin"), "'Admin' is no scope"),
        (GOOD + "requests_per_s = 0", "requests_per_s must be a number above 0"),
        (GOOD + "requests_per_s = -1", "requests_per_s must be a number above 0"),
        (GOOD + "requests_per_s = nan", "requests_per_s must be a number above 0"),
        (GOOD + "requests_per_s = true", "requests_per_s must be a number above 0"),
        (GOOD + "burst = 5", "burst without requests_per_s"),
        (GOOD + "requests_per_s = 1\nburst = 0", "burst must be a whole number"),
        (GOOD + GOOD, "two keys have the name 'a'"),
        (GOOD + GOOD.replace('"a"', '"b"'), "two keys have the sha256"),
    ],
)
def test_what_is_no_file_of_keys(text: str, expected: str) -> None:
    with pytest.raises(KeysError, match=expected):
        parse_keys(text, "f")


def test_a_file_that_cannot_be_read(tmp_path: object) -> None:
    with pytest.raises(KeysError, match="No such file"):
        read_keys(f"{tmp_path}/nowhere")
    with pytest.raises(KeysError, match="Is a directory"):
        read_keys(str(tmp_path))


@given(st.text(min_size=1), st.lists(st.sampled_from(["predict", "status", "predict:a\"b'*\\"]), min_size=1))
def test_what_is_written_is_read(name: str, scopes: list[str]) -> None:
    token = new_token()
    try:
        text = written(name, token, scopes, 1.5, 7)
    except KeysError:
        assert not name.isprintable()
        return
    assert token not in text
    assert parse_keys(text, "f") == (Entry(name, digest_of(token.encode()), "", parse_scopes(scopes), 1.5, 7),)


def test_tokens_are_long_and_each_is_another() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) >= 43 + len("rs_") and token.isascii() for token in tokens)
