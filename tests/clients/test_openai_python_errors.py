"""What OpenAI's own Python client makes of every error the gateway can give it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "up/gpt-upstream", "messages": [USER]}
ENDLESS = Plan(text=(" one", " two", " three"), endless=True)


@asynccontextmanager
async def counting(
    gateway: GatewayProcess, key: str, *, max_retries: int
) -> AsyncIterator[tuple[AsyncOpenAI, list[Any]]]:
    """A client that retries, and the requests it makes."""
    requests: list[Any] = []

    async def note(request: Any) -> None:
        requests.append(request)

    http = sdk.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    base_url = f"{gateway.base_url}/v1"
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=max_retries, http_client=http) as client:
        yield client, requests


async def account(gateway: GatewayProcess, **more: Any) -> str:
    """The key of an account that no other test knows."""
    return await gateway.account(f"acme-{uuid.uuid4().hex[:12]}", **more)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_wrong_key_is_an_authentication_error(client: AsyncOpenAI, is_stream: bool) -> None:
    with pytest.raises(sdk.AuthenticationError) as caught:
        await client.with_options(api_key="sk-wrong").chat.completions.create(**ASK, stream=is_stream)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert "sk-wrong" not in str(caught.value)
    with pytest.raises(sdk.AuthenticationError):
        await client.with_options(api_key="sk-wrong").models.list()


async def test_a_model_beyond_the_keys_list_is_a_permission_error(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    limited = client.with_options(api_key=await account(gateway, models=["fast"]))
    with pytest.raises(sdk.PermissionDeniedError) as caught:
        await limited.chat.completions.create(**ASK)
    assert (caught.value.status_code, caught.value.code) == (403, "model_not_allowed")
    assert (await limited.chat.completions.create(model="fast", messages=[USER])).choices
    with pytest.raises(sdk.NotFoundError):
        await limited.models.retrieve("up/gpt-upstream")


@pytest.mark.parametrize("model", ["nothing", "nobody/gpt-upstream", "up/", "demo/nothing"])
async def test_an_unknown_model_is_not_found(client: AsyncOpenAI, model: str) -> None:
    with pytest.raises(sdk.NotFoundError) as caught:
        await client.chat.completions.create(**{**ASK, "model": model}, stream=True)
    assert caught.value.code == "model_not_found"
    if model != "demo/nothing":
        assert caught.value.param == "model"


async def test_an_unknown_model_of_the_catalogue_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(sdk.NotFoundError) as caught:
        await client.models.retrieve("nobody/nothing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "tool", "content": "sun"}]}, "messages[1].tool_call_id"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": "two words"}, "model"),
        ({"api_base": "http://evil"}, "api_base"),
    ],
)
async def test_a_bad_request_names_its_field(
    upstream: Upstream, client: AsyncOpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises((sdk.BadRequestError, sdk.NotFoundError)) as caught:
        await client.chat.completions.create(**ASK, extra_body=change)
    assert caught.value.param == param
    assert upstream.requests == []


async def test_what_the_provider_refuses_names_the_field_too(upstream: Upstream, client: AsyncOpenAI) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        await client.chat.completions.create(**ASK, top_logprobs=3)
    assert (caught.value.param, caught.value.code) == ("top_logprobs", "invalid_value")
    assert upstream.requests[0].refused


async def test_what_the_provider_refuses_is_a_bad_request_in_its_own_words(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(sdk.BadRequestError, match="did not have response messages: call_1"):
        await client.chat.completions.create(**{**ASK, "messages": [USER, called]}, stream=True)


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, sdk.InternalServerError, "provider_unavailable"),
        (404, sdk.NotFoundError, "model_not_found"),
        (429, sdk.RateLimitError, "provider_rate_limited"),
        (500, sdk.InternalServerError, "provider_unavailable"),
        (503, sdk.InternalServerError, "provider_overloaded"),
        (504, sdk.InternalServerError, "provider_timeout"),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_the_providers_errors_are_mapped_before_the_stream(
    upstream: Upstream, client: AsyncOpenAI, status: int, error: type[sdk.APIStatusError], code: str, is_stream: bool
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(error) as caught:
        await client.chat.completions.create(**ASK, stream=is_stream)
    assert caught.value.code == code
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"
    assert "upstream-org" not in str(dict(caught.value.response.headers)) + caught.value.message


async def test_an_empty_bucket_is_a_rate_limit_error_that_says_when(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    tiny = client.with_options(api_key=await account(gateway, tier="tiny"))
    assert (await tiny.chat.completions.create(**ASK)).choices
    with pytest.raises(sdk.RateLimitError) as caught:
        await tiny.chat.completions.create(**ASK, stream=True)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 50
    assert "x-should-retry" not in caught.value.response.headers
    assert len(upstream.requests) == 1


async def test_an_empty_account_is_told_so_and_not_retried(upstream: Upstream, gateway: GatewayProcess) -> None:
    async with counting(gateway, await account(gateway, usd="0"), max_retries=2) as (client, requests):
        with pytest.raises(sdk.APIStatusError) as caught:
            await client.chat.completions.create(**ASK, stream=True)
    assert (caught.value.status_code, caught.value.code) == (402, "credits_exhausted")
    assert caught.value.type == "insufficient_quota"
    assert len(requests) == 1 and upstream.requests == []


async def test_a_provider_that_failed_once_is_tried_again_by_the_client(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    upstream.queue(Plan(status=500), Plan(status=500), Plan())  # the gateway itself asks once more
    async with counting(gateway, key, max_retries=2) as (client, requests):
        answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Hello, world!"
    assert len(requests) == 2


@pytest.mark.parametrize("fault", ["error_event", "close", "truncate", "garbage", "html"])
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: Upstream, client: AsyncOpenAI, fault: Any
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "Hello, "
    assert not isinstance(caught.value, sdk.APIConnectionError)
    assert caught.value.type == "server_error"
    expected = {"error_event": "provider_unavailable", "garbage": "provider_protocol_error"}
    assert caught.value.code == expected.get(fault, "stream_truncated")


@pytest.mark.parametrize("fault", ["error_event", "reset", "truncate", "garbage"])
async def test_a_whole_answer_that_cannot_be_had_is_an_http_error(
    upstream: Upstream, client: AsyncOpenAI, fault: Any
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    with pytest.raises(sdk.InternalServerError) as caught:
        await client.chat.completions.create(**ASK)
    assert caught.value.status_code == 502


async def test_a_reset_within_the_stream_is_raised(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="reset", fault_at=2)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    # A reset throws away what the peer has not read yet, so the beginning may be lost, and then it is an HTTP error.
    assert "Hello, ".startswith(said)
    assert caught.value.type == "server_error"


async def test_an_overload_told_within_the_stream_keeps_its_meaning(upstream: Upstream, client: AsyncOpenAI) -> None:
    error = {"error": {"message": "slow down, org-secret", "type": "requests", "code": "rate_limit_exceeded"}}
    upstream.plan = Plan(fault="error_event", fault_at=2, error_body=error)
    with pytest.raises(sdk.APIError) as caught:
        async for _ in await client.chat.completions.create(**ASK, stream=True):
            pass
    assert (caught.value.code, caught.value.type) == ("provider_rate_limited", "rate_limit_error")
    assert "org-secret" not in str(caught.value)


async def test_the_demo_model_that_fails_raises(client: AsyncOpenAI) -> None:
    with pytest.raises(sdk.APIError, match="fails on purpose"):
        async with client.chat.completions.stream(model="demo/error", messages=[USER]) as stream:
            await stream.get_final_completion()


async def test_a_cut_ends_a_regular_stream_that_says_why(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    upstream.plan = ENDLESS
    poor = client.with_options(api_key=await account(gateway, usd="0.001"))
    options = {"stream_options": {"include_usage": True}}
    stream = [chunk async for chunk in await poor.chat.completions.create(**ASK, stream=True, extra_body=options)]
    *said, last, usage = stream
    assert (last.choices[0].finish_reason, last.model_extra["x_gateway"]["outcome"]) == ("length", "cut")
    assert last.model_extra["x_gateway"]["reason"] == "credits_exhausted"
    assert "credit" in last.model_extra["x_gateway"]["message"]
    words = [chunk.choices[0].delta.content for chunk in said if chunk.choices[0].delta.content]
    assert usage.choices == [] and usage.usage.completion_tokens == len(words) > 10
    assert len({chunk.id for chunk in stream}) == 1


async def test_a_cut_leaves_what_was_said_to_the_stream_helper_and_to_whole_answers(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    upstream.plan = ENDLESS
    poor = client.with_options(api_key=await account(gateway, usd="0.0005"))
    # The helper raises on every answer that ended for its length, and hands over what there is of it.
    with pytest.raises(sdk.LengthFinishReasonError) as caught:
        async with poor.chat.completions.stream(**ASK) as stream:
            await stream.get_final_completion()
    poor = client.with_options(api_key=await account(gateway, usd="0.0005"))
    whole = await poor.chat.completions.create(**ASK)
    for answer in (caught.value.completion, whole):
        content = answer.choices[0].message.content
        assert content is not None and content.startswith(" one two three one")
        assert answer.choices[0].finish_reason == "length"
    assert whole.model_extra is not None and whole.model_extra["x_gateway"]["reason"] == "credits_exhausted"


async def test_a_cut_of_a_translated_stream_is_as_regular(gateway: GatewayProcess, client: AsyncOpenAI) -> None:
    poor = client.with_options(api_key=await account(gateway, usd="0.00001"))
    ask = {**ASK, "model": "demo/endless"}
    stream = [chunk async for chunk in await poor.chat.completions.create(**ask, stream=True)]
    assert [chunk.choices[0].finish_reason for chunk in stream] == [*[None] * (len(stream) - 1), "length"]
    assert stream[-1].model_extra["x_gateway"]["reason"] == "credits_exhausted"


async def test_heartbeats_do_not_disturb_the_client(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    # The provider says nothing until it is released, so it is with a heartbeat that the answer begins.
    stream = await client.chat.completions.create(**ASK, stream=True)
    assert upstream.stalled == 1
    upstream.release()
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world!"


async def test_an_error_after_the_head_was_sent_is_raised_by_the_stream(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.queue(Plan(fault="stall", fault_at=-1, status=500))
    upstream.plan = Plan(status=500)
    stream = await client.chat.completions.create(**ASK, stream=True)
    upstream.release()
    with pytest.raises(sdk.APIError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.type) == ("provider_unavailable", "server_error")
