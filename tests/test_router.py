"""Which target answers: names, prices, and when the next one is tried."""

from collections.abc import AsyncGenerator

import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.events import Batch
from gateway.canonical.request import Loss
from gateway.metering.prices import FREE, Price, PriceBook, PriceSchedule
from gateway.metering.quote import Terms
from gateway.providers.provider import Call, Hangup, Timeouts
from gateway.router import ModelOptions, Router

PRICE = PriceSchedule(Price(input=1, output=2))


class Listed:
    """A provider that is only talked about."""

    wire: str | None = None
    hangup = Hangup()
    timeouts = Timeouts()

    def __init__(self, name: str, *, models: tuple[str, ...] = ()) -> None:
        self.name = name
        self.vendor = name
        self.models = models

    def knows(self, model: str) -> bool:
        return True

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        return reasons or model.startswith("thinker")

    def losses(self, call: Call) -> tuple[Loss, ...]:
        return ()

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        raise AssertionError("nobody asks")
        yield

    async def aclose(self) -> None:
        """Nothing to give up."""


def router(*providers: Listed, priced: bool = True, **aliases: tuple[str, ...]) -> Router:
    own = {f"{provider.name}/*": PRICE for provider in providers} if priced else {}
    models = {name: ModelOptions(targets=targets) for name, targets in aliases.items()}
    return Router({provider.name: provider for provider in providers}, models, PriceBook(own))


def with_options(**models: ModelOptions) -> Router:
    """Names are written with ``__`` for a slash."""
    named = {name.replace("__", "/"): options for name, options in models.items()}
    return Router({"a": Listed("a")}, named, PriceBook({"a/*": PRICE}))


class TestNames:
    def test_a_model_is_named_by_its_provider_or_an_alias(self) -> None:
        one = router(Listed("a"), Listed("b"), fast=("b/small", "a/family/large"))
        assert [target.name for target in one.resolve("a/family/large")] == ["a/family/large"]
        assert [target.name for target in one.resolve("fast")] == ["b/small", "a/family/large"]
        assert one.resolve("fast")[0].terms.price is PRICE

    @pytest.mark.parametrize("model", ["", "a", "a/", "/x", "nobody/x", "fastest"])
    def test_an_unknown_name_is_refused(self, model: str) -> None:
        with pytest.raises(RequestError) as caught:
            router(Listed("a"), fast=("a/x",)).resolve(model)
        assert (caught.value.code, caught.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")

    def test_a_model_without_a_price_is_not_given_away(self) -> None:
        with pytest.raises(RequestError) as caught:
            router(Listed("a"), priced=False).resolve("a/x")
        assert caught.value.code is ErrorCode.MODEL_UNPRICED
        free = Router({"a": Listed("a")}, {}, PriceBook({}, free_if_unpriced=True))
        assert free.resolve("a/x")[0].terms.price is FREE

    def test_models_are_listed_with_their_aliases(self) -> None:
        one = router(Listed("a", models=("x", "y")), Listed("b"), fast=("b/z",))
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


class TestChoice:
    def order(self, one: Router, **who: str) -> list[str]:
        targets = one.choose("fast", reasons=False, account=who.get("account", "acme"), chat_id=who.get("chat_id", ""))
        return [target.name for target in targets]

    def test_targets_are_tried_in_the_order_of_the_list_where_nothing_else_is_said(self) -> None:
        one = router(Listed("a"), Listed("b"), fast=("b/x", "a/x", "b/y", "a/y", "a/z"))
        assert self.order(one) == ["b/x", "a/x", "b/y", "a/y"]

    def test_weights_share_out_requests(self) -> None:
        options = ModelOptions(targets=("a/x", "a/y"), weights=(9, 1), strategy="weighted")
        one = with_options(fast=options)
        first = [self.order(one)[0] for _ in range(2000)]
        assert 1700 < first.count("a/x") < 1900

    def test_the_cheapest_comes_first(self) -> None:
        cheap = PriceSchedule(Price(input=1, output=1))
        options = ModelOptions(targets=("a/x", "a/y"), strategy="cheapest")
        one = with_options(fast=options, a__y=ModelOptions(price=cheap))
        assert self.order(one) == ["a/y", "a/x"]

    def test_a_sticky_alias_sends_an_account_or_a_chat_to_the_same_one(self) -> None:
        targets = tuple(f"a/{n}" for n in range(8))
        by_account = with_options(fast=ModelOptions(targets=targets, strategy="weighted", sticky="account"))
        by_chat = with_options(fast=ModelOptions(targets=targets, strategy="weighted", sticky="chat"))
        assert len({self.order(by_account, account="one")[0] for _ in range(50)}) == 1
        assert len({self.order(by_account, account=f"u{n}")[0] for n in range(50)}) > 3
        assert len({self.order(by_chat, chat_id="c1")[0] for _ in range(50)}) == 1
        assert len({self.order(by_chat)[0] for _ in range(50)}) > 3, "without a chat nothing sticks"
