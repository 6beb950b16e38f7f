"""Experiments: who is in which variant, what a configuration may not say, the report, and how an operator gets it."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from redis import Redis

from gateway.config import Config, ConfigError
from gateway.config_file import parse
from gateway.experiments import Experiment, Experiments, Rate, Row, Variant, refusals_differ, report, rows_of
from gateway.http.admin import Admin
from gateway.http.admin_reports import reports_router
from gateway.http.errors import add_error_handlers
from gateway.limits import keys
from gateway.limits.redis import RedisOwner
from gateway.limits.tallies import Tallies
from gateway.protocols.openai_chat.server import OpenAiChatServer
from gateway.wiring_watch import check_experiments, experiments
from tests.harness import ADMIN_KEY, RedisServer

CONFIG = """
tiers:
  free:
    requests: {limit: 60}
experiments:
  more:
    tier: free
    start: 2026-12-01T00:00:00Z
    end: 2027-01-01T00:00:00Z
    variants:
      as-is: {share: 40}
      wide: {share: 40, requests: {limit: 120, period_s: 30}, tokens: {limit: 9000, burst: 500}}
      deep: {share: 10, concurrent_streams: 3, tokens_per_request: 4000}
"""
DURING = 1_797_000_000.0
AFTER = 1_800_000_000.0


def config(text: str = CONFIG) -> Config:
    return parse(text)


def experiment(name: str, shares: Sequence[int], *, start_s: float = 0, end_s: float = 10, tier: str = "t") -> Any:
    variants = tuple(Variant(name=f"{name}/{number}", share=share) for number, share in enumerate(shares))
    return Experiment(name=name, tier=tier, start_s=start_s, end_s=end_s, variants=variants)


# Who is in which variant.


def test_each_variant_gets_its_share_of_the_accounts() -> None:
    running = Experiments([experiment("e", (50, 20, 5))])
    found = [running.variant_of("t", f"account-{number}", 5) for number in range(20_000)]
    counts = {name: sum(1 for it in found if it is not None and it.name == name) for name in ("e/0", "e/1", "e/2")}
    for name, share in (("e/0", 0.5), ("e/1", 0.2), ("e/2", 0.05)):
        assert counts[name] / len(found) == pytest.approx(share, abs=0.01)
    assert found.count(None) / len(found) == pytest.approx(0.25, abs=0.01)


def test_shares_of_100_leave_nobody_out() -> None:
    running = Experiments([experiment("e", (33, 33, 34))])
    assert all(running.variant_of("t", str(number), 5) for number in range(5_000))


def test_an_account_stays_where_it_is_and_every_gateway_agrees() -> None:
    names = [f"account-{number}" for number in range(100)]
    one, two = Experiments([experiment("e", (50, 50))]), Experiments([experiment("e", (50, 50))])
    assert [one.variant_of("t", name, 1) for name in names] == [two.variant_of("t", name, 9) for name in names]


def test_the_next_experiment_shuffles_anew() -> None:
    both = Experiments([experiment("e", (50, 50)), experiment("f", (50, 50), start_s=10, end_s=20)])
    names = [f"account-{number}" for number in range(4_000)]
    pairs = [(both.variant_of("t", name, 5), both.variant_of("t", name, 15)) for name in names]
    stayed = sum(1 for one, two in pairs if one and two and one.name[-1] == two.name[-1])
    assert stayed / len(pairs) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("now_s", "is_in"), [(-1, False), (0, True), (9.9, True), (10, False)])
def test_there_is_a_variant_only_while_the_experiment_runs(now_s: float, is_in: bool) -> None:
    assert (Experiments([experiment("e", (100,))]).variant_of("t", "acme", now_s) is not None) is is_in


def test_other_tiers_take_no_part() -> None:
    assert Experiments([experiment("e", (100,))]).variant_of("other", "acme", 5) is None


# From the configuration.


def test_a_variant_says_what_it_changes_and_nothing_else() -> None:
    found = {
        variant.name: variant
        for number in range(200)
        if (variant := experiments(config()).variant_of("free", f"account-{number}", DURING))
    }
    assert found == {
        "more/as-is": Variant(name="more/as-is", share=40),
        "more/wide": Variant(
            name="more/wide",
            share=40,
            requests=Rate(limit=120, period_ms=30_000, burst=120),
            tokens=Rate(limit=9000, period_ms=60_000, burst=500),
        ),
        "more/deep": Variant(name="more/deep", share=10, concurrent_streams=3, tokens_per_request=4000),
    }
    assert experiments(config()).variant_of("free", "account-1", AFTER) is None


def test_an_empty_configuration_has_no_experiments() -> None:
    assert experiments(Config()).variant_of("default", "acme", DURING) is None


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("deep: {share: 10", "deep: {share: 30", "experiments.more: the shares of the variants add up to 110"),
        ("end: 2027-01-01", "end: 2026-12-01", "experiments.more: the end must be later than the start"),
        ("tier: free", "tier: gold", "experiments.more: there is no tier 'gold'; there are default, free"),
    ],
)
def test_what_does_not_fit_together_is_told(before: str, after: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_experiments(config(CONFIG.replace(before, after)))


OTHER = """
  other:
    tier: {tier}
    start: {start}
    end: {end}
    variants: {{a: {{share: 50}}, b: {{share: 50}}}}
