"""Accounts and who may not go on: names, tiers, wallets, suspensions, and how gateways hear of them."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import accounts as module
from gateway.limits import keys
from gateway.limits.accounts import Accounts, Standing
from gateway.limits.revocations import KEY_PREFIX, Revocations, revoke

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any


@pytest.fixture
def accounts(teller: Teller) -> Accounts:
    return Accounts(teller.scripts)


async def test_accounts_have_names_tiers_and_wallets(accounts: Accounts, teller: Teller) -> None:
    assert await accounts.create("acme", name="Acme", tier="gold")
    assert not await accounts.create("acme", name="Other", tier=None)
    assert await accounts.create("umbrella", name="", tier=None)
    account = await accounts.get("acme")
    assert account is not None and (account.name, account.tier) == ("Acme", "gold")
    assert await accounts.get("nobody") is None
    assert set(await accounts.ids(start=0, count=9)) == {"acme", "umbrella"}
    assert (await accounts.grant("acme", grant_id="g", amount=70)).granted == 70
    await teller.reserve("s", 30)
    wallet = await accounts.wallet("acme")
    assert (wallet.granted, wallet.held, wallet.available, wallet.is_suspended) == (70, 30, 40, False)
    assert (await accounts.wallet("nobody")).available == 0


async def test_an_account_that_was_made_twice_keeps_its_money(accounts: Accounts) -> None:
    await accounts.create("acme", name="", tier=None)
    await accounts.grant("acme", grant_id="g", amount=70)
    await accounts.create("acme", name="", tier=None)
    assert (await accounts.wallet("acme")).granted == 70


async def test_a_standing_is_kept_a_while_and_forgotten_where_it_is_changed(accounts: Accounts, teller: Teller) -> None:
    await accounts.create("acme", name="", tier="gold")
    assert await accounts.standing("acme") == Standing(tier="gold")
    teller.store.hset(keys.account("acme"), "tier", "silver")
    assert (await accounts.standing("acme")).tier == "gold"
    await accounts.change_tier("acme", "bronze")
    assert (await accounts.standing("acme")).tier == "bronze"
    await accounts.change_tier("acme", None)
    assert (await accounts.standing("acme")).tier is None
    await accounts.downgrade("acme", "small", 1_900_000_000.5)
    assert await accounts.standing("acme") == Standing(
        tier=None, downgraded_to="small", downgraded_until=1_900_000_000.5
    )


async def test_standings_do_not_grow_for_ever(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STANDINGS_MAX", 3)
    for number in range(10):
        await accounts.standing(f"a{number}")
        assert len(accounts._standings) <= 3


async def test_a_suspension_ends_what_runs_and_is_taken_back(accounts: Accounts, teller: Teller) -> None:
    revoked: list[str] = []
    watch = Revocations(teller.redis, revoked.append)
    await accounts.create("acme", name="", tier=None)
    await accounts.grant("acme", grant_id="g", amount=70)
    await watch.look()
    await accounts.suspend("acme")
    assert (await teller.reserve("s")).code == -6
    assert (await accounts.wallet("acme")).is_suspended
    for _ in range(2):
        await watch.look()
    assert revoked == ["acme"]
    await accounts.resume("acme")
    await watch.look()
    assert (await teller.reserve("s")).code == 1
    await accounts.suspend("acme")
    await watch.look()
    assert revoked == ["acme", "acme"]


async def test_a_key_is_revoked_by_its_id_and_old_entries_go(teller: Teller) -> None:
    revoked: list[str] = []
    watch = Revocations(teller.redis, revoked.append)
    teller.store.zadd(keys.REVOKED, {"ancient": 1})
    await revoke(teller.redis, f"{KEY_PREFIX}k1")
    await watch.look()
    assert revoked == [f"{KEY_PREFIX}k1"]
    assert teller.store.zrange(keys.REVOKED, 0, -1) == [f"{KEY_PREFIX}k1".encode()]
