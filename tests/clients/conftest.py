"""One gateway per module, between the simulated provider and the official clients, and an account that can pay."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

PRICE = {"input": 1, "output": 10}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def provider() -> AsyncIterator[Upstream]:
    """The simulated provider, which takes the gateway's own key only."""
    async with Upstream(api_key="sk-upstream") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(provider: Upstream) -> AsyncIterator[GatewayProcess]:
    """Reaches the provider as ``up``, ``newer`` and ``claude``: in Chat Completions, Responses and Messages."""
    config = {
        "providers": {
            "up": {
                "type": "openai",
                "base_url": provider.openai_url,
                "api_key": "sk-upstream",
                "models": ["gpt-upstream", "family/large"],
                "price": PRICE,
            },
            "newer": {
                "type": "openai_responses",
                "base_url": provider.openai_url,
                "api_key": "sk-upstream",
                "price": PRICE,
            },
            "claude": {
                "type": "anthropic",
                "base_url": f"{provider.base_url}/v1",
                "api_key": "sk-upstream",
                "price": PRICE,
            },
        },
        "models": {"fast": {"targets": ["up/gpt-upstream"]}},
        "tiers": {"default": {"requests": {"limit": 100_000}}, "tiny": {"requests": {"limit": 1, "period_s": 50}}},
        "server": {"commit_s": 0.5, "heartbeat_s": 0.2},
        "routing": {"retry_share": 1},  # whatever failed in tests before: each request may be tried once more
    }
    async with GatewayProcess(config) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def key(gateway: GatewayProcess) -> str:
    """Of an account with more money than the tests can spend."""
    return await gateway.account(usd="100")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(gateway: GatewayProcess, key: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client, pointed at the gateway."""
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def claude(gateway: GatewayProcess, key: str) -> AsyncIterator[AsyncAnthropic]:
    """Anthropic's own client, pointed at the gateway."""
    async with AsyncAnthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as running:
        yield running


@pytest.fixture
def upstream(provider: Upstream) -> Iterator[Upstream]:
    """The provider as if it were fresh."""
    provider.plan = Plan()
    provider.requests.clear()
    yield provider
    provider.release()
