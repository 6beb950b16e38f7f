"""OpenAI's own client talking to a provider that speaks Gemini, and Anthropic's. None of them notices."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai as sdk
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
MODEL, OLDER = "gemini/gemini-3-flash", "gemini/gemini-2.5-flash"
ASK: dict[str, Any] = {"model": MODEL, "messages": [USER]}
WITH_USAGE = {"stream_options": {"include_usage": True}}
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])


class Weather(BaseModel):
    """Get the weather."""

    city: str


TOOLS = [pydantic_function_tool(Weather)]
COLOGNE = ToolCall(name="Weather", arguments=('{"city":"Köln"}',))
OSLO = ToolCall(name="Weather", arguments=('{"city":"Oslo"}',), id="fc_oslo")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(provider: Upstream) -> AsyncIterator[GatewayProcess]:
    """Reaches the provider as Google's own API."""
    config = {
        "providers": {
            "gemini": {
                "base_url": f"{provider.base_url}/v1beta",
                "api_key": "sk-upstream",
                "price": {"input": 1, "output": 10, "cache_read": 0.25},
            },
        },
        "tiers": {"default": {"requests": {"limit": 100_000}}},
    }
    async with GatewayProcess(config) as running:
        yield running


async def ask(client: AsyncOpenAI, is_streamed: bool = False, **more: Any) -> Any:
    """One answer, through the stream helper or whole."""
    if not is_streamed:
        return await client.chat.completions.create(**{**ASK, **more})
    async with client.chat.completions.stream(**{**ASK, **WITH_USAGE, **more}) as stream:
        return await stream.get_final_completion()


async def chunks(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**{**ASK, **more}, stream=True)]


def results(message: Any, *contents: str) -> list[dict[str, Any]]:
    """A result for each call of ``message``."""
    pairs = zip(message.tool_calls, contents, strict=True)
    return [{"role": "tool", "tool_call_id": call.id, "content": content} for call, content in pairs]


async def test_text_streams_as_chunks_of_one_regular_answer(upstream: Upstream, client: AsyncOpenAI) -> None:
    stream = await chunks(client)
    assert [chunk.choices[0].delta.role for chunk in stream] == ["assistant", *[None] * 5]
    assert [chunk.choices[0].delta.content for chunk in stream[1:-1]] == ["Hello", ", ", "world", "!"]
    assert [chunk.choices[0].finish_reason for chunk in stream] == [*[None] * 5, "stop"]
    assert len({(chunk.id, chunk.model, chunk.created) for chunk in stream}) == 1
    assert stream[0].model == "gemini-3-flash"


@BOTH
async def test_a_message_has_text_reason_and_usage(upstream: Upstream, client: AsyncOpenAI, is_streamed: bool) -> None:
    answer = await ask(client, is_streamed)
    message = answer.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "Hello, world!", None)
    assert message.tool_calls is None and answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)
    received = upstream.requests[0]
    assert received.path == "/v1beta/models/gemini-3-flash:streamGenerateContent" and received.query == "alt=sse"
    assert received.headers["x-goog-api-key"] == "sk-upstream" and "authorization" not in received.headers


async def test_the_request_is_carried_over_field_by_field(upstream: Upstream, client: AsyncOpenAI) -> None:
    system = {"role": "system", "content": "Be brief."}
    await ask(
        client,
        messages=[system, USER],
        max_completion_tokens=50,
        temperature=1.5,
        top_p=0.9,
        stop=["END"],
        seed=7,
        n=2,
        presence_penalty=0.5,
    )
    body = upstream.requests[0].body
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert body["generationConfig"] == {
        "maxOutputTokens": 50,
        "temperature": 1.5,
        "topP": 0.9,
        "seed": 7,
        "stopSequences": ["END"],
        "presencePenalty": 0.5,
        "candidateCount": 2,
    }


@BOTH
async def test_several_choices_come_apart(upstream: Upstream, client: AsyncOpenAI, is_streamed: bool) -> None:
    answer = await ask(client, is_streamed, n=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello, world!"] * 2


async def test_images_and_documents_are_carried_over(upstream: Upstream, client: AsyncOpenAI) -> None:
    shown = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]
    await ask(client, messages=[{"role": "user", "content": shown}])
    assert upstream.requests[0].body["contents"][0]["parts"] == [
        {"text": "What is this?"},
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/cat.png"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}},
    ]


