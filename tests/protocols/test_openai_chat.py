"""Chat Completions: any provider's bytes, cut anywhere, become what official clients read; the bill is the same."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamTruncated,
)
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.protocols.openai_chat.server import AnswerEncoder, ChunkEncoder, OpenAiChatServer
from gateway.protocols.wire import Cut, StreamMeta
from tests.protocols.chat_streams import (
    CLIENT,
    DONE,
    ENCODERS,
    ENDING,
    FOREIGN,
    FRAGMENTS,
    META,
    QUIRKS,
    ROLE,
    TEXT,
    USAGE,
    Said,
    chunk,
    events_of,
    heard,
    other_choice,
    relayed,
    sse,
    stream,
)

SERVER = OpenAiChatServer()


@pytest.mark.parametrize("name", QUIRKS)
@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("meta", [META, FOREIGN], ids=["same format", "encoded anew"])
def test_a_quirk_is_gone_before_it_reaches_a_client(name: str, include_usage: bool, meta: StreamMeta) -> None:
    data, said = QUIRKS[name]
    output, bill, failures = relayed(ChunkEncoder(meta, include_usage=include_usage), data)
    assert failures == []
    assert heard(output, include_usage=include_usage) == {0: said}
    assert (bill.usage.input, bill.usage.output, bill.estimated) == (12, 7, False)


@pytest.mark.parametrize("name", QUIRKS)
def test_a_whole_answer_says_the_same(name: str) -> None:
    data, said = QUIRKS[name]
    output, _, _ = relayed(AnswerEncoder(ChunkEncoder(META, include_usage=True)), data)
    answer = json.loads(output)
    (choice,) = answer["choices"]
    message = choice["message"]
    made = message.get("tool_calls", ())
    calls = [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in made]
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    assert Said(message["content"] or "", reasoning, "", calls, choice["finish_reason"]) == said
    assert answer["object"] == "chat.completion"
    assert {key: answer["usage"][key] for key in USAGE} == USAGE
    assert all("index" not in one for one in made)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", QUIRKS)
def test_bytes_cut_at_every_offset_give_the_same_output_and_the_same_bill(name: str, encoder: str) -> None:
    data, _ = QUIRKS[name]
    whole = relayed(ENCODERS[encoder](), data)
    step = max(1, len(data) // 300) if encoder != "chunks as they came" else 1
    for cut in range(1, len(data), step):
        assert relayed(ENCODERS[encoder](), data[:cut], data[cut:]) == whole
    assert relayed(ENCODERS[encoder](), *(data[i : i + 1] for i in range(len(data)))) == whole


def test_a_chunk_without_quirks_passes_untouched_with_all_that_a_vendor_puts_into_it() -> None:
    chunks = [ROLE, {**TEXT[0], "x_vendor": {"a": [1, 2.50]}}, *FRAGMENTS, chunk({}, "tool_calls"), ENDING[1]]
    output, _, _ = relayed(ChunkEncoder(META, include_usage=True), stream(*chunks))
    assert output == stream(*chunks)


def test_choices_are_kept_apart_and_each_gets_its_role_once() -> None:
    both = {**ROLE, "choices": ROLE["choices"] + other_choice(ROLE, 1)["choices"]}
    odd = other_choice(chunk({"role": "assistant", "content": "b"}), 1)
    data = stream(both, TEXT[0], odd, other_choice(chunk({}, "length"), 1), ENDING[0], ENDING[1])
    for meta in (META, FOREIGN):
        output, _, _ = relayed(ChunkEncoder(meta, include_usage=True), data)
        assert heard(output) == {0: Said(text="Hel", finish="stop"), 1: Said(text="b", finish="length")}


def test_reasoning_that_xai_leaves_out_of_its_total_is_counted() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 303}
    usage["completion_tokens_details"] = {"reasoning_tokens": 290}  # type: ignore[assignment]
    (report,) = [event.usage for event in events_of(stream(ROLE, chunk(usage=usage))) if isinstance(event, UsageReport)]
    assert (report.output, report.reasoning, report.raw) == (291, 290, usage)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 8}}, 8),
        ({"prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 7}, 5),
        ({"prompt_tokens_details": None}, 0),
    ],
)
def test_cached_tokens_are_found_wherever_they_are(details: dict[str, Any], cached: int) -> None:
    reports = [e.usage for e in events_of(stream(chunk(usage={**USAGE, **details}))) if isinstance(e, UsageReport)]
    assert [report.cache_read for report in reports] == [cached]


scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
names = ["content", "role", "reasoning", "tool_calls", "function_call", "refusal", "text", "type", "thinking", "model"]
names += ["index", "id", "function", "name", "arguments", "usage", "error", "created", "prompt_tokens", "delta"]
flat = st.dictionaries(st.sampled_from(names), scalar | st.lists(scalar, max_size=2), max_size=4)
nested = st.dictionaries(st.sampled_from(names), scalar | flat | st.lists(flat, max_size=2), max_size=4)
odd = st.dictionaries(st.sampled_from(names), scalar | nested | st.lists(nested, max_size=2), max_size=4)


class TestBrokenStreams:
    @pytest.mark.parametrize("data", [b"", stream(ROLE, *TEXT, end=b""), b": only a comment\n\n"])
    def test_an_end_before_the_finish_is_a_truncation(self, data: bytes) -> None:
        last = events_of(data)[-1]
        assert isinstance(last, Failure) and isinstance(last.error, StreamTruncated)

    @pytest.mark.parametrize(
        "payload",
        [
            *(b"{", b"[]", b"null", b"7", b'"x"', b'{"choices":7}', b'{"choices":[null]}', b"<html>", b'{"a":"\xff"}'),
            *(b'{"choices":[{"index":-1,"delta":{}}]}', b'{"choices":[{"index":99999999999999999999,"delta":{}}]}'),
            b'{"choices":[],"usage":{"prompt_tokens":1},"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'{"choices":[],"usage":{"prompt_tokens":1},"x":"\xff"}',
        ],
    )
    def test_what_is_not_of_the_format_is_told_after_what_came_before_it(self, payload: bytes) -> None:
        events = events_of(stream(ROLE, TEXT[0], end=b"data: " + payload + b"\n\n") + DONE)
        assert TextDelta("Hel") in events
        assert isinstance(events[-1], Failure) and type(events[-1].error) is ProviderProtocolError

    @pytest.mark.parametrize("created", [0, None, "nan", "inf", 1e300, -5])
    def test_a_time_that_is_none_is_replaced(self, created: Any) -> None:
        (start,) = events_of(stream({**ROLE, "created": created}))[:1]
        assert isinstance(start, MessageStart) and 1_600_000_000 < start.created < 10**11

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            ({"code": 429, "message": "slow"}, ProviderRateLimited),
            ({"code": 400, "message": "bad"}, ProviderRejected),
            ({"type": "timeout"}, ProviderTimeout),
            ({"code": "tool_use_failed", "message": "no"}, ProviderRejected),
            ({"code": "server_error"}, ProviderUnavailable),
            *(("busy", ProviderUnavailable), ([1], ProviderUnavailable), ({"code": ["x"]}, ProviderUnavailable)),
        ],
    )
    def test_an_error_within_the_stream_is_one_of_ours(self, error: Any, kind: type[GatewayError]) -> None:
        events = events_of(stream(ROLE, TEXT[0], {"error": error}))
        failures = [event for event in events if isinstance(event, Failure)]
        assert type(failures[0].error) is kind

    @given(st.lists(st.binary(max_size=60), max_size=6))
    def test_random_bytes_are_never_an_exception(self, chunks: list[bytes]) -> None:
        events_of(*chunks)
        CLIENT.decode_response(b"".join(chunks), "up")
        CLIENT.decode_error(500, b"".join(chunks), "up")

    @given(odd=odd, finish=st.none() | st.text(max_size=5), top=odd)
    @example(odd={"tool_calls": "NULL"}, finish=None, top={})
    @example(odd={}, finish=None, top={"choices": "null"})
    @settings(max_examples=60)
    def test_any_json_in_any_place_is_never_an_exception(
        self, odd: dict[str, Any], finish: str | None, top: dict[str, Any]
    ) -> None:
        data = stream(ROLE, {**chunk(odd, finish), **top}, *ENDING)
        for encoder in ENCODERS.values():
            relayed(encoder(), data)


words = st.text(min_size=1, max_size=8)
FINISHES = {"stop": Unified.STOP, "length": Unified.LENGTH, "content_filter": Unified.CONTENT_FILTER}


@st.composite
def conversations(draw: st.DrawFn) -> list[Event]:
    """Events of one legal stream that this format can carry, choice after choice."""
    events: list[Event] = [MessageStart("id1", "m", 1_700_000_001)]
    for choice in range(draw(st.integers(1, 3))):
        kinds = st.sampled_from([TextDelta, ReasoningDelta, RefusalDelta])
        events += [kind(text, choice) for kind, text in draw(st.lists(st.tuples(kinds, words), max_size=5))]
        calls = draw(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), max_size=3))
        for index, (name, fragments) in enumerate(calls):
            events.append(ToolCallStart(index, f"call_{choice}_{index}", name, choice))
            events += [ToolCallDelta(index, fragment, choice) for fragment in fragments]
        events += [ToolCallEnd(index, choice) for index in range(len(calls))]
        raw = "tool_calls" if calls else draw(st.sampled_from(sorted(FINISHES)))
        events.append(Finish(FinishReason(Unified.TOOL_CALLS if calls else FINISHES[raw], raw), choice))
    return events


@given(conversations(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_encoded_is_decoded(events: list[Event], input_tokens: int, output_tokens: int) -> None:
    encoder = ChunkEncoder(FOREIGN, include_usage=True)
    usage = Usage(input=input_tokens, output=output_tokens)
    output = b"".join(encoder.encode(Frame((event,))) for event in events) + encoder.end(usage)
    *decoded, report = events_of(output)
    assert decoded == events
    assert isinstance(report, UsageReport)
    assert (report.usage.input, report.usage.output) == (input_tokens, output_tokens)
    heard(output)


class TestServer:
    def test_a_cut_ends_every_choice_that_is_open_and_says_why(self) -> None:
        for meta in (META, FOREIGN):
            encoder = ChunkEncoder(meta, include_usage=True)
            data = stream(ROLE, TEXT[0], other_choice(TEXT[1], 1), other_choice(chunk({}, "stop"), 2), end=b"")
            output = b"".join(encoder.encode(f) for f in CLIENT.decoder("up").feed(data))
            output += encoder.cut(Cut("credits_exhausted", "Gone."), Usage(input=3, output=2))
            assert {index: said.finish for index, said in heard(output).items()} == {
                0: "length",
                1: "length",
                2: "stop",
            }
            assert b'"x_gateway":{"outcome":"cut","reason":"credits_exhausted"' in output

    def test_a_cut_before_the_first_word_is_a_whole_stream(self) -> None:
        output = ChunkEncoder(FOREIGN, include_usage=False).cut(Cut("r", "m"), Usage())
        assert heard(output, include_usage=False) == {0: Said(finish="length")}

    def test_an_error_within_the_stream_is_the_last_word(self) -> None:
        output = ChunkEncoder(META, include_usage=True).fail(CreditsExhausted("No credit."))
        assert json.loads(output.removeprefix(b"data: "))["error"]["code"] == "credits_exhausted"
        assert b"[DONE]" not in output

    def test_signed_and_hidden_reasoning_can_be_sent_back(self) -> None:
        encoder = ChunkEncoder(FOREIGN, include_usage=False)
        events = [
            ReasoningDelta("Hm."),
            ReasoningEnd("sig"),
            RedactedReasoning("data"),
            ReasoningDelta("x"),
            ReasoningEnd(),
        ]
        output = b"".join(encoder.encode(Frame((event,))) for event in (*events, ReasoningEnd()))
        deltas = [json.loads(frame[6:])["choices"][0]["delta"] for frame in output.split(b"\n\n") if frame]
        details = [detail for delta in deltas for detail in delta.get("reasoning_details", ())]
        assert details == [
            {"type": "reasoning.text", "text": "Hm.", "signature": "sig", "index": 0},
            {"type": "reasoning.encrypted", "data": "data", "index": 1},
        ]

    @pytest.mark.parametrize(
        ("error", "status", "kind", "headers"),
        [
            (CreditsExhausted("m"), 402, "insufficient_quota", [b"x-should-retry"]),
            (LimitExceeded("m", limit="l", scope="s", retry_after_s=1.2), 429, "rate_limit_error", [b"retry-after"]),
            (RequestError("m", param="model"), 400, "invalid_request_error", []),
            (StreamTruncated("m", provider="up"), 502, "server_error", []),
        ],
    )
    def test_an_error_has_openais_envelope(
        self, error: GatewayError, status: int, kind: str, headers: Iterable[bytes]
    ) -> None:
        reply = SERVER.encode_error(error)
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (status, kind)
        assert [name for name, _ in reply.headers][1:] == list(headers)


class TestRequests:
    def body(self, **fields: Any) -> bytes:
        return json.dumps({"model": "fast", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()

    def test_a_body_goes_out_as_it_came_but_for_what_the_gateway_owns(self) -> None:
        body = self.body(stream=True, stream_options={"include_obfuscation": False}, vendor={"x": 1}, temperature=0.5)
        sent = json.loads(CLIENT.encode_request(SERVER.decode_request(body, {}), "gpt"))
        options = {"include_obfuscation": False, "include_usage": True}
        assert sent == {**json.loads(body), "model": "gpt", "stream": True, "stream_options": options}

    @pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream": True, "stream_options": None}])
    def test_options_that_are_null_are_none(self, options: dict[str, Any]) -> None:
        request = SERVER.decode_request(self.body(**options), {})
        assert not request.include_usage
        assert json.loads(CLIENT.encode_request(request, "gpt"))["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            *(({name: "x"}, name) for name in ("api_base", "base_url", "api_key", "extra_headers", "api_version")),
            *(({"n": 0}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"temperature": 3}, "temperature")),
            *(({"stop": ["a", ""]}, "stop"), ({"tool_choice": "maybe"}, "tool_choice"), ({"model": "a b"}, "model")),
            *(({"messages": []}, "messages"), ({"stream_options": {}}, "stream_options")),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
            ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ],
    )
    def test_a_wrong_field_is_named(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(RequestError) as caught:
            SERVER.decode_request(self.body(**fields), {})
        assert caught.value.param == param

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model":"\xff"}', b'{"model":' + b"[" * 5000])
    def test_what_is_not_json_is_refused(self, body: bytes) -> None:
        with pytest.raises(RequestError):
            SERVER.decode_request(body, {})

    @pytest.mark.parametrize(
        ("status", "kind"), [(401, ProviderUnavailable), (404, ProviderRejected), (503, ProviderUnavailable)]
    )
    def test_a_vendors_error_shows_no_secret(self, status: int, kind: type[GatewayError]) -> None:
        body = sse({"error": {"message": "Bad key sk-abcdef123456 at https://internal.example/x", "code": "c"}})[6:]
        error = CLIENT.decode_error(status, body, "up")
        assert type(error) is kind
        assert "sk-" not in error.message and "internal" not in error.message
        assert (error.code is ErrorCode.MODEL_NOT_FOUND) == (status == 404)
