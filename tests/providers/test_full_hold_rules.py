"""Which models bill tokens that they do not send, by their vendors' habits and by the operator's word."""

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.providers.demo import DemoProvider
from gateway.providers.endpoint import Unseen, build_endpoint
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Hangup
from gateway.providers.rows import ROWS
from gateway.providers.transport import Transport

CANCEL = Hangup()
DRAIN = Hangup(policy="drain")


class Desk:
    """Asks one provider after the other over a shared pool."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def holds(self, model: str, unseen: Unseen, *, hangup: Hangup = CANCEL, reasons: bool = False) -> bool:
        plain = build_endpoint("x", "openai", base_url="http://127.0.0.1:1/v1", key="k", vendor="x")
        endpoint = msgspec.structs.replace(plain, unseen=unseen, hangup=hangup)
        return HttpProvider(endpoint, OpenAiChatClient(), self._transport).holds_full(model, reasons=reasons)

    def holds_of_row(self, row: str, model: str, *, reasons: bool = False) -> bool:
        known = ROWS[row]
        return self.holds(model, Unseen(models=known.unseen, if_asked=known.unseen_if_asked), reasons=reasons)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    transport = Transport()
    yield Desk(transport)
    await transport.aclose()


@pytest.mark.parametrize(
    ("row", "model", "is_held"),
    [
        ("openai", "o1", True),
        ("openai", "o3-mini-2025-01-31", True),
        ("openai", "o4-mini", True),
        ("openai", "ft:o4-mini-2025-04-16:acme::1", True),
        ("openai", "gpt-5", True),
        ("openai", "gpt-5.1-codex", True),
        ("openai", "gpt-5-chat-latest", False),
        ("openai", "gpt-4o", False),
        ("openai", "gpt-4.1", False),
        ("openai", "ft:gpt-4o-2024-08-06:acme::1", False),
        ("xai", "grok-3-mini", True),
        ("xai", "grok-4-fast", True),
        ("xai", "grok-3", False),
        ("openrouter", "openai/o3", True),
        ("openrouter", "openai/gpt-5", True),
        ("openrouter", "google/gemini-2.5-pro", True),
        ("openrouter", "openrouter/auto", True),
        ("openrouter", "openai/gpt-4o", False),
        ("openrouter", "meta-llama/llama-3.3-70b-instruct", False),
        ("anthropic", "claude-opus-4-1", False),
        ("deepseek", "deepseek-reasoner", False),  # sends what it thinks
    ],
)
async def test_the_vendors_that_reason_unseen_are_known(desk: Desk, row: str, model: str, is_held: bool) -> None:
    assert desk.holds_of_row(row, model) is is_held


async def test_some_bill_more_than_they_send_only_where_they_are_asked_to_reason(desk: Desk) -> None:
    assert desk.holds_of_row("anthropic", "claude-opus-4-1", reasons=True)
    assert desk.holds_of_row("openrouter", "meta-llama/x", reasons=True)
    assert not desk.holds_of_row("openai", "gpt-4o", reasons=True)


async def test_a_provider_nobody_knows_is_believed_to_send_what_it_bills(desk: Desk) -> None:
    assert not desk.holds("o3", Unseen())
    assert not desk.holds("o3", Unseen(), reasons=True)


async def test_an_answer_that_is_drained_is_held_in_full(desk: Desk) -> None:
    assert desk.holds("any", Unseen(), hangup=DRAIN)


async def test_the_operators_word_comes_before_all_that(desk: Desk) -> None:
    assert desk.holds("any", Unseen(always=True))
    assert not desk.holds("any", Unseen(always=False), hangup=DRAIN)
    assert not desk.holds("any", Unseen(models="any", if_asked=True, always=False), reasons=True)


def test_the_demo_provider_bills_what_it_sends() -> None:
    assert not DemoProvider().holds_full("reasoning", reasons=True)