"""


def test_two_experiments_of_a_tier_may_not_overlap() -> None:
    other = OTHER.format(tier="free", start="2026-12-31T23:00:00Z", end="2027-02-01T00:00:00Z")
    with pytest.raises(ConfigError, match=r"experiments\.other: it would run at the same time as more"):
        experiments(config(CONFIG + other))


@pytest.mark.parametrize(
    ("tier", "start"),
    [("free", "2027-01-01T00:00:00Z"), ("free", "2027-01-01T02:00:00+02:00"), ("default", "2026-12-02T00:00:00Z")],
)
def test_they_may_follow_each_other_or_run_in_different_tiers(tier: str, start: str) -> None:
    check_experiments(config(CONFIG + OTHER.format(tier=tier, start=start, end="2027-02-01T00:00:00Z")))


# The comparison.


def test_the_test_of_refusals_gives_the_textbook_figures() -> None:
    # 20 of 200 against 36 of 200: pooled 0.14, standard error 0.034699, z 2.3055, two-sided p 0.0211.
    found = refusals_differ(Row(variant="a", requests=200, refused=20), Row(variant="b", requests=200, refused=36))
    assert found is not None
    assert found.z == pytest.approx(2.3055, abs=1e-3)
    assert found.p == pytest.approx(0.0211, abs=1e-4)


def test_equal_shares_do_not_differ() -> None:
    found = refusals_differ(Row(variant="a", requests=200, refused=20), Row(variant="b", requests=400, refused=40))
    assert found is not None
    assert (found.z, found.p) == (0, 1)


@pytest.mark.parametrize(
    ("first", "other"), [((0, 0), (0, 0)), ((100, 0), (100, 0)), ((10, 10), (10, 10)), ((1000, 100), (9, 9))]
)
def test_from_too_few_nothing_is_concluded(first: tuple[int, int], other: tuple[int, int]) -> None:
    one, two = (Row(variant="v", requests=requests, refused=refused) for requests, refused in (first, other))
    assert refusals_differ(one, two) is None


def test_rows_come_in_the_order_of_the_configuration_and_forget_nobody() -> None:
    counters = {"wide:requests": 3, "gone:requests": 2, "gone:cost": 7}
    assert rows_of(counters, ["wide", "as-is"]) == [
        Row(variant="wide", requests=3),
        Row(variant="as-is"),
        Row(variant="gone", requests=2, cost=7),
    ]


ROWS = [
    Row(variant="as-is", requests=1200, refused=120, failed=10, input_tokens=90_000, output_tokens=30_000, cost=54_000),
    Row(variant="wide", requests=1300, refused=65, failed=12, input_tokens=100_000, output_tokens=35_000, cost=61_000),
    Row(variant="new"),
]
TABLE = """\
variant  requests  refused  failed  tokens/request  cost/request        z        p
as-is       1,200  10.00 %  0.93 %           111.1     $0.000050        -        -
wide        1,300   5.00 %  0.97 %           109.3     $0.000049    -4.77  <0.0001
new             0        -       -               -             -  too few        -"""


def test_the_report_puts_the_variants_side_by_side() -> None:
    assert report(ROWS) == TABLE


# The admin API and the command.


@asynccontextmanager
async def serving(redis: RedisOwner) -> AsyncIterator[str]:
    """The reports of the admin API on a socket; yields their address."""
    nothing: Any = None
    admin = Admin(key=ADMIN_KEY, accounts=nothing, api_keys=nothing, ledger=nothing, tiers=())
    app = FastAPI()
    add_error_handlers(app, {}, OpenAiChatServer())
    app.include_router(reports_router(admin, lambda: experiments(config()), Tallies(redis)))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.get_running_loop().create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


@pytest.fixture
async def url(redis_server: RedisServer, store: Redis) -> AsyncIterator[str]:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    async with serving(owner) as base_url:
        yield base_url
    await owner.aclose()


def count(store: Redis) -> None:
    for row in ROWS[:2]:
        for field in ("requests", "refused", "failed", "input_tokens", "output_tokens", "cost"):
            store.hset(keys.experiment("more"), f"{row.variant}:{field}", getattr(row, field))


async def gateway(url: str, *arguments: str) -> tuple[int, str]:
    """Run the command line; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env={**os.environ, "GATEWAY_URL": url, "GATEWAY_ADMIN_KEY": ADMIN_KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def test_the_command_prints_the_report(url: str, store: Redis) -> None:
    count(store)
    code, printed = await gateway(url, "experiments", "report")
    assert code == 0, printed
    head, *table = printed.rstrip("\n").splitlines()
    assert head.startswith("more: ")
    assert head.endswith(", 2026-12-01T00:00:00Z to 2027-01-01T00:00:00Z")
    assert table[:3] == TABLE.splitlines()[:3]
    assert table[3].split() == ["deep", "0", "-", "-", "-", "-", "too", "few", "-"]


async def test_a_name_asks_for_one_experiment_and_an_unknown_one_is_told(url: str, store: Redis) -> None:
    store.hset(keys.experiment("last-year"), "a:requests", 3)
    code, printed = await gateway(url, "experiments", "report", "--name", "last-year")
    assert (code, printed.splitlines()[0]) == (0, "last-year: removed")
    assert await gateway(url, "experiments", "report", "--name", "nope") == (1, "There is no such experiment.\n")


async def test_the_endpoint_gives_counts_and_the_comparison(url: str, store: Redis) -> None:
    count(store)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(base_url=f"{url}/admin/v1", headers=headers, trust_env=False) as client:
        answer = (await client.get("/experiments/more")).json()
        assert [answer] == (await client.get("/experiments")).json()
    as_is, wide, deep = answer["variants"]
    assert (answer["tier"], answer["end"]) == ("free", "2027-01-01T00:00:00Z")
    assert (as_is["requests"], as_is["cost_usd"], as_is["refused_z"]) == (1200, "0.054000", None)
    assert wide["refused_z"] == pytest.approx(-4.77, abs=0.01)
    assert deep["requests"] == 0


@pytest.mark.parametrize("path", ["/experiments", "/experiments/more", "/experiments/NOT-A-NAME"])
async def test_nobody_is_let_in_without_the_admin_key(url: str, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/admin/v1", trust_env=False) as client:
        for headers in ({}, {"Authorization": "Bearer x"}):
            assert (await client.get(path, headers=headers)).status_code == 401
