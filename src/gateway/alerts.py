"""Alerts: what all gateways saw in the last hour, against thresholds, told in the log and to a webhook.

Every gateway looks; Redis decides which one sends, so an alert arrives once per ``repeat_s`` and not once per replica.
An alert that did not arrive is due again soon. Without Redis there are neither figures nor alerts.
"""

import asyncio
import hashlib
import hmac
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import msgspec
import structlog

from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable
from gateway.statistics import Drift, Hour, Statistics

_log = structlog.get_logger()

_LOOK_S = 15.0
_SEND_S = 60.0
_TRY_S = 10.0
_PAUSES_S = (2.0, 8.0)
# A little longer than sending takes: an alert whose gateway died or did not get through is due again after this.
_CLAIM_MS = 90_000
_MICROUSD = 1_000_000


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """An alert fires above its threshold, never where that is ``None``. Amounts in µ$, shares 0 to 1."""

    cost_per_hour: int | None = None
    error_share: float | None = None
    refused_share: float | None = None
    abuse_share: float | None = None
    drift_share: float | None = None
    absorbed: int | None = None
    requests_min: int = 20
    repeat_s: float = 3600


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook gets. Values and thresholds are shares, or USD where the name says so; ``time`` is RFC 3339."""

    alert: str
    text: str
    value: float
    threshold: float
    window: str
    time: str
    gateway: str


class Finding(msgspec.Struct, frozen=True):
    """A figure above its threshold, and what to do about it."""

    name: str
    value: float
    threshold: float
    text: str


class Undelivered(Exception):
    """The webhook does not have the alert; the message says why."""


class Refused(Undelivered):
    """The webhook answered that it does not want it; another try would not help."""


class Webhook:
    """Where alerts go. Raises ``ValueError`` for an address that cannot be one."""

    def __init__(self, url: str, secret: str | None, pauses_s: tuple[float, ...] = _PAUSES_S) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(str(error)) from None
        if not self._url.host:
            raise ValueError("it names no host")
        self._secret = secret
        self._pauses_s = pauses_s
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=_TRY_S)

    async def send(self, body: bytes) -> None:
        """Deliver within a minute and three tries. Raises ``Undelivered``."""
        try:
            async with asyncio.timeout(_SEND_S):
                for pause_s in self._pauses_s:
                    try:
                        return await self._post(body)
                    except Refused:
                        raise
                    except Undelivered:
                        await asyncio.sleep(pause_s * (0.5 + random.random()))
                return await self._post(body)
        except TimeoutError:
            raise Undelivered("no answer within a minute") from None

    async def _post(self, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        if self._secret is not None:
            headers["x-gateway-signature"] = signature(self._secret, int(time.time()), body)
        try:
            # The answer's body is not read: its status says everything, and it might be of any size.
            async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                status = response.status_code
        except httpx.HTTPError as error:
            raise Undelivered(type(error).__name__) from None
        if status >= 300:
            raise (Undelivered if status >= 500 else Refused)(f"status {status}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def signature(secret: str, unix_s: int, body: bytes) -> str:
    """The header by which a receiver knows who sent this and when: ``t=<unix>,v1=<hex hmac-sha256 of "t.body">``."""
    digest = hmac.new(secret.encode(), f"{unix_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={unix_s},v1={digest}"


class Alerts:
    """Looks, decides, tells. ``gateway`` names this process in what it sends."""

    def __init__(
        self,
        statistics: Statistics,
        thresholds: Thresholds,
        redis: Redis,
        webhook: Webhook | None,
        *,
        gateway: str,
    ) -> None:
        self._statistics = statistics
        self._thresholds = thresholds
        self._redis = redis
        self._webhook = webhook
        self._gateway = gateway
        self._is_retired = False

    def retire(self) -> None:
        """Look no more: others do."""
        self._is_retired = True

    async def run(self) -> None:
        """Look every 15 s, until retired; a task root."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                if self._is_retired:
                    return
                try:
                    await self.look()
                except StoreUnavailable:
                    continue
        finally:
            if self._webhook is not None:
                await self._webhook.aclose()

    async def look(self) -> list[Alert]:
        """Send what is due, unless another gateway does; returns what was sent. Raises ``StoreUnavailable``."""
        found = findings(await self._statistics.last_hour(), self._thresholds)
        sent = await asyncio.gather(*(self._tell(finding) for finding in found))
        return [alert for alert in sent if alert is not None]

    async def _tell(self, finding: Finding) -> Alert | None:
        """Claim an alert for as long as sending may take, and for the whole time only once it has arrived."""
        key, repeat_ms = keys.alert(finding.name), int(self._thresholds.repeat_s * 1000)
        try:
            claim = await self._redis.call("SET", key, self._gateway, "NX", "PX", min(_CLAIM_MS, repeat_ms))
            if claim is None:
                return None
            alert = self._alert(finding)
            _log.warning("alert", **msgspec.structs.asdict(alert))
            if not await self._is_delivered(alert):
                return None
            await self._redis.call("SET", key, self._gateway, "PX", repeat_ms)
        except StoreUnavailable:  # the claim ends soon, and some gateway sends it, perhaps once more
            return None
        return alert

    def _alert(self, finding: Finding) -> Alert:
        return Alert(
            alert=finding.name,
            text=finding.text,
            value=finding.value,
            threshold=finding.threshold,
            window="1h",
            time=datetime.now(tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            gateway=self._gateway,
        )

    async def _is_delivered(self, alert: Alert) -> bool:
        """Whether the webhook is done with it; a refusal is final, since nothing would be different next time."""
        if self._webhook is None:
            return True
        try:
            await self._webhook.send(msgspec.json.encode(alert))
        except Undelivered as error:
            is_final = isinstance(error, Refused)
            advice = "check alerts.webhook" if is_final else "it is sent again soon"
            _log.warning("alert_not_delivered", alert=alert.alert, reason=str(error), advice=advice)
            return is_final
        return True


def findings(hour: Hour, thresholds: Thresholds) -> list[Finding]:
    """Every figure of the hour that is above its threshold. Shares want ``requests_min`` requests to be a share of."""
    found = [*_amounts(hour, thresholds)]
    if hour.requests >= thresholds.requests_min:
        found += _shares_of_all(hour, thresholds)
    if hour.ran >= thresholds.requests_min:
        found += _shares_of_those_that_ran(hour, thresholds)
    return [
        Finding(name, round(value, 6), threshold, text)
        for name, value, threshold, text in found
        if threshold is not None and value > threshold
    ]


_Figure = tuple[str, float, float | None, str]


def _amounts(hour: Hour, thresholds: Thresholds) -> Iterator[_Figure]:
    cost, absorbed = hour.cost / _MICROUSD, hour.absorbed / _MICROUSD
    yield (
        "cost_usd_per_hour",
        cost,
        _usd(thresholds.cost_per_hour),
        f"Requests of the last hour cost ${cost:.2f}. See `gateway usage` for the accounts that spend it, and lower "
        "their tier's limits or raise alerts.cost_usd_per_hour.",
    )
    yield (
        "absorbed_usd",
        absorbed,
        _usd(thresholds.absorbed),
        f"${absorbed:.6f} of the last hour's cost was more than its accounts could cover. See the cost_absorbed lines "
        "in the log, and check the price and `hold` of the models they ran on.",
    )


def _shares_of_all(hour: Hour, thresholds: Thresholds) -> Iterator[_Figure]:
    yield (
        "refused_share",
        hour.refused / hour.requests,
        thresholds.refused_share,
        f"{_part(hour.refused, hour.requests)} of the last hour were refused. See gateway_refusals_total for the "
        "reason, and the refused lines in the log for the accounts.",
    )
    yield (
        "abuse_share",
        hour.abuse / hour.requests,
        thresholds.abuse_share,
        f"Abuse was found in {_part(hour.abuse, hour.requests)} of the last hour. See `gateway usage` for the "
        "accounts, and suspend them or tighten their tier's `flow`.",
    )


def _shares_of_those_that_ran(hour: Hour, thresholds: Thresholds) -> Iterator[_Figure]:
    yield (
        "error_share",
        hour.failed / hour.ran,
        thresholds.error_share,
        f"{_part(hour.failed, hour.ran)} that ran in the last hour failed. See gateway_provider_errors_total for the "
        "provider, and give its models another target until it is back.",
    )
    drift = sum(map(_distance, hour.targets.values()))
    if hour.reported and hour.targets:
        worst = max(hour.targets, key=lambda name: _distance(hour.targets[name]))
        there = hour.targets[worst]
        yield (
            "drift_share",
            drift / hour.reported,
            thresholds.drift_share,
            f"Our count of output tokens is off by {drift:,} of {hour.reported:,}, most of all for {worst} "
            f"({there.counted:,} counted, {there.reported:,} reported). Set that model's `tokenizer`, or `hold: full` "
            "where it reasons unseen.",
        )


def _distance(drift: Drift) -> int:
    return abs(drift.counted - drift.reported)


def _part(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % of requests ({part:,} of {whole:,})"


def _usd(microusd: int | None) -> float | None:
    return None if microusd is None else microusd / _MICROUSD
