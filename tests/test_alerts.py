"""Alerts: what fires, what a receiver gets and how it knows who sent it, and that replicas do not repeat each other."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from gateway import alerts as room
from gateway.alerts import Alerts, Refused, Thresholds, Undelivered, Webhook, findings
from gateway.config import AlertsConfig, ConfigError, WebhookConfig
from gateway.ledger import UsageRecord
from gateway.limits import keys
from gateway.limits.redis import RedisOwner, StoreUnavailable
from gateway.limits.tallies import Tallies
from gateway.statistics import Drift, Hour, Statistics
from gateway.wiring_watch import alerts_from
from tests.harness import RedisServer

SECRET = "whsec-of-the-tests"
NO_PAUSES = (0.0, 0.0)
ALL = Thresholds(
    cost_per_hour=100_000_000,
    error_share=0.05,
    refused_share=0.5,
    abuse_share=0.1,
    drift_share=0.1,
    absorbed=0,
    requests_min=20,
)


class Receiver:
    """A webhook's other end: keeps what it got, and answers with ``statuses``, the last one for ever; 0 hangs up."""

    def __init__(self) -> None:
        self.statuses = [204]
        self.got: list[tuple[dict[str, str], bytes]] = []
        self._connections: set[asyncio.Task[None] | None] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/alerts"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            assert head[0] == "POST /alerts HTTP/1.1"
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status:
                elsewhere = "location: /other\r\n" if status // 100 == 3 else ""
                writer.write(
                    f"HTTP/1.1 {status} X\r\n{elsewhere}connection: close\r\ncontent-length: 0\r\n\r\n".encode()
                )
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        await asyncio.gather(*(task for task in self._connections if task is not None), return_exceptions=True)
        self._server.close()
        await self._server.wait_closed()

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


