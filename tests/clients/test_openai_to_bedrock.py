"""OpenAI's and Anthropic's own clients talking to Amazon Bedrock. None of the three notices."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic as anthropic_sdk
import openai as sdk
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Usage
from tests.upstream.bedrock import BedrockUpstream
from tests.upstream.bedrock_rules import Keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLAUDE = "anthropic.claude-sonnet-4-20250514-v1:0"
PROFILE = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc123def456"
KEYS = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "a/session+token==")
USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": f"bedrock/{CLAUDE}", "messages": [USER]}
WITH_USAGE = {"stream_options": {"include_usage": True}}
EPHEMERAL = {"type": "ephemeral"}
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
PIXEL = "iVBORw0KGgo="


class Weather(BaseModel):
    """Get the weather."""

    city: str


TOOLS = [pydantic_function_tool(Weather)]
COLOGNE = ToolCall(name="Weather", arguments=("", '{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'))
THINKING: dict[str, Any] = {"reasoning_effort": "low", "tools": TOOLS}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def provider() -> AsyncIterator[BedrockUpstream]:
    """Bedrock, which takes calls signed with one pair of keys only."""
    async with BedrockUpstream(keys=KEYS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(provider: BedrockUpstream) -> AsyncIterator[GatewayProcess]:
    """Reaches Bedrock with keys from its configuration, under a name of its own, and from its environment."""
    price = {"input": 1, "output": 10, "cache_read": 0.1, "cache_write": 1.25}
    keys = {
        "access_key_id": KEYS.access_key_id,
        "secret_access_key": KEYS.secret_access_key,
        "session_token": KEYS.session_token,
    }
    config = {
        "providers": {
            "bedrock": {"base_url": provider.base_url, "aws": {"region": KEYS.region, **keys}, "price": price},
            "found": {"type": "bedrock", "base_url": provider.base_url, "price": price},
            "wrong": {
                "type": "bedrock",
                "base_url": provider.base_url,
                "aws": {"region": KEYS.region, **keys, "secret_access_key": "another"},
                "price": price,
            },
        },
        "models": {"mine": {"targets": [f"bedrock/{PROFILE}"]}},
    }
    environment = {
        "AWS_REGION": KEYS.region,
        "AWS_ACCESS_KEY_ID": KEYS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": KEYS.secret_access_key,
        "AWS_SESSION_TOKEN": KEYS.session_token or "",
    }
    async with GatewayProcess(config, environment=environment) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def key(gateway: GatewayProcess) -> str:
    return await gateway.account(usd="100")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(gateway: GatewayProcess, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def claude(gateway: GatewayProcess, key: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as running:
        yield running


@pytest.fixture
def upstream(provider: BedrockUpstream) -> Iterator[BedrockUpstream]:
    provider.plan = Plan()
    provider.requests.clear()
    yield provider
    provider.release()


async def ask(client: AsyncOpenAI, is_streamed: bool = False, **more: Any) -> Any:
    """One answer, through the stream helper or whole."""
    if not is_streamed:
        return await client.chat.completions.create(**{**ASK, **more})
    async with client.chat.completions.stream(**{**ASK, **WITH_USAGE, **more}) as stream:
        return await stream.get_final_completion()


def results(message: Any, *contents: str) -> list[dict[str, Any]]:
    """A result for each call of ``message``."""
    pairs = zip(message.tool_calls, contents, strict=True)
    return [{"role": "tool", "tool_call_id": call.id, "content": content} for call, content in pairs]


@BOTH
async def test_a_message_has_text_reason_and_usage(
    upstream: BedrockUpstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    answer = await ask(client, is_streamed)
    message = answer.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "Hello, world!", None)
    assert message.tool_calls is None and answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)
    assert answer.id.startswith("msg_")


async def test_the_model_stands_in_the_path_and_nowhere_else(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    await ask(client)
    await ask(client, model="mine")
    by_id, by_arn = upstream.requests
    assert by_id.path == "/model/anthropic.claude-sonnet-4-20250514-v1%3A0/converse-stream"
    assert by_arn.path.startswith("/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A123456789012%3Aapplication-inference-")
    assert by_arn.path.endswith("profile%2Fabc123def456/converse-stream")
    assert by_id.body == {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}


async def test_keys_are_found_in_the_environment(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    answer = await ask(client, model=f"found/{CLAUDE}")
    assert answer.choices[0].message.content == "Hello, world!"
    assert upstream.requests[0].headers["x-amz-security-token"] == KEYS.session_token


async def test_a_refused_signature_is_the_operators_affair(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    with pytest.raises(sdk.InternalServerError) as caught:
        await ask(client, model=f"wrong/{CLAUDE}")
    assert caught.value.code == "provider_unavailable" and "signature" not in caught.value.message
    assert "does not match" in str(upstream.requests[0].refused)


async def test_the_request_is_carried_over_field_by_field(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    system = [{"role": "system", "content": "Be brief."}, USER, {"role": "developer", "content": "Be kind."}]
    await ask(client, messages=system, max_completion_tokens=50, temperature=0.5, top_p=0.9, stop=["END"])
    body = upstream.requests[0].body
    assert body["inferenceConfig"] == {"maxTokens": 50, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]}
    assert body["system"] == [{"text": "Be brief."}, {"text": "Be kind."}]


async def test_images_and_documents_go_as_bytes(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    pdf = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "Q3_report.pdf"}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    await ask(client, messages=[{"role": "user", "content": [image, pdf, pdf]}])
    image_block, first, second, _ = upstream.requests[0].body["messages"][0]["content"]
    assert image_block == {"image": {"format": "png", "source": {"bytes": PIXEL}}}
    assert first == {"document": {"format": "pdf", "name": "Q3 report", "source": {"bytes": "JVBERi0="}}}
    assert second["document"]["name"] == "Q3 report 2"
    with pytest.raises(sdk.BadRequestError) as caught:
        link = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
        await ask(client, messages=[{"role": "user", "content": [link]}])
    assert caught.value.param == "messages"


@BOTH
async def test_parallel_calls_and_their_results_go_round(
    upstream: BedrockUpstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    first = await ask(client, is_streamed, tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.content == "Let me see."
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Köln"}, {"city": "Oslo"}]
    rain, sun = reversed(results(message, "sun", ""))
    second = await ask(client, is_streamed, tools=TOOLS, messages=[USER, message.model_dump(), rain, sun])
    assert second.choices[0].message.content == "Sun and rain."
    _, called, answered = upstream.requests[1].body["messages"]
    assert [block.get("toolUse", {}).get("input") for block in called["content"]] == [
        None,
        {"city": "Köln"},
        {"city": "Oslo"},
    ]
    assert [block["toolResult"]["toolUseId"] for block in answered["content"]] == [c.id for c in message.tool_calls]
    assert [block["toolResult"]["content"][0]["text"] for block in answered["content"]] == ["sun", "(empty)"]


async def test_tools_and_choices_in_bedrocks_words(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    choice = {"type": "function", "function": {"name": "Weather"}}
    for sent, expected in [(choice, {"tool": {"name": "Weather"}}), ("required", {"any": {}}), ("auto", {"auto": {}})]:
        await ask(client, tools=TOOLS, tool_choice=sent)
        config = upstream.requests[-1].body["toolConfig"]
        assert config["toolChoice"] == expected
        assert config["tools"][0]["toolSpec"]["inputSchema"]["json"]["required"] == ["city"]
    await ask(client, tools=TOOLS, tool_choice="none")
    assert "toolConfig" not in upstream.requests[-1].body


async def test_a_history_that_bedrock_would_refuse_is_repaired(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    call = {"id": "call|" + "x" * 80, "type": "function", "function": {"name": "We ather", "arguments": '{"city":"Par'}}
    messages = [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "?"},
        {"role": "user", "content": " "},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "Never mind."},
        {"role": "tool", "tool_call_id": "nobody", "content": "late"},
    ]
    answer = await ask(client, messages=messages)
    assert answer.choices[0].message.content == "Hello, world!"
    assert upstream.requests[0].body["toolConfig"]["tools"][0]["toolSpec"]["name"] == "We_ather"


async def test_cache_markers_become_cache_points_where_the_model_knows_them(
    upstream: BedrockUpstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=5, cache_read=60, cache_write=30, reasoning=0))
    marked = {"type": "text", "text": "A long text.", "cache_control": {**EPHEMERAL, "ttl": "1h"}}
    tool: Any = {"type": "function", "function": {"name": "now"}, "cache_control": EPHEMERAL}
    answer = await ask(client, messages=[{"role": "user", "content": [marked]}], tools=[tool])
    body = upstream.requests[0].body
    assert body["messages"][0]["content"] == [
        {"text": "A long text."},
        {"cachePoint": {"type": "default", "ttl": "1h"}},
    ]
    assert body["toolConfig"]["tools"][1] == {"cachePoint": {"type": "default"}}
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (100, 60)
    said: Any = {"role": "user", "content": [marked]}
    raw = await client.chat.completions.with_raw_response.create(
        model="bedrock/meta.llama3-70b-instruct-v1:0", messages=[said], tools=[tool]
    )
    assert "cachePoint" not in json.dumps(upstream.requests[1].body)
    assert raw.headers["x-gateway-warnings"] == "dropped:tools.cache_control, dropped:messages.cache_control"


async def test_the_bill_counts_what_was_cached(
    upstream: BedrockUpstream, client: AsyncOpenAI, gateway: GatewayProcess
) -> None:
    key = await gateway.account("payer", usd="1")
    upstream.plan = Plan(usage=Usage(input=1000, output=50, cache_read=600, cache_write=300, reasoning=0))
    await ask(client.with_options(api_key=key), True)
    balance = await gateway.settled("payer", records=1)
    # 100 fresh at 1, 600 read at 0.1, 300 written at 1.25 and 50 said at 10 µ$ each.
    assert balance["spent"] == 100 + 60 + 375 + 500


@BOTH
@pytest.mark.parametrize("redacted", ["", "UmVkYWN0ZWQ="])
@pytest.mark.parametrize("reasoning", [("Hm", "m \n", "\u2028ä\U0001f914?"), ()])
async def test_thinking_comes_back_to_its_provider_as_it_was(
    upstream: BedrockUpstream, client: AsyncOpenAI, is_streamed: bool, redacted: str, reasoning: tuple[str, ...]
) -> None:
    # The provider refuses any thinking that it did not sign, so an answer to the second turn is proof.
    upstream.queue(
        Plan(reasoning=reasoning, redacted=redacted, text=("So:",), tool_calls=(COLOGNE,)), Plan(text=("Sun.",))
    )
    message = (await ask(client, is_streamed, **THINKING)).choices[0].message
    history = [USER, message.model_dump(), *results(message, "sun")]
    second = await ask(client, is_streamed, messages=history, **THINKING)
    assert second.choices[0].message.content == "Sun."
    first, again = (request.body for request in upstream.requests)
    assert first["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    blocks = [block["reasoningContent"] for block in again["messages"][1]["content"] if "reasoningContent" in block]
    assert [next(iter(block)) for block in blocks] == (
        ["reasoningText"] * bool(reasoning) + ["redactedContent"] * bool(redacted)
    )
    assert ("additionalModelRequestFields" in again) is bool(blocks)


@BOTH
async def test_thinking_goes_round_with_anthropics_client_too(
    upstream: BedrockUpstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    signature = base64.b64encode(bytes(range(200))).decode()
    upstream.queue(
        Plan(reasoning=("Hm", "m."), signature=signature, redacted="UmVkYWN0ZWQ=", tool_calls=(OSLO,)),
        Plan(text=("Rain.",)),
    )
    asked: dict[str, Any] = {
        "model": ASK["model"],
        "max_tokens": 4000,
        "thinking": {"type": "enabled", "budget_tokens": 1500},
        "tools": [{"name": "Weather", "input_schema": Weather.model_json_schema()}],
        "messages": [USER],
    }

    async def say(**more: Any) -> Any:
        if not is_streamed:
            return await claude.messages.create(**{**asked, **more})
        async with claude.messages.stream(**{**asked, **more}) as stream:
            return await stream.get_final_message()

    message = await say()
    assert [block.type for block in message.content] == ["thinking", "redacted_thinking", "tool_use"]
    assert message.stop_reason == "tool_use" and message.content[0].signature == signature
    result = {"type": "tool_result", "tool_use_id": message.content[2].id, "content": "rain", "is_error": True}
    turns = [USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    second = await say(messages=turns)
    assert second.content[0].text == "Rain." and second.stop_reason == "end_turn"
    again = upstream.requests[1].body
    reasoning = [block["reasoningContent"] for block in again["messages"][1]["content"] if "reasoningContent" in block]
    assert reasoning == [
        {"reasoningText": {"text": "Hmm.", "signature": signature}},
        {"redactedContent": "UmVkYWN0ZWQ="},
    ]
    assert again["messages"][2]["content"][0]["toolResult"]["status"] == "error"
    assert again["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 1500


@BOTH
@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("stop", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filter", "content_filter"),
        ("guardrail_intervened", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_stop_reasons_are_translated(
    upstream: BedrockUpstream, client: AsyncOpenAI, is_streamed: bool, stop_reason: str, finish_reason: str
) -> None:
    upstream.plan = Plan(finish_reason=stop_reason)
    stream = await client.chat.completions.create(**ASK, stream=True) if is_streamed else None
    if stream is not None:
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == finish_reason
    else:
        assert (await ask(client)).choices[0].finish_reason == finish_reason


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, sdk.BadRequestError, "provider_rejected"),
        (403, sdk.InternalServerError, "provider_unavailable"),
        (404, sdk.NotFoundError, "model_not_found"),
        (408, sdk.InternalServerError, "provider_timeout"),
        (424, sdk.InternalServerError, "provider_unavailable"),
        (429, sdk.RateLimitError, "provider_rate_limited"),
        (500, sdk.InternalServerError, "provider_unavailable"),
        (503, sdk.InternalServerError, "provider_overloaded"),
    ],
)
@BOTH
async def test_errors_before_the_stream_are_http_errors(
    upstream: BedrockUpstream,
    client: AsyncOpenAI,
    is_streamed: bool,
    status: int,
    error: type[sdk.APIStatusError],
    code: str,
) -> None:
    upstream.plan = Plan(status=status)
    with pytest.raises(error) as caught:
        await ask(client, is_streamed)
    assert caught.value.code == code


@pytest.mark.parametrize("fault", ["error_event", "close", "truncate", "garbage", "html"])
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: BedrockUpstream, client: AsyncOpenAI, fault: Any
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "Hello, "
    expected = {"error_event": "provider_rate_limited", "garbage": "provider_protocol_error"}
    expected["html"] = "provider_protocol_error"
    assert caught.value.code == expected.get(fault, "stream_truncated")


async def test_anthropics_client_reads_a_plain_answer_and_its_usage(
    upstream: BedrockUpstream, claude: AsyncAnthropic
) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=4, cache_read=60, cache_write=30), finish_reason="length")
    said: Any = {"model": ASK["model"], "max_tokens": 50, "system": "Be brief.", "messages": [USER]}
    async with claude.messages.stream(**said) as stream:
        message = await stream.get_final_message()
    assert message.content[0].to_dict() == {"type": "text", "text": "Hello, world!"}
    assert message.stop_reason == "max_tokens"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 60, 30)
    assert upstream.requests[0].body["inferenceConfig"] == {"maxTokens": 50}
    assert upstream.requests[0].body["system"] == [{"text": "Be brief."}]


async def test_an_error_within_the_stream_has_its_type_for_anthropics_client(
    upstream: BedrockUpstream, claude: AsyncAnthropic
) -> None:
    body = {"exception": "serviceUnavailableException", "message": "Bedrock is unable to process your request."}
    upstream.plan = Plan(fault="error_event", fault_at=1, error_body=body)
    with pytest.raises(anthropic_sdk.APIStatusError) as caught:
        async with claude.messages.stream(model=ASK["model"], max_tokens=10, messages=[USER]) as stream:  # type: ignore[list-item]
            await stream.get_final_message()
    assert caught.value.type == "overloaded_error"


@pytest.mark.parametrize("bytes_fall", [{"cut": 1}, {"cut": 5}, {"cut": 97}, {"coalesce": True}])
async def test_however_the_bytes_fall_the_message_is_the_same(
    upstream: BedrockUpstream, client: AsyncOpenAI, bytes_fall: dict[str, Any]
) -> None:
    upstream.plan = Plan(reasoning=("Grü", "ß"), text=("Hé", "llo"), tool_calls=(COLOGNE, OSLO), **bytes_fall)
    message = (await ask(client, True, **THINKING)).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Grüß", "Héllo")
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        Weather(city="Köln"),
        Weather(city="Oslo"),
    ]


async def test_a_shape_to_answer_in_is_passed_on(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"city":', '"Oslo"}'))
    newer = ASK | {"model": "bedrock/anthropic.claude-sonnet-5-20260801-v1:0"}
    answer = await client.chat.completions.parse(**newer, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo")
    wanted = upstream.requests[0].body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert wanted["name"] == "Weather" and json.loads(wanted["schema"])["required"] == ["city"]


async def test_a_whole_answer_of_a_server_that_does_not_stream_is_read(
    upstream: BedrockUpstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(json_instead_of_stream=True, reasoning=("Hm.",), text=("So:",), tool_calls=(OSLO,))
    message = (await ask(client, True, **THINKING)).choices[0].message
    assert message.model_extra["reasoning_content"] == "Hm." and message.content == "So:"
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}


async def test_what_bedrock_cannot_do_is_refused_by_name(upstream: BedrockUpstream, client: AsyncOpenAI) -> None:
    long_name = {"type": "function", "function": {"name": "x" * 64 + ".y"}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"n": 2}, "n"),
        ({"temperature": 1.5}, "temperature"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"tools": [long_name]}, "tools"),
    ]
    for change, param in changes:
        with pytest.raises(sdk.BadRequestError) as caught:
            await ask(client, **change)
        assert (caught.value.param or "").startswith(param)
    assert upstream.requests == []