async def test_tools_are_described_to_the_provider_in_its_own_words(upstream: Upstream, client: AsyncOpenAI) -> None:
    named = {"type": "function", "function": {"name": "Weather"}}
    for sent, expected in [
        (named, {"mode": "ANY", "allowedFunctionNames": ["Weather"]}),
        ("required", {"mode": "ANY"}),
        ("none", {"mode": "NONE"}),
    ]:
        await ask(client, tools=TOOLS, tool_choice=sent)
        body = upstream.requests[-1].body
        assert body["toolConfig"]["functionCallingConfig"] == expected
        (declared,) = body["tools"][0]["functionDeclarations"]
        assert (declared["name"], declared["description"]) == ("Weather", "Get the weather.")
        assert declared["parametersJsonSchema"]["required"] == ["city"]


@BOTH
async def test_parallel_calls_and_their_results_go_round(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    first = await ask(client, is_streamed, tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.content == "Let me see."
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Köln"}, {"city": "Oslo"}]
    assert message.tool_calls[1].id == "fc_oslo" and message.tool_calls[0].id.startswith("call_")
    rain, sun = reversed(results(message, "sun", "rain"))
    second = await ask(client, is_streamed, tools=TOOLS, messages=[USER, message.model_dump(), rain, sun])
    assert second.choices[0].message.content == "Sun and rain."
    _, called, answered = upstream.requests[1].body["contents"]
    ids = [call.id for call in message.tool_calls]
    assert [part["functionCall"]["id"] for part in called["parts"][1:]] == ids
    assert [part["functionResponse"]["id"] for part in answered["parts"]] == ids
    assert [part["functionResponse"]["response"] for part in answered["parts"]] == [
        {"output": "sun"},
        {"output": "rain"},
    ]


THINKING: dict[str, Any] = {"reasoning_effort": "low", "tools": TOOLS}


@BOTH
@pytest.mark.parametrize("model", [MODEL, OLDER])
@pytest.mark.parametrize("reasoning", [("Hm", "m \n", "\u2028ä\U0001f914?"), ()], ids=["shown", "hidden"])
async def test_thought_signatures_come_back_to_their_provider_byte_for_byte(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, model: str, reasoning: tuple[str, ...]
) -> None:
    # The provider refuses any signature that it did not issue for that very part, so an answer is proof.
    signature, last = "EpEgCo4gAb4+9vv/Ww==" * 60, "RXBDYw+/=="
    upstream.queue(
        Plan(reasoning=reasoning, text=("So:",), tool_calls=(COLOGNE, OSLO), signature=signature),
        Plan(text=("Sun.",), signature=last),
        Plan(text=("Bye.",)),
    )
    first = (await ask(client, is_streamed, model=model, **THINKING)).choices[0].message
    assert (first.model_extra or {}).get("reasoning_content", "") == "".join(reasoning)
    history = [USER, first.model_dump(), *results(first, "sun", "rain")]
    second = (await ask(client, is_streamed, model=model, messages=history, **THINKING)).choices[0].message
    assert second.content == "Sun."
    history += [second.model_dump(), USER]
    third = await ask(client, is_streamed, model=model, messages=history, **THINKING)
    assert third.choices[0].message.content == "Bye."
    words, cologne, oslo = upstream.requests[1].body["contents"][1]["parts"]
    assert words == {"text": "So:"} and cologne["thoughtSignature"] == signature and "thoughtSignature" not in oslo
    assert upstream.requests[2].body["contents"][3]["parts"] == [
        {"text": "Sun."},
        {"text": "", "thoughtSignature": last},
    ]


async def test_a_client_that_loses_the_signatures_is_answered_all_the_same(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.queue(Plan(reasoning=("Hm.",), tool_calls=(COLOGNE,)), Plan(text=("Sun.",)))
    message = (await ask(client, True, **THINKING)).choices[0].message
    lossy = message.model_dump(exclude={"reasoning_details"})
    history = [USER, lossy, *results(message, "sun")]
    assert (await ask(client, messages=history, **THINKING)).choices[0].message.content == "Sun."
    (called,) = upstream.requests[1].body["contents"][1]["parts"]
    assert called["thoughtSignature"] == "skip_thought_signature_validator"


async def test_an_effort_is_a_level_or_a_budget(upstream: Upstream, client: AsyncOpenAI) -> None:
    for model, name, value in [(MODEL, "thinkingLevel", "MEDIUM"), (OLDER, "thinkingBudget", 8192)]:
        await ask(client, model=model, reasoning_effort="medium")
        assert upstream.requests[-1].body["generationConfig"]["thinkingConfig"] == {
            "includeThoughts": True,
            name: value,
        }


@BOTH
@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROMPT_PROHIBITED_CONTENT", "content_filter"),
        ("SOMETHING_NEW", "stop"),
    ],
)
async def test_reasons_to_end_are_translated(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, reason: str, finish_reason: str
) -> None:
    upstream.plan = Plan(finish_reason=reason)
    if is_streamed:
        assert (await chunks(client))[-1].choices[0].finish_reason == finish_reason
    else:
        assert (await ask(client)).choices[0].finish_reason == finish_reason


@BOTH
async def test_usage_includes_what_was_cached_and_thought(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60, reasoning=20))
    usage = (await ask(client, is_streamed)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 50, 150)
    assert usage.prompt_tokens_details.cached_tokens == 60
    assert usage.completion_tokens_details.reasoning_tokens == 20


