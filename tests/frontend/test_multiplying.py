"""Few bytes of a gRPC client never become many: what would, is refused before it is made."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code, Failure
from ringserve.config.metrics import UNKNOWN_MODEL
from ringserve.config.protos import (
    ClassificationResponse,
    ModelSpec,
    MultiInferenceResponse,
    PredictRequest,
    RegressionResponse,
    TensorProto,
)
from ringserve.frontend import console_failures, grpc_examples, tensor_proto
from ringserve.frontend.access import Access, Key
from ringserve.frontend.console_failures import RecentFailures, shown_text
from ringserve.frontend.examples import with_context
from ringserve.frontend.grpc_api import CLASSIFY, MULTI_INFERENCE, PREDICT, REGRESS
from ringserve.frontend.grpc_encoder import ENCODERS
from ringserve.frontend.lanes import LaneTable
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.predict_codec import PredictDecoder
from ringserve.frontend.tally import GRPC, Tally
from ringserve.frontend.tensor_proto import STRINGS_FILLED_MAX, Tensor, decode
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import FLOAT, STRING
from tests.frontend.fakes import LoopbackClient, catalog_of, float_proto, signature_def, usual_catalog, version_info
from tests.frontend.grpc_kit import (
    BOTH,
    TWO,
    answers,
    call,
    classification,
    example,
    make_client,
    multi,
    pairs,
    regression,
)

EXHAUSTED = Code.RESOURCE_EXHAUSTED
BYTES_MAX = 2**20

# ------------------------------------------------------------------------------------------------------------ contexts


class Uncopied(bytes):
    """A context that nobody may put in front of anything."""

    def __add__(self, _: Any) -> bytes:
        raise AssertionError("copied")


def test_a_context_is_not_copied_for_more_examples_than_fit() -> None:
    context, examples = Uncopied(1_000), [b"x"] * 1_000
    refused = with_context(context, examples, 1_000_000)
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED
    assert "1000 examples with a context of 1000 bytes would need 1009016 bytes" in refused.text
    made = with_context(bytes(context), examples, 1_009_016)
    assert isinstance(made, list)
    assert made == [bytes(1_000) + b"x"] * 1_000
    assert with_context(b"", examples, 1) == examples  # these are as many bytes as were sent; the ring judges them


LONG = example(**{"x" * 1_000: 1})


def multi_with_context() -> Any:
    request = multi(*BOTH, examples=())
    request.input.example_list_with_context.context.CopyFrom(LONG)
    request.input.example_list_with_context.examples.extend(TWO * 600)
    return request


@pytest.mark.parametrize(
    ("method", "made"),
    [
        (CLASSIFY, lambda: classification(*TWO * 600, context=LONG)),
        (REGRESS, lambda: regression(*TWO * 600, context=LONG)),
        (MULTI_INFERENCE, multi_with_context),
    ],
)
def test_every_call_with_examples_bounds_its_context(method: str, made: Callable[[], Any]) -> None:
    client = make_client()
    refused = call(client, method, made(), tensor_bytes_max=BYTES_MAX)
    assert refused.failure is not None
    assert refused.failure[0] == EXHAUSTED
    assert "examples with a context of" in refused.failure[1]
    assert not client.requests
    client.model = None
    call(client, method, made(), tensor_bytes_max=2 * BYTES_MAX)
    assert len(client.requests) == (2 if method == MULTI_INFERENCE else 1)


@pytest.mark.parametrize(
    ("method", "made"), [(CLASSIFY, classification), (REGRESS, regression), (MULTI_INFERENCE, None)]
)
@pytest.mark.parametrize("count", [10, 10_000])
def test_long_answers_are_encoded_aside(
    method: str, made: Callable[..., Any] | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread, and the same as in the event loop."""
    threads: set[str] = set()

    def watched(name: str) -> Callable[[Any], bytes]:
        encode: Callable[[Any], bytes] = getattr(grpc_examples, name)

        def encoded(result: Any) -> bytes:
            threads.add(threading.current_thread().name.partition("_")[0])
            return encode(result)

        return encoded

    for name in ("encode_classes", "encode_regressions"):
        monkeypatch.setattr(grpc_examples, name, watched(name))
    client = make_client()
    client.model = answers(
        classes=(STRING, (count, 1), [[b"a"]] * count),
        scores=(FLOAT, (count, 1), np.full((count, 1), 0.5, "<f4")),
        outputs=(FLOAT, (count, 1), np.full((count, 1), 3, "<f4")),
    )
    request = multi(*BOTH, examples=TWO * (count // 2)) if made is None else made(*TWO * (count // 2))

    async def called() -> Any:
        call_made = call(client, method, request)
        while not (call_made.message or call_made.failure):
            await asyncio.sleep(0.001)  # the thread has no other way to say that it is done
        return call_made

    done = asyncio.run(called())
    assert done.failure is None
    assert threads == {"grpc-encoder" if count > 8_192 else "MainThread"}
    response = {CLASSIFY: ClassificationResponse, REGRESS: RegressionResponse}.get(method, MultiInferenceResponse)
    found = response.FromString(done.message)
    results = [found.result] if made is not None else [found.results[0].classification_result]
    for result in results:
        if method == REGRESS:
            assert [each.value for each in result.regressions] == [3.0] * count
        else:
            assert pairs(result) == [[("a", 0.5)]] * count


def test_who_leaves_while_a_long_answer_is_encoded_is_not_answered() -> None:
    client = make_client()
    client.model = answers(outputs=(FLOAT, (10_000, 1), np.zeros((10_000, 1), "<f4")))

    async def called() -> Any:
        made = call(client, REGRESS, regression(*TWO * 5_000))
        assert made.cancel is not None
        made.cancel()
        await asyncio.get_running_loop().run_in_executor(ENCODERS, int)  # what comes behind it
        return made

    made = asyncio.run(called())
    assert (made.message, made.failure) == (None, None)


# ------------------------------------------------------------------------------------------------ what shapes promise


def strings(count: int, *sent: bytes, **fields: Any) -> Tensor | Failure:
    made = TensorProto(dtype=dt.STRING, string_val=sent, **fields)
    made.tensor_shape.dim.add(size=count)
    return decode(made, "x", 2**30)


def test_few_strings_may_be_promised() -> None:
    filled = strings(STRINGS_FILLED_MAX, b"a", b"b")
    assert isinstance(filled, Tensor)
    assert filled.data == [b"a"] + [b"b"] * (STRINGS_FILLED_MAX - 1)
    count = STRINGS_FILLED_MAX + 1
    whole = strings(count, *[b""] * count)
    assert isinstance(whole, Tensor)
    assert len(whole.data) == count
    cut = strings(count, *[b""] * (count + 1))
    assert isinstance(cut, Tensor)


@pytest.mark.parametrize("sent", [(), (b"",), (b"a",) * STRINGS_FILLED_MAX])
def test_many_strings_may_not(sent: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tensor_proto, "_string_values")  # nobody makes any
    for count in (STRINGS_FILLED_MAX + 1, 2**24, 2**27 - 1):
        refused = strings(count, *sent)
        assert isinstance(refused, Failure)
        assert refused.code == EXHAUSTED
        assert f"has {len(sent)} of its {count} strings" in refused.text


@pytest.mark.parametrize(
    ("dtype", "itemsize", "fields"),
    [(dt.FLOAT, 4, {"float_val": [1.0]}), (dt.FLOAT, 4, {}), (dt.UINT8, 1, {"int_val": [1]}), (dt.BOOL, 1, {})],
)
def test_no_tensor_is_filled_up_without_end(
    dtype: int, itemsize: int, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_proto, "FILLED_BYTES_MAX", 2**12)
    sent = sum(map(len, fields.values()))
    for missing in (2**12 // itemsize, 2**12 // itemsize + 1):
        made = TensorProto(dtype=dtype, **fields)
        made.tensor_shape.dim.add(size=sent + missing)
        found = decode(made, "x", 2**30)
        if missing * itemsize <= 2**12:
            assert isinstance(found, Tensor)
        else:
            assert isinstance(found, Failure)
            assert found.code == EXHAUSTED
            assert f"would be filled up with {missing * itemsize} bytes" in found.text


def test_a_long_string_is_not_promised_often() -> None:
    refused = strings(2_000, bytes(2**20))
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED
    assert str(1_999 * 2**20) in refused.text
    assert isinstance(strings(1_000, bytes(2**20)), Tensor)


def test_strings_that_come_as_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_proto, "STRINGS_MAX", 1_000)
    assert isinstance(strings(1_000, tensor_content=bytes(1_000)), Tensor)
    refused = strings(1_001, tensor_content=bytes(1_001))
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED
    short = strings(2_000, tensor_content=bytes(1_001))
    assert short == Failure(Code.INVALID_ARGUMENT, "tensor parsing error: x")


LENGTHS = st.lists(st.sampled_from([0, 1, 127, 128, 300, 2**21, 2**35, 2**62, 2**64]), max_size=50)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.lists(st.sampled_from([b"", b"\x80", b"\xff", b"\x80" * 9, b"\xff" * 9, b"\0"]), max_size=3),
       st.integers(1, 50), st.sampled_from([1, 3, 65_536]))  # fmt: skip
def test_many_lengths_are_read_as_few_are(lengths: list[int], odd: list[bytes], count: int, at_once: int) -> None:
    content = b"".join([tensor_proto.varint(each) for each in lengths] + odd)

    def read(reader: Callable[[bytes, int], tuple[Sequence[int], int]]) -> tuple[list[int], int] | None:
        try:
            found, end = reader(content, count)
        except tensor_proto._ParseError:
            return None
        return (list(found), end) if max(found) <= 2**63 else None  # more than that are refused later

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_proto, "_LENGTHS_AT_ONCE", at_once)
        assert read(tensor_proto._many_lengths) == read(tensor_proto._few_lengths)


