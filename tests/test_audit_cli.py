"""The commands as an operator runs them, against a Redis that gateways use or that was emptied."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from gateway.limits import keys
from gateway.limits.audit_reading import Auditor
from gateway.limits.redis import RedisOwner
from tests.harness import GatewayProcess, RedisServer

CONFIG = {
    "tiers": {
        "default": {
            "requests": {"limit": 1_000_000},
            "tokens": {"limit": 100_000_000},
            "concurrent_streams": 1000,
            "limits": [
                {"budget_usd": "5", "window": "24h"},
                {"budget_usd": "5", "window": "day", "per": "key"},
                {"requests": 1_000_000, "window": "1h", "per": "model"},
                {"tokens": 100_000_000, "window": "month"},
            ],
        }
    }
}
ACCOUNTS = ("acme", "hooli")
WORKERS = 12
AUDITS = 8
ENOUGH = 60


def command(*args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``gateway`` to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *args],
        capture_output=True,
        text=True,
        env=inherited | (environment or {}),
        timeout=50,
    )


async def ask(client: httpx.AsyncClient, gateway: GatewayProcess, key: str, model: str, *, chunks: int = 0) -> int:
    """One stream; leaves after ``chunks`` lines, where that is not 0."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    url = f"{gateway.base_url}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"}
    async with client.stream("POST", url, json=body, headers=headers) as response:
        lines = 0
        async for _ in response.aiter_lines():
            lines += 1
            if lines == chunks:
                break
        return response.status_code


@pytest.fixture
async def gateway(redis_server: RedisServer, store: Redis) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(CONFIG, redis_url=redis_server.url) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as opened:
        yield opened