async def test_the_bill_counts_thoughts_and_what_was_cached(upstream: Upstream, gateway: GatewayProcess) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60, reasoning=20))
    key = await gateway.account("payer", usd="1")
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        await ask(client, True)
    balance = await gateway.settled("payer", records=1)
    assert balance["spent"] == 40 * 1 + 60 // 4 + 50 * 10


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, sdk.BadRequestError, "INVALID_ARGUMENT"),
        (401, sdk.InternalServerError, "provider_unavailable"),
        (403, sdk.InternalServerError, "provider_unavailable"),
        (404, sdk.NotFoundError, "model_not_found"),
        (429, sdk.RateLimitError, "provider_rate_limited"),
        (500, sdk.InternalServerError, "provider_unavailable"),
        (503, sdk.InternalServerError, "provider_overloaded"),
    ],
)
@BOTH
async def test_errors_before_the_stream_are_http_errors(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, status: int, error: type[sdk.APIStatusError], code: str
) -> None:
    upstream.plan = Plan(status=status)
    with pytest.raises(error) as caught:
        await ask(client, is_streamed)
    assert caught.value.code == code


async def test_googles_own_word_on_when_to_come_back_is_passed_on(upstream: Upstream, client: AsyncOpenAI) -> None:
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.2s"}
    body = {"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED", "details": [retry]}}
    for retry_after, seconds in [(None, "18"), (3, "3")]:
        upstream.plan = Plan(status=429, error_body=body, retry_after=retry_after)
        with pytest.raises(sdk.RateLimitError) as caught:
            await ask(client)
        assert caught.value.response.headers["retry-after"] == seconds


@pytest.mark.parametrize(
    ("fault", "body", "code"),
    [
        ("error_event", None, "provider_overloaded"),
        ("error_event", '{\r\n  "error": {\r\n    "code": 429\r\n  }\r\n}', "provider_rate_limited"),
        ("close", None, "stream_truncated"),
        ("truncate", None, "stream_truncated"),
        ("reset", None, "stream_truncated"),
        ("garbage", None, "provider_protocol_error"),
    ],
)
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: Upstream, client: AsyncOpenAI, fault: Any, body: str | None, code: str
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2, error_body=body)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said in ("Hello, ", "Hello", "") if fault == "reset" else said == "Hello, "
    assert caught.value.code == code


