"""From a tier's rules to the limits of one request: whose they are, for which models, how scaled and how cached."""

import re

import pytest

from gateway.limits import keys, tiers
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.calendar import Calendar
from gateway.limits.tiers import BucketRule, Limits, Party, Rule, Rulebook, SlotsRule, Tier, WindowRule

PARTY = Party("acme", "key-1", "user-1", "gpt-x")


def rpm(per: tiers.Scope = "account", *, limit: int = 60, models: tuple[str, ...] = (), shadow: bool = False) -> Rule:
    return BucketRule(
        per=per, models=models, is_shadow=shadow, unit=Unit.REQUESTS, limit=limit, period_ms=60_000, burst=limit
    )


def made(*rules: Rule, party: Party = PARTY, permille: int = 1000) -> Limits:
    return Rulebook().limits(Tier(name="gold", rules=rules), party, permille)


def names(limits: Allowances) -> list[str]:
    return [limit.name for limit in (*limits.windows, *limits.buckets, *limits.slots)]


class TestScopes:
    @pytest.mark.parametrize(
        ("per", "other", "is_same"),
        [
            ("account", Party("acme", "key-2", "user-2", "gpt-y"), True),
            ("key", Party("acme", "key-1", "user-2", "gpt-y"), True),
            ("key", Party("acme", "key-2", "user-1", "gpt-x"), False),
            ("user", Party("acme", "key-2", "user-1", "gpt-y"), True),
            ("user", Party("acme", "key-1", "user-2", "gpt-x"), False),
            ("model", Party("acme", "key-2", "user-2", "gpt-x"), True),
            ("model", Party("acme", "key-1", "user-1", "gpt-y"), False),
        ],
    )
    def test_who_shares_a_limit(self, per: tiers.Scope, other: Party, is_same: bool) -> None:
        assert (made(rpm(per)).own.keys == made(rpm(per), party=other).own.keys) == is_same

    def test_accounts_share_nothing_of_their_own(self) -> None:
        other = Party("umbrella", "key-1", "user-1", "gpt-x")
        for per in ("account", "key", "user", "model"):
            assert made(rpm(per)).own.keys != made(rpm(per), party=other).own.keys

    def test_a_request_without_a_user_has_no_limits_per_user(self) -> None:
        anonymous = Party("acme", "key-1", "", "gpt-x")
        assert names(made(rpm("user"), rpm("account"), party=anonymous).own) == ["account.requests.60000"]

    def test_what_the_tier_shares_lies_elsewhere(self) -> None:
        limits = made(rpm("tier"), rpm("account"))
        assert names(limits.own) == ["account.requests.60000"]
        ((owner, shared),) = limits.shared
        assert names(shared) == ["tier.requests.60000"]
        assert owner.permits.startswith("cap:{tier.")
        other = made(rpm("tier"), party=Party("umbrella", "", "", "m"))
        assert other.shared[0][1].keys == shared.keys

    def test_what_a_model_can_bear_is_shared_by_all(self) -> None:
        book = Rulebook({"gpt-x": (rpm("model"), SlotsRule(per="model", max=3))})
        one = book.limits(Tier(name="gold"), PARTY)
        ((_, shared),) = one.shared
        assert [name.split(".")[0] for name in names(shared)] == ["model", "model"]
        other = book.limits(Tier(name="silver"), Party("umbrella", "k", "", "gpt-x"))
        assert other.shared[0][1].keys == shared.keys
        assert book.limits(Tier(name="gold"), Party("acme", "k", "", "gpt-y")).shared == ()

    def test_all_keys_of_an_account_share_its_slot(self) -> None:
        rules = (rpm("account"), rpm("key"), rpm("user"), rpm("model"), SlotsRule(max=3))
        assert {key.split(":")[1] for key in made(*rules).own.keys} == {"{acme}"}


class TestModels:
    @pytest.mark.parametrize(
        ("patterns", "applies"), [((), True), (("gpt-*",), True), (("claude-*", "gpt-x"), True), (("GPT-*",), False)]
    )
    def test_a_rule_is_for_the_models_it_names(self, patterns: tuple[str, ...], applies: bool) -> None:
        assert bool(made(rpm(models=patterns)).own.buckets) == applies

    def test_rules_for_different_models_count_apart_and_one_rule_counts_its_models_together(self) -> None:
        mini, every = made(rpm(models=("gpt-*",)), rpm()).own.buckets
        assert mini.name != every.name
        other = Party("acme", "key-1", "user-1", "gpt-y")
        assert made(rpm(models=("gpt-*",)), party=other).own.buckets[0].name == mini.name

    def test_which_models_a_tier_may_use(self) -> None:
        assert Tier(name="t").allows_model("anything")
        assert Tier(name="t", models=("gpt-*",)).allows_model("gpt-x")
        assert not Tier(name="t", models=("gpt-*",)).allows_model("claude")
        assert not Tier(name="t", models=()).allows_model("gpt-x")