def verify(secret: str, headers: dict[str, str], body: bytes, *, tolerance_s: int = 300) -> bool:
    """What the documentation tells a receiver to do."""
    parts = dict(part.split("=", 1) for part in headers["x-gateway-signature"].split(","))
    expected = hmac.new(secret.encode(), parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"]) and abs(time.time() - int(parts["t"])) <= tolerance_s


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    running = Receiver()
    await running.start()
    yield running
    await running.stop()


class Replica:
    """What one gateway has: its connection, its counters, its alerts."""

    def __init__(self, url: str, webhook: Webhook | None, name: str, thresholds: Thresholds = ALL) -> None:
        self.redis = RedisOwner(url, timeout_s=5)
        self.redis.start()
        self.tallies = Tallies(self.redis)
        self.statistics = Statistics(self.tallies)
        self.webhook = webhook
        self.alerts = Alerts(self.statistics, thresholds, self.redis, webhook, gateway=name)

    async def serve(self, *, failed: int = 0, complete: int = 0) -> None:
        for outcome, count in (("failed", failed), ("complete", complete)):
            for _ in range(count):
                self.statistics.ended("acme", UsageRecord(request_id="r", outcome=outcome))
        await self.tallies.flush()

    async def aclose(self) -> None:
        if self.webhook is not None:
            await self.webhook.aclose()
        await self.redis.aclose()


@pytest.fixture
async def replicas(redis_server: RedisServer, store: Redis, receiver: Receiver) -> AsyncIterator[list[Replica]]:
    """Two gateways with one Redis and one webhook."""
    both = [Replica(redis_server.url, Webhook(receiver.url, SECRET, NO_PAUSES), name) for name in ("gw-1", "gw-2")]
    yield both
    for replica in both:
        await replica.aclose()


# What fires.


def names(hour: Hour, thresholds: Thresholds = ALL) -> list[str]:
    return [finding.name for finding in findings(hour, thresholds)]


def test_nothing_fires_at_a_threshold_or_without_traffic() -> None:
    assert names(Hour(requests=100, failed=2, refused=50, abuse=10, cost=100_000_000)) == []
    assert names(Hour()) == []


@pytest.mark.parametrize(
    ("hour", "name", "value"),
    [
        (Hour(cost=100_500_000), "cost_usd_per_hour", 100.5),
        (Hour(absorbed=1), "absorbed_usd", 0.000001),
        (Hour(requests=150, refused=50, failed=6), "error_share", 0.06),
        (Hour(requests=100, refused=51), "refused_share", 0.51),
        (Hour(requests=100, abuse=11), "abuse_share", 0.11),
        (Hour(requests=100, counted=120, reported=100, targets={"one/x": Drift(120, 100)}), "drift_share", 0.2),
    ],
)
def test_each_figure_fires_above_its_threshold(hour: Hour, name: str, value: float) -> None:
    found = findings(hour, ALL)
    assert [(finding.name, finding.value) for finding in found] == [(name, value)]


def test_no_threshold_means_no_alert() -> None:
    hour = Hour(requests=100, failed=60, refused=60, abuse=60, cost=10**12, absorbed=10**9)
    assert names(hour, Thresholds()) == []


def test_a_share_of_a_few_requests_is_not_looked_at() -> None:
    assert names(Hour(requests=19, refused=19, abuse=19)) == []
    assert names(Hour(requests=40, refused=21, failed=19)) == ["refused_share"]
    assert names(Hour(requests=20, failed=20)) == ["error_share"]


def test_models_counted_too_high_do_not_hide_those_counted_too_low() -> None:
    targets = {"one/x": Drift(150, 100), "one/y": Drift(40, 100), "one/z": Drift(100, 100)}
    (found,) = findings(Hour(requests=100, counted=290, reported=300, targets=targets), ALL)
    assert found.name == "drift_share"
    assert found.value == pytest.approx(110 / 300, abs=1e-6)
    assert "one/y (40 counted, 100 reported)" in found.text


def test_every_alert_says_what_to_do_next() -> None:
    targets = {"one/x": Drift(1, 100)}
    hour = Hour(
        requests=100, failed=40, refused=55, abuse=60, cost=10**12, absorbed=10**9, reported=100, targets=targets
    )
    found = findings(hour, ALL)
    assert len(found) == 6
    for finding in found:
        what_is, _, what_to_do = finding.text.partition(". ")
        assert what_is and what_to_do.startswith(("See ", "Set ")), finding.text


# What a receiver gets.


async def test_a_receiver_gets_the_alert_and_can_tell_who_sent_it(replicas: list[Replica], receiver: Receiver) -> None:
    await replicas[0].serve(failed=3, complete=27)
    with capture_logs() as lines:
        await replicas[0].alerts.look()
    ((headers, body),) = receiver.got
    assert headers["content-type"] == "application/json"
    assert verify(SECRET, headers, body)
    alert = json.loads(body)
    assert set(alert) == {"alert", "text", "value", "threshold", "window", "time", "gateway"}
    assert (alert["alert"], alert["value"], alert["threshold"]) == ("error_share", 0.1, 0.05)
    assert (alert["window"], alert["gateway"]) == ("1h", "gw-1")
    assert alert["text"].startswith("10.0 % of requests (3 of 30) that ran in the last hour failed. See ")
    assert [(line["event"], line["log_level"], line["alert"]) for line in lines] == [
        ("alert", "warning", "error_share")
    ]


async def test_a_forged_or_old_alert_is_found_out(replicas: list[Replica], receiver: Receiver) -> None:
    await replicas[0].serve(failed=30)
    await replicas[0].alerts.look()
    ((headers, body),) = receiver.got
    stamp, _, mac = headers["x-gateway-signature"].partition(",")
    earlier = f"t={int(stamp.removeprefix('t=')) - 1000},{mac}"
    assert not verify(SECRET, headers, body.replace(b"error_share", b"abuse_share"))
    assert not verify("another secret", headers, body)
    assert not verify(SECRET, {"x-gateway-signature": earlier}, body)
    old = room.signature(SECRET, int(time.time()) - 1000, body)
    assert not verify(SECRET, {"x-gateway-signature": old}, body)
    assert verify(SECRET, {"x-gateway-signature": old}, body, tolerance_s=2000)


async def test_without_a_secret_there_is_no_signature(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, None)
    await webhook.send(b"{}")
    assert "x-gateway-signature" not in receiver.got[0][0]
    await webhook.aclose()


async def test_without_a_webhook_the_log_has_it(redis_server: RedisServer, store: Redis) -> None:
    replica = Replica(redis_server.url, None, "gw-1")
    await replica.serve(failed=30)
    with capture_logs() as lines:
        assert len(await replica.alerts.look()) == 1
        assert await replica.alerts.look() == []
    assert [line["event"] for line in lines] == ["alert"]
    await replica.aclose()


# When the receiver has troubles.


@pytest.mark.parametrize("statuses", [[500, 204], [503, 502, 204], [0, 200], [0, 500, 201]])
async def test_troubles_that_pass_are_waited_for(receiver: Receiver, statuses: list[int]) -> None:
    receiver.statuses = list(statuses)
    webhook = Webhook(receiver.url, SECRET, NO_PAUSES)
    await webhook.send(b"{}")
    assert len(receiver.got) == len(statuses)
    assert all(verify(SECRET, headers, body) for headers, body in receiver.got)
    await webhook.aclose()


@pytest.mark.parametrize("status", [500, 0])
async def test_three_tries_are_enough(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    webhook = Webhook(receiver.url, SECRET, NO_PAUSES)
    with pytest.raises(Undelivered):
        await webhook.send(b"{}")
    assert len(receiver.got) == 3
    await webhook.aclose()


@pytest.mark.parametrize("status", [301, 307, 400, 404, 410])
async def test_a_refusal_is_final_and_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    webhook = Webhook(receiver.url, SECRET, NO_PAUSES)
    with pytest.raises(Refused, match=f"status {status}"):
        await webhook.send(b"{}")
    assert len(receiver.got) == 1
    await webhook.aclose()


async def test_a_receiver_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)  # until the other side gives up
        writer.close()
        gone.set()

    gone = asyncio.Event()
    monkeypatch.setattr(room, "_SEND_S", 0.05)
    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    webhook = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", None)
    with pytest.raises(Undelivered, match="no answer within a minute"):
        await webhook.send(b"{}")
    await webhook.aclose()
    await gone.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("url", ["http://", "https:///path", "http://[zz]/", "http://xn--a/"])
def test_an_address_that_cannot_be_one_is_told_at_start_up(url: str, redis_server: RedisServer) -> None:
    redis = RedisOwner(redis_server.url)
    with pytest.raises(ConfigError, match=r"alerts\.webhook\.url"):
        alerts_from(AlertsConfig(webhook=WebhookConfig(url=url)), Statistics(Tallies(redis)), redis, "gw-1")


# One alert for all replicas.


async def test_two_replicas_send_one_alert(replicas: list[Replica], receiver: Receiver) -> None:
    await replicas[0].serve(failed=15)
    await replicas[1].serve(failed=15)
    sent = await asyncio.gather(*(replica.alerts.look() for replica in replicas * 3))
    assert sum(map(len, sent)) == 1
    assert [alert["value"] for alert in receiver.alerts] == [1.0]


async def test_each_kind_of_alert_is_sent(replicas: list[Replica], receiver: Receiver) -> None:
    await replicas[0].serve(failed=30)
    for _ in range(40):
        replicas[1].statistics.refused("acme", "rate_limit_exceeded", "")
    replicas[1].statistics.absorbed("acme", 5)
    await replicas[1].tallies.flush()
    for replica in replicas:
        await replica.alerts.look()
    assert sorted(alert["alert"] for alert in receiver.alerts) == ["absorbed_usd", "error_share", "refused_share"]


async def test_it_is_sent_again_after_repeat_s(replicas: list[Replica], receiver: Receiver, store: Redis) -> None:
    await replicas[0].serve(failed=30)
    await replicas[0].alerts.look()
    key = keys.alert("error_share")
    assert store.get(key) == b"gw-1"
    assert 90_000 < store.pttl(key) <= 3_600_000
    assert await replicas[1].alerts.look() == []
    store.delete(key)  # as it will be then
    await replicas[1].alerts.look()
    assert [alert["gateway"] for alert in receiver.alerts] == ["gw-1", "gw-2"]


async def test_an_alert_that_did_not_arrive_is_due_again_soon(
    replicas: list[Replica], receiver: Receiver, store: Redis
) -> None:
    receiver.statuses = [500, 500, 500, 204]
    await replicas[0].serve(failed=30)
    with capture_logs() as lines:
        assert await replicas[0].alerts.look() == []
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("alert", "warning"),
        ("alert_not_delivered", "warning"),
    ]
    key = keys.alert("error_share")
    assert 0 < store.pttl(key) <= 90_000
    store.delete(key)  # as it will be then
    assert len(await replicas[1].alerts.look()) == 1
    assert store.pttl(key) > 90_000


