"""Several workers behind one port: real processes, seen from outside. They are one gateway to everybody."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.metric_sums import counting, exposition, families_of, summed
from tests.exchange.fleet import CHAT, parsed, said
from tests.exchange.test_overspend import tokens_received
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes as Linux shows them"),
]

WORKERS = {"GATEWAY_WORKERS": "2"}
WORKER, REDIS = b"\0worker\0", b"redis-server"
STREAMS = 24
PRICE = {"input": 0, "output": 10}
TIERS = {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}}


def children(pid: int, command: bytes) -> list[int]:
    """The children of a process that have ``command`` in their command line."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if command in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def fresh_connections(key: str = "") -> httpx.AsyncClient:
    """A client that opens a connection for each request, so that the requests reach all workers."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=50, trust_env=False)


class Pair:
    """A gateway with two workers, and what is around it."""

    def __init__(self, gateway: GatewayProcess, upstream: Upstream, config: dict[str, Any], path: Path) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.config = config
        self._path = path

    def write(self) -> None:
        """Write ``config`` to the file that the gateway reads."""
        self._path.write_text(yaml.safe_dump(self.config))

    def workers(self) -> list[int]:
        """The pids of its workers."""
        assert self.gateway.process is not None
        return children(self.gateway.process.pid, WORKER)

    async def both_serve(self) -> None:
        """Wait until both workers serve."""
        async with asyncio.timeout(60):
            while await self.gateway.metric("gateway_workers") < 2:
                await asyncio.sleep(0.05)

    async def all_know(self, model: str) -> None:
        """Wait until many connections in a row find a model."""
        async with fresh_connections(await self.gateway.account("reader", usd="0")) as client, asyncio.timeout(20):
            while True:
                url = f"{self.gateway.base_url}/v1/models"
                answers = await asyncio.gather(*(client.get(url) for _ in range(STREAMS)))
                if all(model in answer.text for answer in answers):
                    return
                await asyncio.sleep(0.05)

    async def stream(self, client: httpx.AsyncClient) -> list[str] | None:
        """What one stream said; ``None`` where its connection broke."""
        body = {"model": "up/any", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        try:
            answer = await client.post(self.gateway.base_url + CHAT, json=body)
        except httpx.TransportError:
            return None
        assert answer.status_code == 200, answer.text
        return said(parsed(answer.text))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """The pair that most tests share."""
    path = tmp_path_factory.mktemp("workers") / "gateway.yaml"
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        up = {"type": "openai", "base_url": upstream.openai_url, "api_key": "sk-upstream", "price": PRICE}
        config = {
            "providers": {"up": up},
            "models": {"greedy": {"targets": ["demo/endless"]}, "demo/endless": {"price": PRICE}},
            "tiers": TIERS,
            "reload": {"watch": False},
        }
        redis = stack.enter_context(RedisServer())
        environment = {**WORKERS, "GATEWAY_CONFIG": str(path)}
        pair = Pair(GatewayProcess(redis_url=redis.url, environment=environment), upstream, config, path)
        pair.write()
        await stack.enter_async_context(pair.gateway)
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def pair(shared_pair: Pair) -> Pair:
    """The same, with both workers there."""
    await shared_pair.both_serve()
    shared_pair.upstream.plan = Plan(text=("one", " two"))
    return shared_pair


async def test_connections_reach_both_workers(pair: Pair) -> None:
    address = pair.gateway.base_url.removeprefix("http://").split(":")
    connections = await asyncio.gather(*(asyncio.open_connection(*address) for _ in range(STREAMS)))
    ports = {writer.get_extra_info("sockname")[1] for _, writer in connections}

    def accepted(pid: int) -> int:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = {f"socket:[{row[9]}]" for row in rows if int(row[2].rpartition(":")[2], 16) in ports}
        return len(ours & {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()})

    workers = pair.workers()
    await until(lambda: sum(map(accepted, workers)) == STREAMS)
    counts = [accepted(pid) for pid in workers]
    for _, writer in connections:
        writer.close()
    assert len(counts) == 2 and all(counts)


async def test_streams_on_two_workers_cannot_spend_more_than_there_is(pair: Pair) -> None:
    async with fresh_connections(await pair.gateway.account("greedy", usd="0.004")) as client:
        counts = await asyncio.gather(*(tokens_received(client, pair.gateway.base_url) for _ in range(STREAMS)))
    balance = await pair.gateway.settled("greedy")
    assert 350 <= sum(counts) <= 400
    assert balance["spent"] == sum(counts) * 10
    assert balance["absorbed"] == 0 <= balance["available"]


async def test_a_killed_worker_is_replaced_and_its_streams_are_settled_while_the_others_go_on(pair: Pair) -> None:
    pair.upstream.plan = Plan(text=("one", " two", " three", " four"), fault="stall", fault_at=2)
    victim, survivor = pair.workers()
    async with fresh_connections(await pair.gateway.account("cut")) as client:
        stalled = pair.upstream.stalled
        streams = [asyncio.ensure_future(pair.stream(client)) for _ in range(STREAMS)]  # noqa: TID251
        await pair.upstream.until(lambda upstream: upstream.stalled == stalled + STREAMS)
        before = await pair.gateway.metric("gateway_time_to_first_token_seconds_count")
        assert await pair.gateway.metric("gateway_streams_in_flight") == STREAMS
        os.kill(victim, signal.SIGKILL)
        await until(lambda: any(stream.done() for stream in streams))
        pair.upstream.release()
        told = await asyncio.gather(*streams)
    whole = [said for said in told if said is not None]
    assert 0 < len(whole) < STREAMS
    assert all(said == ["one", " two", " three", " four"] for said in whole)
    balance = await pair.gateway.settled("cut")
    assert balance["spent"] == 10 * (4 * len(whole) + 2 * (STREAMS - len(whole)))
    await pair.both_serve()
    assert survivor in pair.workers() and victim not in pair.workers()
    assert await pair.gateway.metric("gateway_time_to_first_token_seconds_count") >= before
    assert await pair.gateway.metric("gateway_streams_in_flight") == 0


async def test_a_worker_that_ends_alone_leaves_the_port_to_the_other(pair: Pair) -> None:
    pair.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    ending = pair.workers()[0]
    async with fresh_connections(await pair.gateway.account("leaver")) as client:
        running = asyncio.gather(*(pair.stream(client) for _ in range(STREAMS)))
        await pair.upstream.until(lambda upstream: upstream.stalled == STREAMS)
        os.kill(ending, signal.SIGTERM)
        await until(lambda: pair.gateway.log.read_text().count('"event":"draining"'))
        url = f"{pair.gateway.base_url}/v1/models"
        async with asyncio.timeout(20):
            while {answer.status_code for answer in await asyncio.gather(*(client.get(url) for _ in range(40)))} != {
                200
            }:
                await asyncio.sleep(0.05)
        assert is_alive(ending) and len(pair.workers()) == 2
        pair.upstream.release()
        assert await running == [["one", " two"]] * STREAMS
    await until(lambda: not is_alive(ending))


async def test_every_scrape_has_the_sum_of_both_workers(pair: Pair) -> None:
    before = await pair.gateway.metric("gateway_tokens_total")
    async with fresh_connections(await pair.gateway.account("metered")) as client:
        assert await asyncio.gather(*(pair.stream(client) for _ in range(STREAMS))) == [["one", " two"]] * STREAMS
        await pair.gateway.settled("metered", records=STREAMS)
        records = [row["record"] for row in await pair.gateway.usage("metered")]
        tokens = sum(record["input_tokens"] + record["output_tokens"] for record in records)
        assert {await pair.gateway.metric("gateway_tokens_total") for _ in range(8)} == {before + tokens}


@pytest.mark.parametrize("how", ["http", "signal"])
async def test_a_reload_reaches_both_workers(pair: Pair, how: str) -> None:
    pair.config["models"] = {**pair.config["models"], f"by-{how}": {"targets": ["up/any"]}}
    pair.write()
    if how == "http":
        answer = await pair.gateway.admin.post("/config/reload")
        assert answer.json()["changed"] == ["models.by-http"]
    else:
        pair.gateway.signal(signal.SIGHUP)
    await pair.all_know(f"by-{how}")
    assert await pair.gateway.metric("gateway_config_info") == 1


async def test_workers_share_an_embedded_redis_and_end_with_their_parent(tmp_path: Path) -> None:
    config = {"tiers": TIERS, "models": {"demo/endless": {"price": PRICE}}}
    async with GatewayProcess(config, environment=WORKERS, data_dir=tmp_path) as gateway:
        await until(lambda: "Development key" in gateway.log.read_text())
        assert gateway.log.read_text().count("Development key") == 1
        assert gateway.process is not None
        parent = gateway.process.pid
        workers, redis = children(parent, WORKER), children(parent, REDIS)
        assert (len(workers), len(redis)) == (2, 1)
        async with fresh_connections((tmp_path / "dev-key").read_text().strip()) as client:
            body = {"model": "demo/endless", "max_tokens": 100, "messages": [{"role": "user", "content": "Go on."}]}
            requests = [
                asyncio.ensure_future(client.post(gateway.base_url + CHAT, json=body))  # noqa: TID251
                for _ in range(STREAMS)
            ]
            async with asyncio.timeout(20):
                while await gateway.metric("gateway_streams_in_flight") < STREAMS:
                    await asyncio.sleep(0.01)
            for pid in (parent, *workers):
                os.kill(pid, signal.SIGTERM)  # as a service manager does that signals the whole group
            answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [200] * STREAMS
        assert await gateway.exited() == 0
        assert not any(map(is_alive, (*workers, *redis)))

        await gateway.start()
        family = [*children(gateway.process.pid, WORKER), *children(gateway.process.pid, REDIS)]
        gateway.kill()
        await until(lambda: not any(map(is_alive, family)))


async def test_a_gateway_of_which_no_worker_can_start_says_why_once_and_ends() -> None:
    with RedisServer(None, "--appendonly", "no") as redis:
        gateway = GatewayProcess(redis_url=redis.url, environment=WORKERS)
        with pytest.raises(RuntimeError) as told:
            await gateway.start()
        assert str(told.value).count("keeps no append-only file") == 1
        assert await gateway.exited() == 1
        await gateway.stop()


def registry_of(requests: int, running: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("requests", "Requests.", ("target",), registry=registry).labels("a").inc(requests)
    Gauge("running", "Running.", registry=registry).set(running)
    Gauge("config_info", "Which.", ("hash",), registry=registry).labels("x").set(1)
    Histogram("latency_seconds", "Latency.", buckets=(1,), registry=registry).observe(0.5)
    return registry


async def test_what_a_process_had_counted_outlives_it_and_its_gauges_do_not() -> None:
    live, gone = families_of(registry_of(2, 3)), families_of(registry_of(5, 7))
    text = exposition(summed((counting(gone), live, live))).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['requests_total{target="a"}'] == "9.0"
    assert values["running"] == "6.0"
    assert values['config_info{hash="x"}'] == "1.0"
    assert values['latency_seconds_bucket{le="+Inf"}'] == "3.0"
    assert text.count("# TYPE requests_total counter") == 1
