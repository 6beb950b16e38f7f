"""OpenAI's own Python client and its legacy completions against a running gateway."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {"model": "up/gpt-upstream", "prompt": "Once upon"}


async def chunks(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.completions.create(**{**ASK, **more}, stream=True)]


@pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])
async def test_a_whole_completion_has_text_and_usage(upstream: Upstream, client: AsyncOpenAI, model: str) -> None:
    answer = await client.completions.create(**{**ASK, "model": model})
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, world!", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)


async def test_a_stream_is_made_of_the_same_objects_and_ends_with_usage(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    stream = await chunks(client, stream_options={"include_usage": True})
    assert [chunk.choices[0].text for chunk in stream[:-1]] == ["Hello", ", ", "world", "!", ""]
    assert [chunk.choices[0].finish_reason for chunk in stream[:-1]] == [None, None, None, None, "stop"]
    assert stream[-1].choices == [] and stream[-1].usage.completion_tokens == 4
    assert len({(chunk.id, chunk.object, chunk.model, chunk.created) for chunk in stream}) == 1
    assert all(chunk.choices for chunk in await chunks(client))


async def test_the_prompt_goes_out_as_a_message_with_what_was_asked_for(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    more: dict[str, Any] = {"temperature": 0.5, "top_p": 0.5, "seed": 7, "stop": "\n", "user": "u1"}
    await client.completions.create(**{**ASK, "prompt": ["Once upon"]}, max_tokens=20, **more)
    await client.completions.create(**ASK)
    sent, plain = (received.body for received in upstream.requests)
    assert sent["messages"] == [{"role": "user", "content": "Once upon"}]
    assert {name: sent[name] for name in more} == {**more, "stop": ["\n"]}
    assert (sent["max_tokens"], plain["max_tokens"]) == (20, 16)
    assert "prompt" not in sent


async def test_two_choices_are_kept_apart(upstream: Upstream, client: AsyncOpenAI) -> None:
    answer = await client.completions.create(**ASK, n=2, best_of=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text for choice in answer.choices] == ["Hello, world!"] * 2
    stream = await chunks(client, n=2)
    texts = ["".join(c.text for chunk in stream for c in chunk.choices if c.index == index) for index in (0, 1)]
    assert texts == ["Hello, world!"] * 2


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"echo": True}, "unsupported_value", "echo"),
    ({"logprobs": 0}, "unsupported_value", "logprobs"),
    ({"suffix": "end"}, "unsupported_value", "suffix"),
    ({"best_of": 3}, "unsupported_value", "best_of"),
    ({"logit_bias": {"50256": -100}}, "unsupported_value", "logit_bias"),
    ({"prompt": ["a", "b"]}, "unsupported_value", "prompt"),
    ({"prompt": [1, 2]}, "unsupported_value", "prompt"),
    ({"prompt": [[1, 2]]}, "unsupported_value", "prompt"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": {"a": 1}}, "invalid_value", "prompt"),
    ({"stop": [""]}, "invalid_value", "stop"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
]


@pytest.mark.parametrize(("asked", "code", "param"), REFUSED, ids=[str(case[0]) for case in REFUSED])
async def test_what_a_conversation_cannot_keep_is_refused_by_name(
    upstream: Upstream, client: AsyncOpenAI, asked: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**{**ASK, **asked})
    assert (refused.value.code, refused.value.param) == (code, param)
    assert upstream.requests == []


async def test_an_answer_without_room_and_one_without_credit_say_so(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(finish_reason="length")
    assert (await client.completions.create(**ASK)).choices[0].finish_reason == "length"
    upstream.plan = Plan(endless=True)
    poor = client.with_options(api_key=await gateway.account("poor-completions", usd="0.0002"))
    stream = await chunks(poor, max_tokens=10_000)
    assert stream[-1].choices[0].finish_reason == "length"
    assert stream[-1].model_extra["x_gateway"]["reason"] == "credits_exhausted"


async def test_an_error_within_a_stream_is_raised(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(openai.APIError) as raised:
        await chunks(client)
    assert raised.value.code == "provider_unavailable"
