"""A running provider and the vendors' own SDKs pointed at it."""

from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from . import Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture
async def openai(upstream: Upstream) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=upstream.openai_url, api_key="sk-test", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic(upstream: Upstream) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=upstream.base_url, api_key="sk-test", max_retries=0) as client:
        yield client