async def test_an_alert_that_was_refused_is_not_tried_again_soon(
    replicas: list[Replica], receiver: Receiver, store: Redis
) -> None:
    receiver.statuses = [404]
    await replicas[0].serve(failed=30)
    await replicas[0].alerts.look()
    assert store.pttl(keys.alert("error_share")) > 90_000
    assert len(receiver.got) == 1


# The task.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room, "_LOOK_S", 0.01)
    yield


@pytest.mark.usefixtures("impatient")
async def test_the_task_looks_by_itself(replicas: list[Replica], receiver: Receiver) -> None:
    tasks = [asyncio.get_running_loop().create_task(replica.alerts.run()) for replica in replicas]
    await replicas[0].serve(failed=30)
    async with asyncio.timeout(10):
        while not receiver.got:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(receiver.got) == 1


@pytest.mark.usefixtures("impatient")
async def test_the_task_survives_an_outage_of_redis(receiver: Receiver) -> None:
    with RedisServer() as server:
        replica = Replica(server.url, Webhook(receiver.url, SECRET, NO_PAUSES), "gw-1")
        task = asyncio.get_running_loop().create_task(replica.alerts.run())
        server.kill()
        with pytest.raises(StoreUnavailable):
            await replica.alerts.look()
        server.start()
        await replica.serve(failed=30)
        async with asyncio.timeout(10):
            while not receiver.got:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await replica.aclose()


async def test_the_thresholds_come_from_the_configuration(redis_server: RedisServer, receiver: Receiver) -> None:
    config = AlertsConfig.model_validate(
        {"error_share": None, "absorbed_usd": "0.5", "requests_min": 3, "webhook": {"url": receiver.url}}
    )
    replica = Replica(redis_server.url, None, "unused")
    built = alerts_from(config, replica.statistics, replica.redis, "gw-1")
    assert built._thresholds == Thresholds(
        cost_per_hour=100_000_000,
        error_share=None,
        refused_share=0.5,
        abuse_share=0.1,
        drift_share=0.1,
        absorbed=500_000,
        requests_min=3,
        repeat_s=3600,
    )
    assert built._webhook is not None
    await built._webhook.aclose()
    await replica.aclose()