async def test_an_audit_under_traffic_raises_no_alarm(
    gateway: GatewayProcess, client: httpx.AsyncClient, redis_server: RedisServer
) -> None:
    tokens = [await gateway.account(account) for account in ACCOUNTS]
    is_over = asyncio.Event()

    async def visit(number: int) -> int:
        count = 0
        while not is_over.is_set():
            model, chunks = (("demo/fast", 0), ("demo/fast", 9), ("demo/slow", 5), ("demo/endless", 20))[count % 4]
            assert await ask(client, gateway, tokens[number % len(tokens)], model, chunks=chunks) == 200
            count += 1
        return count

    async with asyncio.TaskGroup() as group:
        visits = [group.create_task(visit(number)) for number in range(WORKERS)]
        redis = RedisOwner(redis_server.url, timeout_s=10)
        redis.start()
        seen = rows = audits = 0
        try:
            while audits < AUDITS or seen < ENOUGH or rows < ENOUGH:
                report = await Auditor(redis).run()
                assert report.findings == [] and report.skipped == []
                seen, rows, audits = seen + report.open_streams, report.ledger_rows, audits + 1
        finally:
            is_over.set()
            await redis.aclose()
    assert sum(visit.result() for visit in visits) >= WORKERS
    for account in ACCOUNTS:
        await gateway.settled(account)
    done = command("audit", "--redis-url", redis_server.url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("2 accounts, 0 open streams, ") and done.stdout.endswith("no discrepancies.\n")


async def test_what_was_flushed_is_restored_and_served_again(
    gateway: GatewayProcess, client: httpx.AsyncClient, redis_server: RedisServer, store: Redis, tmp_path: Path
) -> None:
    tokens = {account: await gateway.account(account) for account in ACCOUNTS}
    for account, token in tokens.items():
        assert await ask(client, gateway, token, "demo/fast") == 200
        await gateway.settled(account, records=1)
    before = {account: await gateway.balance(account) for account in ACCOUNTS}
    url = {"GATEWAY_REDIS_URL": redis_server.url}
    exported = command("ledger", "export", environment=url)
    assert exported.returncode == 0 and "The next export continues with --since" in exported.stderr
    file = tmp_path / "export.jsonl"
    file.write_text(exported.stdout)

    store.flushall()
    empty = command("audit", environment=url)
    assert empty.returncode == 2 and "This Redis has no account" in empty.stderr
    planned = command("credits", "restore", str(file), environment=url)
    assert planned.returncode == 0 and "would be restored" in planned.stdout and "--apply" in planned.stdout
    assert store.exists(keys.wallet("acme")) == 0
    done = command("credits", "restore", str(file), "--apply", environment=url)
    assert done.returncode == 0, done
    assert {account: await gateway.balance(account) for account in ACCOUNTS} == before
    assert command("credits", "restore", str(file), environment=url).stdout == "".join(
        f"{account}: nothing is missing.\n" for account in ACCOUNTS
    )

    async with asyncio.timeout(20):
        for token in tokens.values():
            while await ask(client, gateway, token, "demo/fast") != 200:  # until nobody remembers the key as unknown
                await asyncio.sleep(0.05)
    for account in ACCOUNTS:
        await gateway.settled(account, records=2)
    audited = command("audit", environment=url)
    assert audited.returncode == 0, audited.stdout


async def test_a_stream_that_runs_while_redis_is_flushed_is_charged_once(
    gateway: GatewayProcess, client: httpx.AsyncClient, redis_server: RedisServer, store: Redis, tmp_path: Path
) -> None:
    token = await gateway.account("acme")
    url = {"GATEWAY_REDIS_URL": redis_server.url}
    gateway.expected_errors |= {"settlement_refused"}
    running = asyncio.get_running_loop().create_task(ask(client, gateway, token, "demo/endless", chunks=1000))
    try:
        async with asyncio.timeout(10):
            while (await gateway.balance())["held"] == 0:
                await asyncio.sleep(0.02)
        file = tmp_path / "export.jsonl"
        file.write_text(command("ledger", "export", environment=url).stdout)
        store.flushall()
        assert command("credits", "restore", str(file), "--apply", environment=url).returncode == 0
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await running
    balance = await gateway.settled(records=1)
    (record,) = await gateway.usage()
    assert balance["spent"] > 0 and int(record["charged_usd"].replace(".", "")) == balance["spent"]
    audited = command("audit", environment=url)
    assert audited.returncode == 0, audited.stdout


async def test_discrepancies_are_named_one_to_a_line_and_told_by_the_exit_code(
    gateway: GatewayProcess, redis_server: RedisServer, store: Redis
) -> None:
    await gateway.account("acme")
    store.hincrby(keys.wallet("acme"), "h", 500)
    found = command("audit", "--account", "acme", "--redis-url", redis_server.url)
    assert found.returncode == 1
    line, summary = found.stdout.splitlines()
    assert line.startswith("acme: I2 held: expected 0 (what its 0 open streams hold), found 500. ")
    assert summary == "1 account, 0 open streams, 0 records, 1 ledger row: 1 discrepancy."
    report = json.loads(command("audit", "--json", "--redis-url", redis_server.url).stdout)
    assert [(it["account"], it["invariant"], it["found"]) for it in report["findings"]] == [("acme", "I2", "500")]
    assert command("audit", "--account", "nobody", "--redis-url", redis_server.url).returncode == 2


async def test_the_embedded_redis_is_found_in_the_data_directory(tmp_path: Path) -> None:
    async with GatewayProcess(data_dir=tmp_path / "d"):
        done = command("audit", environment={"GATEWAY_DATA_DIR": str(tmp_path / "d")})
        assert done.returncode == 0 and done.stdout.startswith("1 account, "), done
    done = command("audit", environment={"GATEWAY_DATA_DIR": str(tmp_path / "d")})
    assert done.returncode == 2 and "Redis could not be used" in done.stderr, done


def test_what_cannot_be_read_is_exit_code_2(redis_server: RedisServer, store: Redis, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    store.set(keys.wallet("acme"), "not a hash")
    for args, message in (
        (("audit", "--redis-url", "redis://127.0.0.1:1"), "Redis could not be used"),
        (("audit", "--redis-url", "http://127.0.0.1"), "It has to begin with one of"),
        (("audit", "--redis-url", redis_server.url), "WRONGTYPE"),
        (("audit", "--account", "A{}"), "is no name of an account"),
        (("ledger", "export", "--since", "yesterday"), "a cursor looks like"),
        (("credits", "restore", str(tmp_path / "none")), "No such file"),
        (("credits", "restore", str(broken)), "broken.jsonl:1: not a line of an export"),
    ):
        done = command(*args)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (args, done)


async def test_a_refused_account_is_exit_code_1(
    gateway: GatewayProcess, redis_server: RedisServer, store: Redis, tmp_path: Path
) -> None:
    await gateway.account("acme")
    file = tmp_path / "export.jsonl"
    file.write_text(command("ledger", "export", "--redis-url", redis_server.url).stdout)
    store.flushall()
    await gateway.account("acme", usd="2")
    done = command("credits", "restore", str(file), "--apply", "--redis-url", redis_server.url)
    assert done.returncode == 1 and done.stdout.startswith("acme: refused: its ledger has row "), done
    assert (await gateway.balance())["granted"] == 2_000_000
