"""Which target answers: names, prices, and when the next one is tried."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.canonical.errors import (
    ErrorCode,
    GatewayError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Failure, Frame, MessageStart, TextDelta
from gateway.canonical.request import Request
from gateway.metering.prices import FREE, Price, PriceBook, PriceSchedule
from gateway.metering.quote import Terms
from gateway.providers.provider import Call, Hangup, Timeouts
from gateway.router import Attempt, Calls, ModelOptions, Router

PRICE = PriceSchedule(Price(input=1, output=2))
REQUEST = Request(format="openai_chat", model="fast", messages=())
HELLO = Batch([Frame((MessageStart("id", "m", 1), TextDelta("Hello")))])
NEVER = "never"


class Scripted:
    """A provider that does what it was told: batches to send, errors to raise, or to hang."""

    wire: str | None = None
    hangup = Hangup()

    def __init__(self, name: str, *acts: Batch | BaseException | str, models: tuple[str, ...] = ()) -> None:
        self.name = name
        self.vendor = name
        self.timeouts = Timeouts(first_event_s=0.05)
        self.models = models
        self.acts = acts
        self.calls: list[Call] = []
        self.is_open = False

    def knows(self, model: str) -> bool:
        return True

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        return reasons or model.startswith("thinker")

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        self.calls.append(call)
        self.is_open = True
        try:
            for act in self.acts:
                if act == NEVER:
                    await asyncio.Event().wait()
                elif isinstance(act, BaseException):
                    raise act
                else:
                    assert isinstance(act, Batch)
                    yield act
        finally:
            self.is_open = False

    async def aclose(self) -> None:
        """Nothing to give up."""


def router(*providers: Scripted, priced: bool = True, **aliases: tuple[str, ...]) -> Router:
    own = {f"{provider.name}/*": PRICE for provider in providers} if priced else {}
    models = {name: ModelOptions(targets=targets) for name, targets in aliases.items()}
    return Router({provider.name: provider for provider in providers}, models, PriceBook(own))


def with_options(**models: ModelOptions) -> Router:
    """Names are written with ``__`` for a slash."""
    named = {name.replace("__", "/"): options for name, options in models.items()}
    return Router({"a": Scripted("a")}, named, PriceBook({"a/*": PRICE}))


def down(provider: str) -> ProviderUnavailable:
    return ProviderUnavailable("Down.", provider=provider, status=503)


class TestNames:
    def test_a_model_is_named_by_its_provider_or_an_alias(self) -> None:
        one = router(Scripted("a"), Scripted("b"), fast=("b/small", "a/family/large"))
        assert [target.name for target in one.resolve("a/family/large")] == ["a/family/large"]
        assert [target.name for target in one.resolve("fast")] == ["b/small", "a/family/large"]
        assert one.resolve("fast")[0].terms.price is PRICE

    @pytest.mark.parametrize("model", ["", "a", "a/", "/x", "nobody/x", "fastest"])
    def test_an_unknown_name_is_refused(self, model: str) -> None:
        with pytest.raises(RequestError) as caught:
            router(Scripted("a"), fast=("a/x",)).resolve(model)
        assert (caught.value.code, caught.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")

    def test_a_model_without_a_price_is_not_given_away(self) -> None:
        with pytest.raises(RequestError) as caught:
            router(Scripted("a"), priced=False).resolve("a/x")
        assert caught.value.code is ErrorCode.MODEL_UNPRICED
        free = Router({"a": Scripted("a")}, {}, PriceBook({}, free_if_unpriced=True))
        assert free.resolve("a/x")[0].terms.price is FREE

    def test_models_are_listed_with_their_aliases(self) -> None:
        one = router(Scripted("a", models=("x", "y")), Scripted("b"), fast=("b/z",))
        assert [(entry.id, entry.owned_by) for entry in one.models()] == [
            ("a/x", "a"),
            ("a/y", "a"),
            ("fast", "gateway"),
        ]


class TestTerms:
    def terms(self, asked: str, *, reasons: bool = False, **models: ModelOptions) -> Terms:
        return with_options(**models).resolve(asked, reasons=reasons)[0].terms

    def test_the_provider_says_which_models_are_held_in_full_where_nobody_else_does(self) -> None:
        assert self.terms("a/plain") == Terms(price=PRICE)
        assert self.terms("a/thinker") == Terms(price=PRICE, is_held_full=True)
        assert self.terms("a/plain", reasons=True).is_held_full

    def test_the_operators_word_on_a_model_overrides_its_provider(self) -> None:
        assert self.terms("a/plain", a__plain=ModelOptions(is_held_full=True)).is_held_full
        assert not self.terms("a/thinker", a__thinker=ModelOptions(is_held_full=False)).is_held_full

    def test_an_alias_does_not_lose_what_was_said_of_its_target(self) -> None:
        its = ModelOptions(is_held_full=True, output_tokens_max=1000, tokenizer="bytes")
        target = with_options(smart=ModelOptions(targets=("a/plain",)), a__plain=its).resolve("smart")[0]
        assert target.terms == Terms(price=PRICE, is_held_full=True, output_tokens_max=1000)
        assert target.tokenizer == "bytes"

    def test_what_an_alias_says_itself_comes_first(self) -> None:
        its = ModelOptions(is_held_full=True, output_tokens_max=1000, tokenizer="bytes")
        own = ModelOptions(targets=("a/plain",), is_held_full=False, output_tokens_max=50, tokenizer="cl100k")
        target = with_options(smart=own, a__plain=its).resolve("smart")[0]
        assert target.terms == Terms(price=PRICE, is_held_full=False, output_tokens_max=50)
        assert target.tokenizer == "cl100k"

    @pytest.mark.parametrize(("model", "tokenizer"), [("gpt-4-turbo", "cl100k"), ("gpt-4o", "o200k")])
    def test_a_tokenizer_is_guessed_from_the_providers_name_of_the_model(self, model: str, tokenizer: str) -> None:
        assert with_options(gpt=ModelOptions(targets=(f"a/{model}",))).resolve("gpt")[0].tokenizer == tokenizer


class TestOpening:
    async def opened(self, *providers: Scripted) -> tuple[str, list[Attempt]]:
        one, calls = router(*providers, fast=tuple(f"{p.name}/m" for p in providers)), Calls()
        upstream = await one.open([(target, REQUEST) for target in one.resolve("fast")], calls)
        assert calls.current is upstream.target
        assert upstream.first is HELLO
        await upstream.batches.aclose()
        assert not any(provider.is_open for provider in providers)
        return upstream.target.name, calls.failed

    async def test_the_first_target_that_begins_answers(self) -> None:
        first, second = Scripted("a", HELLO), Scripted("b", HELLO)
        assert await self.opened(first, second) == ("a/m", [])
        assert second.calls == []
        assert first.calls == [Call(REQUEST, "m")]

    @pytest.mark.parametrize(
        ("acts", "code", "status"),
        [
            ((down("a"),), "provider_unavailable", 503),
            ((ProviderRateLimited("m", provider="a", status=429),), "provider_rate_limited", 429),
            ((NEVER,), "provider_timeout", None),
            ((Batch([]), Batch([]), NEVER), "provider_timeout", None),
            ((Batch([Frame((Failure(down("a")),))]),), "provider_unavailable", 503),
            (
                (Batch([Frame((MessageStart("i", "m", 1),)), Frame((Failure(down("a")),))]),),
                "provider_unavailable",
                503,
            ),
            ((Batch([]),), "stream_truncated", None),
            ((), "stream_truncated", None),
        ],
    )
    async def test_one_that_fails_before_its_first_event_is_passed_over(
        self, acts: tuple[Batch | BaseException | str, ...], code: str, status: int | None
    ) -> None:
        name, attempts = await self.opened(Scripted("a", *acts), Scripted("b", Batch([]), HELLO))
        assert name == "b/m"
        assert attempts == [Attempt(target="a/m", code=code, status=status)]

    async def test_a_request_that_was_judged_wrong_is_not_tried_elsewhere(self) -> None:
        second = Scripted("b", HELLO)
        with pytest.raises(ProviderRejected):
            await self.opened(Scripted("a", ProviderRejected("Bad.", provider="a", status=400)), second)
        assert second.calls == []

    @pytest.mark.parametrize(
        ("act", "kind"), [(down("b"), ProviderUnavailable), (NEVER, ProviderTimeout), (Batch([]), StreamTruncated)]
    )
    async def test_the_last_targets_error_is_told(
        self, act: Batch | BaseException | str, kind: type[GatewayError]
    ) -> None:
        providers = (Scripted("a", down("a")), Scripted("b", act))
        with pytest.raises(kind) as caught:
            await self.opened(*providers)
        assert getattr(caught.value, "provider", None) == "b"
        assert not any(provider.is_open for provider in providers)

    async def test_an_answer_without_words_is_an_answer(self) -> None:
        one = router(Scripted("a", Batch([], is_last=True)))
        upstream = await one.open([(target, REQUEST) for target in one.resolve("a/m")], Calls())
        assert upstream.first.is_last
        await upstream.batches.aclose()

    async def test_a_bug_or_a_cancel_is_not_hidden_and_closes_the_call(self) -> None:
        broken = Scripted("a", ValueError("bug"))
        with pytest.raises(ValueError, match="bug"):
            await self.opened(broken, Scripted("b", HELLO))
        hanging = Scripted("a", NEVER)
        hanging.timeouts = Timeouts()
        opening = asyncio.gather(self.opened(hanging))
        while not hanging.is_open:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not hanging.is_open