async def test_an_answer_without_its_end_is_an_error(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(done=False)
    with pytest.raises(sdk.APIError) as caught:
        await chunks(client)
    assert caught.value.code == "stream_truncated"


async def test_a_server_that_does_not_stream_is_understood(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(json_instead_of_stream=True, tool_calls=(COLOGNE,), text=("Hm.",))
    message = (await ask(client, True, tools=TOOLS)).choices[0].message
    assert message.content == "Hm." and message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")


@pytest.mark.parametrize("bytes_fall", [{"cut": 1}, {"cut": 5}, {"coalesce": True}, {"comments": True}])
async def test_however_the_bytes_fall_the_message_is_the_same(
    upstream: Upstream, client: AsyncOpenAI, bytes_fall: dict[str, Any]
) -> None:
    upstream.plan = Plan(reasoning=("Grü", "ß"), text=("Hé", "llo"), tool_calls=(COLOGNE, OSLO), **bytes_fall)
    message = (await ask(client, True, **THINKING)).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Grüß", "Héllo")
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        Weather(city="Köln"),
        Weather(city="Oslo"),
    ]


async def test_a_shape_to_answer_in_is_passed_on(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"city":', '"Oslo"}'))
    answer = await client.chat.completions.parse(**ASK, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo")
    config = upstream.requests[0].body["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["required"] == ["city"]


async def test_what_is_not_asked_of_the_provider_is_told(upstream: Upstream, client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        **ASK, tools=TOOLS, parallel_tool_calls=False, user="u1", reasoning_effort="xhigh"
    )
    told = set(raw.headers["x-gateway-warnings"].split(", "))
    assert {"dropped:user", "dropped:parallel_tool_calls", "lowered:reasoning_effort"} <= told


async def test_what_gemini_cannot_do_is_refused_by_name(upstream: Upstream, client: AsyncOpenAI) -> None:
    refused: dict[str, Any] = {"n": 9, "reasoning_effort": "heroic"}
    for name, value in refused.items():
        with pytest.raises(sdk.BadRequestError) as caught:
            await ask(client, **{name: value})
        assert (caught.value.param, caught.value.code) == (name, "unsupported_value")
    assert upstream.requests == []


async def test_a_models_name_stays_within_its_part_of_the_path(upstream: Upstream, client: AsyncOpenAI) -> None:
    for name in ("gemini/../../v1/messages", "gemini/a/b", "gemini/a?b"):
        await ask(client, model=name)
    with pytest.raises(sdk.NotFoundError):
        await ask(client, model="gemini/..")
    assert [received.path for received in upstream.requests] == [
        "/v1beta/models/..%2F..%2Fv1%2Fmessages:streamGenerateContent",
        "/v1beta/models/a%2Fb:streamGenerateContent",
        "/v1beta/models/a%3Fb:streamGenerateContent",
    ]


SIGNED = Plan(reasoning=("Hm",), text=("So:",), tool_calls=(COLOGNE, OSLO), signature="EpEgCo4gAb4+9vv/Ww==")


def assert_signed(upstream: Upstream) -> None:
    """The second turn had the signature of the first, on the part that it came with."""
    (called,) = (content for content in upstream.requests[1].body["contents"] if content["role"] == "model")
    signatures = [part.get("thoughtSignature") for part in called["parts"] if "functionCall" in part]
    assert signatures == [SIGNED.signature, None]


@pytest.mark.parametrize("shown", [("Hm",), ()], ids=["shown", "hidden"])
async def test_signatures_come_back_through_responses_too(
    upstream: Upstream, client: AsyncOpenAI, shown: tuple[str, ...]
) -> None:
    upstream.queue(msgspec.structs.replace(SIGNED, reasoning=shown), Plan(text=("Sun.",)))
    tool = {"type": "function", "name": "Weather", "parameters": Weather.model_json_schema(), "strict": False}
    ask: dict[str, Any] = {"model": MODEL, "tools": [tool], "include": ["reasoning.encrypted_content"], "store": False}
    first = await client.responses.create(input="Hi", **ask)
    calls = [item for item in first.output if item.type == "function_call"]
    answers = [{"type": "function_call_output", "call_id": call.call_id, "output": "sun"} for call in calls]
    history: Any = [USER, *(item.model_dump(exclude_none=True) for item in first.output), *answers]
    second = await client.responses.create(input=history, **ask)
    assert second.output_text == "Sun."
    assert_signed(upstream)


@pytest.mark.parametrize("shown", [("Hm",), ()], ids=["shown", "hidden"])
async def test_signatures_come_back_through_anthropics_client_too(
    upstream: Upstream, claude: AsyncAnthropic, shown: tuple[str, ...]
) -> None:
    upstream.queue(msgspec.structs.replace(SIGNED, reasoning=shown), Plan(text=("Sun.",)))
    tool = {"name": "Weather", "input_schema": Weather.model_json_schema()}
    thinking = {"type": "enabled", "budget_tokens": 2000}
    ask: dict[str, Any] = {"model": MODEL, "tools": [tool], "max_tokens": 4000, "thinking": thinking}
    async with claude.messages.stream(messages=[{"role": "user", "content": "Hi"}], **ask) as stream:
        first = await stream.get_final_message()
    assert first.stop_reason == "tool_use"
    calls = [block for block in first.content if block.type == "tool_use"]
    answers = [{"type": "tool_result", "tool_use_id": call.id, "content": "sun"} for call in calls]
    history: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {"role": "user", "content": answers},
    ]
    second = await claude.messages.create(messages=history, **ask)
    assert [block.text for block in second.content if block.type == "text"] == ["Sun."]
    assert_signed(upstream)
    assert upstream.requests[0].body["generationConfig"]["thinkingConfig"] == {
        "includeThoughts": True,
        "thinkingLevel": "LOW",
    }