@pytest.mark.parametrize("long", [(), (200,)])
def test_lengths_of_many_strings_take_little_memory(long: tuple[int, ...]) -> None:
    """Eight bytes for each and some for a stretch of them; where all are short, the bytes themselves."""
    count = 1_000_000
    content = b"\x0c" * (count - len(long)) + b"".join(map(tensor_proto.varint, long))
    tracemalloc.start()
    try:
        lengths, end = tensor_proto._many_lengths(content, count)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(lengths), end, lengths[-1]) == (count, len(content), 200 if long else 12)
    assert most < count * (24 if long else 2)


def test_all_inputs_together_promise_no_more_than_fits() -> None:
    """Each of them would, by itself."""
    inputs = {alias: (dt.FLOAT, [-1]) for alias in "abc"}
    catalog = catalog_of(version_info("m", 1, {"serving_default": signature_def(inputs, {"y": (dt.FLOAT, [-1])})}))
    decoder = PredictDecoder(catalog, LaneTable(), tensor_bytes_max=BYTES_MAX)

    def decoded(rows: int) -> Any:
        request = PredictRequest(model_spec=ModelSpec(name="m"))
        for alias in inputs:
            request.inputs[alias].CopyFrom(float_proto([1.0], [rows]))
        return decoder.decode(request.SerializeToString())

    assert not isinstance(decoded(BYTES_MAX // 12), Failure)
    refused = decoded(BYTES_MAX // 8)
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED


# ---------------------------------------------------------------------------------------------------------- long names


class Looks:
    """A pattern that remembers how much it was shown."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern
        self.chars: list[int] = []

    def search(self, text: str) -> Any:
        self.chars.append(len(text))
        return self._pattern.search(text)

    def sub(self, with_what: str, text: str) -> Any:
        self.chars.append(len(text))
        return self._pattern.sub(with_what, text)


@pytest.mark.parametrize("name", ["\n" * 400_000, "{{" * 200_000, " " * 400_000, "{{}}" * 100_000, "1" * 400_000])
@pytest.mark.parametrize("ran", [True, False])
def test_little_of_a_long_text_is_looked_at(name: str, ran: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = [pattern for pattern in vars(console_failures) if hasattr(getattr(console_failures, pattern), "pattern")]
    assert "_VALUES" in patterns
    looks = []
    for pattern in patterns:
        looks.append(Looks(getattr(console_failures, pattern)))
        monkeypatch.setattr(console_failures, pattern, looks[-1])
    for code in (Code.NOT_FOUND, Code.UNAVAILABLE):
        assert len(shown_text(code, f"Servable not found for request: Latest({name})", ran=ran)) < 1_000
    assert 0 < max(chars for look in looks for chars in look.chars) <= 4_096


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a {{node b}} c", "ac"), ("{{node b}} c", "c"), ("a {{node b}}", "a"), ("a {{b", "a {{b"),
        ("a }} {{", "a }} {{"), ("{{a}} {{b}}", "{{b}}"), ("{{\n}}x", "x"), ("{}", "{}"), ("", ""),
    ],
)  # fmt: skip
def test_a_nodes_name_is_left_out(text: str, kept: str) -> None:
    assert console_failures._without_node(text) == kept


def test_names_as_long_as_a_message_are_not_held(tmp_path: Path) -> None:
    """Neither by those who count nor by those who show."""
    name = "x" * 100_000
    failures = RecentFailures(str(tmp_path), "frontend-0", lambda *_: None)
    tally = Tally(scope=MetricScope(usual_catalog()), failures=failures)
    for end in "abc":
        for _ in range(2):
            tally.failure(GRPC, "Predict", name + end, Code.NOT_FOUND, f"Servable {name}", tally.clock_ns())
            tally.request(GRPC, "Predict", name + end, Code.CANCELLED, tally.clock_ns())
    assert {key[2] for key in tally._requests} == {UNKNOWN_MODEL}
    assert sorted(sum(counts[:-1]) for counts in tally._requests.values()) == [6, 6]
    assert len(repr((failures._entries, failures._lately))) < 10_000


def test_long_names_of_models_that_are_there_are_counted_as_theirs() -> None:
    name = "x" * 1_000
    tally = Tally(scope=MetricScope(catalog_of(version_info(name, 1))))
    tally.request(GRPC, "Predict", name, Code.OK, tally.clock_ns())
    assert [key[2] for key in tally._requests] == [name]


def test_a_call_for_a_long_name_is_refused_as_any() -> None:
    request = PredictRequest(model_spec=ModelSpec(name="\n" * 400_000))
    request.inputs["x"].CopyFrom(float_proto([1.0], [1]))
    made = call(LoopbackClient(usual_catalog()), PREDICT, request)
    assert made.failure is not None
    assert made.failure[0] == Code.NOT_FOUND


def test_keys_do_not_remember_what_is_long() -> None:
    from ringserve.config.keys_file import Scopes

    access = Access([0] * 10, lambda: 0, Scopes(predict=("a*",)))
    key = access.admit(None, ())
    assert isinstance(key, Key)
    for name in ("a", "b", "a" * 100_000, "b" * 100_000):
        assert key.may_predict(name) == name.startswith("a")
    assert sorted(key._models) == ["a", "b"]
