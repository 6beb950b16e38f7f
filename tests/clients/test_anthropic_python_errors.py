"""What Anthropic's own Python client makes of every error and every cut the gateway can give it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic as sdk
import pytest
from anthropic import AsyncAnthropic

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: Any = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude/claude-upstream", "max_tokens": 20_000, "messages": [USER]}
ENDLESS = Plan(text=(" one", " two", " three"), endless=True)
MODELS = pytest.mark.parametrize("model", ["claude/claude-upstream", "up/gpt-upstream"])


@asynccontextmanager
async def counting(
    gateway: GatewayProcess, key: str, *, max_retries: int
) -> AsyncIterator[tuple[AsyncAnthropic, list[Any]]]:
    """A client that retries, and the requests it makes."""
    requests: list[Any] = []

    async def note(request: Any) -> None:
        requests.append(request)

    http = sdk.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with AsyncAnthropic(
        base_url=gateway.base_url, api_key=key, max_retries=max_retries, http_client=http
    ) as client:
        yield client, requests


async def account(gateway: GatewayProcess, **more: Any) -> str:
    """The key of an account that no other test knows."""
    return await gateway.account(f"acme-{uuid.uuid4().hex[:12]}", **more)


async def final(client: AsyncAnthropic, **more: Any) -> Any:
    async with client.messages.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_message()


def code_of(error: sdk.APIStatusError) -> str:
    body: Any = error.body
    code: str = body["error"]["details"]["error_code"]
    return code


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_wrong_key_is_an_authentication_error(claude: AsyncAnthropic, is_stream: bool) -> None:
    stranger = claude.with_options(api_key="sk-ant-wrong")
    with pytest.raises(sdk.AuthenticationError) as caught:
        await stranger.messages.create(**ASK, stream=is_stream)
    assert (caught.value.status_code, caught.value.type) == (401, "authentication_error")
    assert caught.value.request_id and "sk-ant-wrong" not in str(caught.value)
    with pytest.raises(sdk.AuthenticationError):
        await stranger.models.list()
    with pytest.raises(sdk.AuthenticationError):
        await stranger.messages.count_tokens(model="fast", messages=[USER])


async def test_a_model_beyond_the_keys_list_is_a_permission_error(
    upstream: Upstream, gateway: GatewayProcess, claude: AsyncAnthropic
) -> None:
    limited = claude.with_options(api_key=await account(gateway, models=["fast"]))
    with pytest.raises(sdk.PermissionDeniedError) as caught:
        await limited.messages.create(**ASK)
    assert (caught.value.type, code_of(caught.value)) == ("permission_error", "model_not_allowed")
    with pytest.raises(sdk.PermissionDeniedError):
        await limited.messages.count_tokens(model=ASK["model"], messages=[USER])
    assert [model.id for model in (await limited.models.list()).data] == ["fast"]
    with pytest.raises(sdk.NotFoundError):
        await limited.models.retrieve("up/gpt-upstream")
    assert not upstream.requests


async def test_an_unknown_model_is_not_found(claude: AsyncAnthropic) -> None:
    with pytest.raises(sdk.NotFoundError) as caught:
        await claude.messages.create(**{**ASK, "model": "nope"})
    assert (caught.value.type, code_of(caught.value)) == ("not_found_error", "model_not_found")
    with pytest.raises(sdk.NotFoundError):
        await claude.models.retrieve("nope")


async def test_a_bad_request_names_its_field(claude: AsyncAnthropic) -> None:
    with pytest.raises(sdk.BadRequestError, match=r"messages\[0\]\.content\[0\]\.text") as caught:
        await claude.messages.create(**{**ASK, "messages": [{"role": "user", "content": [{"type": "text"}]}]})
    assert caught.value.type == "invalid_request_error"


async def test_what_the_provider_refuses_is_a_bad_request_in_its_own_words(
    upstream: Upstream, claude: AsyncAnthropic
) -> None:
    with pytest.raises(sdk.BadRequestError, match="tool_use_id"):
        turn = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}
        await claude.messages.create(**{**ASK, "messages": [turn]})
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (401, sdk.InternalServerError, ("api_error", "provider_unavailable")),
        (429, sdk.RateLimitError, ("rate_limit_error", "provider_rate_limited")),
        (500, sdk.InternalServerError, ("api_error", "provider_unavailable")),
        (529, sdk.OverloadedError, ("overloaded_error", "provider_overloaded")),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_the_providers_errors_are_mapped_before_the_stream(
    upstream: Upstream, claude: AsyncAnthropic, status: int, error: Any, told: tuple[str, str], is_stream: bool
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(error) as caught:
        await claude.messages.create(**ASK, stream=is_stream)
    assert (caught.value.type, code_of(caught.value)) == told
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"
    assert "upstream-org" not in str(dict(caught.value.response.headers)) + caught.value.message


async def test_an_empty_bucket_is_a_rate_limit_error_that_says_when(
    upstream: Upstream, gateway: GatewayProcess, claude: AsyncAnthropic
) -> None:
    tiny = claude.with_options(api_key=await account(gateway, tier="tiny"))
    assert (await tiny.messages.create(**ASK)).content
    with pytest.raises(sdk.RateLimitError) as caught:
        await tiny.messages.create(**ASK, stream=True)
    assert (caught.value.type, code_of(caught.value)) == ("rate_limit_error", "rate_limit_exceeded")
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 50
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert len(upstream.requests) == 1


async def test_an_empty_account_is_told_so_and_not_retried(upstream: Upstream, gateway: GatewayProcess) -> None:
    async with counting(gateway, await account(gateway, usd="0"), max_retries=2) as (client, requests):
        with pytest.raises(sdk.APIStatusError) as caught:
            await client.messages.create(**ASK, stream=True)
    assert (caught.value.status_code, caught.value.type) == (402, "billing_error")
    assert code_of(caught.value) == "credits_exhausted"
    assert len(requests) == 1 and upstream.requests == []


@pytest.mark.parametrize("status", [500, 529])
async def test_a_provider_that_failed_once_is_tried_again_by_the_client(
    upstream: Upstream, gateway: GatewayProcess, key: str, status: int
) -> None:
    upstream.queue(Plan(status=status), Plan(status=status), Plan())  # the gateway itself asks once more
    async with counting(gateway, key, max_retries=2) as (client, requests):
        answer = await client.messages.create(**ASK)
    assert answer.content[0].type == "text" and answer.content[0].text == "Hello, world!"
    assert len(requests) == 2


@MODELS
@pytest.mark.parametrize("fault", ["error_event", "close", "truncate", "garbage", "html"])
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: Upstream, claude: AsyncAnthropic, fault: Any, model: str
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    said = ""
    with pytest.raises(sdk.APIStatusError) as caught:
        async with claude.messages.stream(**{**ASK, "model": model}) as stream:
            async for text in stream.text_stream:
                said += text
    assert said == "Hello, "
    assert caught.value.status_code == 200 and caught.value.request_id
    is_overload = fault == "error_event" and model.startswith("claude/")
    assert caught.value.type == ("overloaded_error" if is_overload else "api_error")


@MODELS
@pytest.mark.parametrize("fault", ["error_event", "reset", "truncate", "garbage"])
async def test_a_whole_answer_that_cannot_be_had_is_an_http_error(
    upstream: Upstream, claude: AsyncAnthropic, fault: Any, model: str
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    with pytest.raises(sdk.APIStatusError) as caught:
        await claude.messages.create(**{**ASK, "model": model})
    assert caught.value.status_code in (502, 529)


async def test_a_call_that_broke_off_never_looks_finished(upstream: Upstream, claude: AsyncAnthropic) -> None:
    call = ToolCall(name="f", arguments=('{"a":1', ',"b":2}'))
    upstream.plan = Plan(text=(), tool_calls=(call,), fault="truncate", fault_at=1)
    kinds = []
    with pytest.raises(sdk.APIStatusError):
        async with claude.messages.stream(**ASK) as stream:
            async for event in stream:
                kinds.append(event.type)
    assert "content_block_stop" not in kinds and "input_json" in kinds


async def test_the_demo_model_that_fails_raises(claude: AsyncAnthropic) -> None:
    with pytest.raises(sdk.APIStatusError, match="fails on purpose"):
        await final(claude, model="demo/error")


@MODELS
async def test_a_cut_ends_a_regular_stream_that_says_why(
    upstream: Upstream, gateway: GatewayProcess, claude: AsyncAnthropic, model: str
) -> None:
    upstream.plan = ENDLESS
    poor = claude.with_options(api_key=await account(gateway, usd="0.001"))
    async with poor.messages.stream(**{**ASK, "model": model}) as stream:
        events = [event async for event in stream]
        message = await stream.get_final_message()
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2].model_extra["x_gateway"]["outcome"] == "cut"
    assert events[-2].model_extra["x_gateway"]["reason"] == "credits_exhausted"
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens > 10


async def test_a_bound_that_was_lowered_to_the_credit_ends_the_answer_as_the_clients_own_would(
    gateway: GatewayProcess, claude: AsyncAnthropic
) -> None:
    poor = claude.with_options(api_key=await account(gateway, usd="0.00001"))
    message = await final(poor, model="demo/endless")
    assert message.stop_reason == "max_tokens" and 1 <= message.usage.output_tokens < 20


@MODELS
async def test_a_whole_answer_that_was_cut_says_why(
    upstream: Upstream, gateway: GatewayProcess, claude: AsyncAnthropic, model: str
) -> None:
    upstream.plan = ENDLESS
    poor = claude.with_options(api_key=await account(gateway, usd="0.0005"))
    message = await poor.messages.create(**{**ASK, "model": model}, timeout=30)
    assert message.content[0].type == "text" and message.content[0].text.startswith(" one two three one")
    assert message.stop_reason == "max_tokens"
    assert message.model_extra is not None and message.model_extra["x_gateway"]["reason"] == "credits_exhausted"


async def test_heartbeats_do_not_disturb_the_client(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    stream = await claude.messages.create(**ASK, stream=True)
    assert upstream.stalled == 1
    upstream.release()
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop") and "ping" not in kinds


async def test_an_error_after_the_head_was_sent_is_raised_by_the_stream(
    upstream: Upstream, claude: AsyncAnthropic
) -> None:
    upstream.queue(Plan(fault="stall", fault_at=-1, status=529))
    upstream.plan = Plan(status=529)
    stream = await claude.messages.create(**ASK, stream=True)
    upstream.release()
    with pytest.raises(sdk.APIStatusError) as caught:
        await anext(stream)
    assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")
