"""OpenAI's own Python client and its embeddings against a running gateway."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.harness import GatewayProcess
from tests.upstream_embeddings import VECTOR, EmbeddingsPlan, EmbeddingsUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {"model": "up/text-embedding-3-small", "input": "Hello"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def embedder() -> AsyncIterator[EmbeddingsUpstream]:
    """The simulated provider."""
    async with EmbeddingsUpstream() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(embedder: EmbeddingsUpstream) -> AsyncIterator[GatewayProcess]:
    """Takes its prices from the book: ``openai`` has one for the model's input only."""
    config = {
        "providers": {
            "up": {"type": "openai", "base_url": embedder.url, "api_key": "sk-upstream", "price_book": "openai"},
            "claude": {
                "type": "anthropic",
                "base_url": embedder.url,
                "api_key": "x",
                "price": {"input": 1, "output": 1},
            },
        },
        "tiers": {"default": {"requests": {"limit": 100_000}}, "chat": {"endpoints": ["openai_chat"]}},
    }
    async with GatewayProcess(config) as running:
        yield running


@pytest.fixture
def upstream(embedder: EmbeddingsUpstream) -> EmbeddingsUpstream:
    """The provider as if it were fresh."""
    embedder.plan = EmbeddingsPlan()
    embedder.bodies.clear()
    embedder.keys.clear()
    return embedder


def shifted(place: int) -> list[float]:
    return [place + number for number in VECTOR]


@pytest.mark.parametrize("form", [None, "float", "base64"])
@pytest.mark.parametrize("plan", [{}, {"only_numbers": True}, {"only_base64": True}])
async def test_vectors_come_in_the_form_that_was_asked_for(
    upstream: EmbeddingsUpstream, client: AsyncOpenAI, form: Any, plan: dict[str, bool]
) -> None:
    upstream.plan = EmbeddingsPlan(**plan)
    more = {} if form is None else {"encoding_format": form}
    answer = await client.embeddings.create(**{**ASK, "input": ["a", "b"]}, **more)
    assert [each.index for each in answer.data] == [0, 1]
    if form == "base64":
        assert [each.embedding for each in answer.data] == ["AACAPgAAAL8AAIA/", "AACgPwAAAD8AAABA"]
    else:
        assert [list(each.embedding) for each in answer.data] == [shifted(0), shifted(1)]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
    assert (answer.object, answer.model) == ("list", "text-embedding-3-small")
    assert upstream.bodies[0]["encoding_format"] == ("base64" if form is None else form)  # the client's own default


@pytest.mark.parametrize("inputs", ["text", ["one", "two", "three"], [1, 2, 3], [[1, 2], [3]]])
async def test_every_form_of_input_reaches_the_provider_as_it_came(
    upstream: EmbeddingsUpstream, client: AsyncOpenAI, inputs: Any
) -> None:
    answer = await client.embeddings.create(**{**ASK, "input": inputs}, dimensions=3, user="u1", extra_body={"x": [1]})
    assert len(answer.data) == (len(inputs) if isinstance(inputs, list) and not isinstance(inputs[0], int) else 1)
    sent = upstream.bodies[0]
    assert (sent["input"], sent["dimensions"], sent["user"], sent["x"]) == (inputs, 3, "u1", [1])
    assert sent["model"] == "text-embedding-3-small" and upstream.keys == ["Bearer sk-upstream"]


async def test_vectors_are_in_the_order_of_their_inputs(upstream: EmbeddingsUpstream, client: AsyncOpenAI) -> None:
    upstream.plan = EmbeddingsPlan(reverses=True)
    answer = await client.embeddings.create(**{**ASK, "input": ["a", "b", "c"]})
    assert [list(each.embedding) for each in answer.data] == [shifted(0), shifted(1), shifted(2)]


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"input": ""}, 400, "invalid_value", "input"),
    ({"input": []}, 400, "invalid_value", "input"),
    ({"input": ["a", ""]}, 400, "invalid_value", "input[1]"),
    ({"input": ["a", 1]}, 400, "invalid_value", "input"),
    ({"input": ["a"] * 2049}, 400, "invalid_value", "input"),
    ({"input": [[1] * 150_000, [1] * 150_001]}, 400, "tokens_per_request_exceeded", "input"),
    ({"input": [-1]}, 400, "invalid_value", "input[0]"),
    ({"dimensions": 0}, 400, "invalid_value", "dimensions"),
    ({"model": "claude/claude-x"}, 400, "unsupported_value", "model"),
    ({"model": "demo/embed", "dimensions": 5000}, 400, "invalid_value", "dimensions"),
    ({"model": "demo/fast"}, 400, "unsupported_value", "model"),
    ({"model": "nowhere/x"}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize(("asked", "status", "code", "param"), REFUSED, ids=[str(case[0])[:40] for case in REFUSED])
async def test_what_cannot_be_done_is_refused_by_name(
    upstream: EmbeddingsUpstream,
    client: AsyncOpenAI,
    asked: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.embeddings.create(**{**ASK, **asked})
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (status, code, param)
    assert upstream.bodies == []


async def test_all_the_inputs_that_are_allowed_fit_into_one_request(
    upstream: EmbeddingsUpstream, client: AsyncOpenAI
) -> None:
    answer = await client.embeddings.create(**{**ASK, "input": [[1] * 146] * 2048})
    assert [each.index for each in answer.data] == list(range(2048))


async def test_a_model_whose_output_has_no_price_does_not_chat(
    upstream: EmbeddingsUpstream, client: AsyncOpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model=ASK["model"], messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.code == "model_unpriced"
    with pytest.raises(openai.BadRequestError) as refused_by_demo:
        await client.chat.completions.create(model="demo/embed", messages=[{"role": "user", "content": "Hi"}])
    assert refused_by_demo.value.code == "unsupported_value"


async def test_a_tier_may_leave_embeddings_out(
    upstream: EmbeddingsUpstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    limited = client.with_options(api_key=await gateway.account("chat-only", tier="chat"))
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await limited.embeddings.create(**ASK)
    assert refused.value.code == "feature_not_allowed"


async def test_the_demo_models_vectors_are_the_same_every_time_and_near_where_texts_are(client: AsyncOpenAI) -> None:
    texts = ["the cat sat on the mat", "a cat sat on a mat", "interest rates rose sharply"]
    first, again = [
        [each.embedding for each in (await client.embeddings.create(model="demo/embed", input=texts)).data]
        for _ in range(2)
    ]
    assert first == again and len(first[0]) == 256

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(first[0], first[0]) == pytest.approx(1, abs=1e-5)
    assert likeness(first[0], first[1]) > likeness(first[0], first[2])
    short = await client.embeddings.create(model="demo/embed", input=[5, 6], dimensions=8)
    assert len(short.data) == 1 and len(short.data[0].embedding) == 8
    assert short.usage.prompt_tokens == 2


async def test_numbers_pass_with_every_digit(upstream: EmbeddingsUpstream, gateway: GatewayProcess, key: str) -> None:
    upstream.plan = EmbeddingsPlan(body=b'{"data":[{"embedding":[0.12345678901234567,-1e-9]}],"usage":null}')
    async with httpx.AsyncClient(trust_env=False) as plain:
        answer = await plain.post(
            f"{gateway.base_url}/v1/embeddings", json=ASK, headers={"authorization": f"Bearer {key}"}
        )
    assert '"embedding":[0.12345678901234567,-1e-9]' in answer.text
    assert answer.json()["usage"] == {"prompt_tokens": 1, "total_tokens": 1}  # our count, where nobody said