class TestRules:
    def test_a_bucket_a_window_and_slots(self) -> None:
        own = made(
            rpm(limit=7), SlotsRule(max=4), WindowRule(unit=Unit.MONEY, limit=500, rolling_ms=86_400_000, per="key")
        ).own
        assert own.buckets == (Bucket("account.requests.60000", 7, 60_000, 7, Unit.REQUESTS),)
        assert own.slots == (Slots("account.streams", 4),)
        (window,) = own.windows
        assert (window.limit, window.bounds, window.unit) == (500, (1_440_000, 60, 0), Unit.MONEY)

    @pytest.mark.parametrize("rolling_ms", [1000, 60_000, 90_061, 86_400_000, 30 * 86_400_000])
    def test_the_parts_of_a_rolling_window_cover_it(self, rolling_ms: int) -> None:
        (window,) = made(WindowRule(unit=Unit.TOKENS, limit=5, rolling_ms=rolling_ms)).own.windows
        width, parts, _ = window.bounds
        assert rolling_ms <= width * parts < rolling_ms + width
        assert parts <= 60

    def test_what_is_only_watched_counts_for_itself(self) -> None:
        real, watched = made(rpm(), rpm(shadow=True)).own.buckets
        assert (real.is_shadow, watched.is_shadow) == (False, True)
        assert real.name != watched.name

    @pytest.mark.parametrize(("permille", "expected"), [(1000, 60), (500, 30), (1, 1), (2000, 120)])
    def test_rates_and_slots_are_scaled_and_money_is_not(self, permille: int, expected: int) -> None:
        budget = WindowRule(unit=Unit.MONEY, limit=60, rolling_ms=1000)
        own = made(rpm(limit=60), SlotsRule(max=60), budget, permille=permille).own
        assert (own.buckets[0].limit, own.buckets[0].burst, own.slots[0].max) == (expected, expected, expected)
        assert own.windows[0].limit == 60

    def test_a_prompt_has_a_bucket_of_its_own(self) -> None:
        own = made(rpm(), SlotsRule(max=4)).own
        limited = tiers.with_prompt_limit(own, "acme", "abcd", 3, is_shadow=True)
        assert limited.buckets == (*own.buckets, Bucket("prompt.abcd", 3, 600_000, 3, Unit.REQUESTS, True))
        assert (limited.windows, limited.slots) == (own.windows, own.slots)

    def test_stored_limits_are_the_same_when_they_are_loaded(self) -> None:
        calendar = WindowRule(unit=Unit.MONEY, limit=60, calendar=Calendar("day"))
        own = made(rpm("key"), SlotsRule(max=60), calendar).own
        again = Allowances.load(keys.limits_of("acme"), own.stored)
        assert (again.keys, again.packed, again.stored) == (own.keys, own.packed, own.stored)
        limits = (*own.windows, *own.buckets, *own.slots)
        assert tuple(again.at(number) for number in (1, 2, 3)) == limits


@pytest.mark.parametrize("text", ["evil:{umbrella}:w", "ключ", "\ud800", "a b\r\nc", "x" * 5000, "*"])
def test_nobodys_text_is_part_of_a_key(text: str) -> None:
    party = Party("acme", text, text, text)
    calendar = WindowRule(unit=Unit.MONEY, limit=60, calendar=Calendar("day"), per="user")
    limits = made(
        *(rpm(per, models=("*",)) for per in ("account", "key", "user", "model", "tier")), calendar, party=party
    )
    book = Rulebook({text: (rpm("model"),)})
    shared = [one for group in (limits, book.limits(Tier(name=text), party)) for one in group.shared]
    for key in (*limits.own.keys, *(key for owner, it in shared for key in (owner.permits, *it.keys))):
        assert re.fullmatch(r"(cr:\{acme\}|cap:\{(tier|model)\.[0-9a-f]{16}\})(:[brc]:[a-z0-9.]+|:p)", key), key


class TestCache:
    def test_what_was_made_is_kept_until_the_calendar_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = Calendar("day").bounds(1_800_000_000)[2] / 1000 - 1.5
        monkeypatch.setattr("gateway.limits.tiers.time.time", lambda: now)
        book = Rulebook()
        tier = Tier(name="gold", rules=(WindowRule(unit=Unit.MONEY, limit=60, calendar=Calendar("day")), rpm()))
        first = book.limits(tier, PARTY)
        now += 1
        assert book.limits(tier, PARTY) is first
        now += 1
        second = book.limits(tier, PARTY)
        assert isinstance(second.own.windows[0], Window)
        assert second.own.windows[0].bounds[:2] == first.own.windows[0].bounds[1:]
        assert second.own.keys == first.own.keys

    def test_another_tier_variant_party_or_scale_is_made_anew(self) -> None:
        book = Rulebook()
        gold = Tier(name="gold", rules=(rpm(),))
        first = book.limits(gold, PARTY)
        assert book.limits(gold, PARTY) is first
        assert book.limits(gold, PARTY, 500).own.buckets[0].limit == 30
        variant = Tier(name="gold", rules=(rpm(limit=5),), variant="b")
        assert book.limits(variant, PARTY).own.buckets[0].limit == 5
        assert book.limits(gold, Party("umbrella", "", "", "m")).own.keys != first.own.keys

    def test_it_does_not_grow_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiers, "_CACHED_MAX", 10)
        book = Rulebook()
        for number in range(100):
            book.limits(Tier(name="gold"), Party(f"a{number}", "", "", "m"))
            assert len(book._made) <= 10
