"""Logs and metrics, with every name in one place.

One log line per request, as JSON; it holds ids, counts and times, never a prompt, an answer or a key. Metric labels
come from bounded sets: outcomes, codes, and the first few hundred targets, since some providers take any model's name.
"""

import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ProviderError
from gateway.ledger import Attempt, UsageRecord
from gateway.metering.prices import usd_string
from gateway.plain_counters import PlainCounter

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REDIS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)

_TARGETS_MAX = 500

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


def configure_logs(level: str = "info", stream: TextIO | None = None) -> None:
    """JSON lines on standard error; call once per process."""
    _request_lines.configured = stream or sys.stderr
    set_log_level(level)
    structlog.configure(
        processors=[
            _drop_below,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=True,
    )
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.handlers = [_Forward(logging.WARNING)]
    uvicorn.propagate = False


def set_log_level(level: str) -> None:
    """From now on write lines of at least this level; loggers that are in use follow too."""
    _request_lines.level = logging.getLevelNamesMapping()[level.upper()]
    _request_lines.stream = _request_lines.configured if _request_lines.level <= logging.INFO else None


def _drop_below(logger: Any, method: str, event: Any) -> Any:
    if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < _request_lines.level:
        raise structlog.DropEvent
    return event


class _Forward(logging.Handler):
    """uvicorn's warnings and errors as lines of our own."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, "uvicorn", message=record.getMessage(), exc_info=record.exc_info)


def _dumps(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class _RequestLine(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag="request"):
    """The line of a request that ran. It is written on the hot path, so it takes a way of its own past structlog."""

    request_id: str
    account: str
    subject: str
    protocol: str
    model: str
    target: str
    outcome: str
    reason: str
    input_tokens: int
    output_tokens: int
    estimated: bool
    cost_usd: str
    first_token_ms: float
    duration_ms: int
    level: str = "info"
    timestamp: datetime


class _Lines:
    """Where request lines go: nowhere until logs are configured, and where the level is above them."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self.level = logging.INFO
        self.configured: TextIO | None = None
        self.stream: TextIO | None = None

    def write(self, line: _RequestLine) -> None:
        if self.stream is not None:
            self.stream.write(self._encoder.encode(line).decode() + "\n")


_request_lines = _Lines()


class _TargetMetrics:
    """The series of one target and outcome, looked up once."""

    __slots__ = ("cost", "counted", "first_token", "input", "output", "reported", "requests")

    def __init__(self, metrics: "Telemetry", target: str, outcome: str) -> None:
        self.requests = metrics.requests.labels(target, outcome)
        self.input = metrics.tokens.labels(target, "input")
        self.output = metrics.tokens.labels(target, "output")
        self.counted = metrics.drift.labels(target, "counted")
        self.reported = metrics.drift.labels(target, "reported")
        self.cost = metrics.cost.labels(target)
        self.first_token = metrics.first_token.labels(target)


class Telemetry:
    """The process's metrics, and the log line of a request.

    ``of_all_workers`` exposes the sum where several workers are one gateway.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = PlainCounter(
            "gateway_requests", "Requests that ended, by outcome.", ("target", "outcome"), registry=self.registry
        )
        self.refusals = Counter(
            "gateway_refusals", "Requests refused before a provider was called.", ("code",), registry=self.registry
        )
        self.provider_errors = Counter(
            "gateway_provider_errors",
            "Calls to a provider that failed before its first event.",
            ("provider", "code"),
            registry=self.registry,
        )
        self.lost = Counter(
            "gateway_lost_microusd",
            "What calls that came to nothing have to be expected to cost, in µ$; no account pays for them.",
            ("provider",),
            registry=self.registry,
        )
        self.in_flight = Gauge("gateway_streams_in_flight", "Requests running now.", registry=self.registry)
        self.tokens = PlainCounter("gateway_tokens", "Tokens billed.", ("target", "direction"), registry=self.registry)
        self.drift = PlainCounter(
            "gateway_output_tokens",
            "Output tokens of whole answers by our count and by the provider's, reasoning it did not send left out.",
            ("target", "by"),
            registry=self.registry,
        )
        self.shadow_refusals = Counter(
            "gateway_shadow_refusals",
            "Requests that a limit in shadow mode would have refused.",
            ("limit",),
            registry=self.registry,
        )
        self.abuse = Counter(
            "gateway_abuse", "Requests in which abuse was found, by kind.", ("kind",), registry=self.registry
        )
        self.cost = PlainCounter(
            "gateway_cost_microusd", "Cost of requests, in µ$.", ("target",), registry=self.registry
        )
        self.absorbed = Counter(
            "gateway_absorbed_microusd", "Cost that no account could cover, in µ$.", registry=self.registry
        )
        self.first_token = Histogram(
            "gateway_time_to_first_token_seconds",
            "From the request to its first event.",
            ("target",),
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.redis = Histogram(
            "gateway_redis_round_trip_seconds", "One pipeline to Redis.", buckets=_REDIS_S, registry=self.registry
        )
        self.unsettled = Gauge(
            "gateway_settlements_pending", "Settlements that Redis has not acknowledged.", registry=self.registry
        )
        self.of_all_workers: Callable[[], Awaitable[bytes]] | None = None
        self._log = structlog.get_logger()
        self._lines = _request_lines
        self._series: dict[tuple[str, str], _TargetMetrics] = {}

    def exchange_ended(self, caller: Caller, record: UsageRecord, first_event_s: float | None) -> None:
        """Count a request that ran, and write its line. ``first_event_s`` is ``None`` where there was no event."""
        key = (record.target, record.outcome)
        series = self._series.get(key)
        if series is None:
            series = self._series_of(record.target or "none", record.outcome)
        series.requests[0] += 1
        series.input[0] += record.input_tokens
        series.output[0] += record.output_tokens
        series.cost[0] += record.cost
        for limit in record.shadowed:
            self.shadow_refusals.labels(limit).inc()
        if record.abuse:
            self.abuse.labels(record.abuse).inc()
        if first_event_s is not None:
            series.first_token.observe(first_event_s)
        self._lines.write(
            _RequestLine(
                timestamp=datetime.now(tz=UTC),
                request_id=record.request_id,
                account=caller.account,
                subject=caller.subject,
                protocol=record.protocol,
                model=record.model,
                target=record.target,
                outcome=record.outcome,
                reason=record.reason,
                input_tokens=record.input_tokens,
                output_tokens=record.output_tokens,
                estimated=record.estimated,
                cost_usd=usd_string(record.cost),
                first_token_ms=record.first_token_ms,
                duration_ms=record.duration_ms,
            )
        )

    def _series_of(self, target: str, outcome: str) -> _TargetMetrics:
        """The series of a target: its own while there are not too many, since some providers take any model's name."""
        targets = {known for known, _ in self._series}
        label = target if target in targets or len(targets) < _TARGETS_MAX else "other"
        series = _TargetMetrics(self, label, outcome)
        if label == target:
            self._series[target, outcome] = series
        return series

    def drifted(self, target: str, counted: int, reported: int) -> None:
        """Count one whole answer's output tokens by our count and by the provider's."""
        series = self._series.get((target, "complete")) or self._series_of(target, "complete")
        series.counted[0] += counted
        series.reported[0] += reported

    def attempt_failed(self, request_id: str, attempt: Attempt, cause: str | None = None) -> None:
        """Count a call to a provider that came to nothing before the client was shown anything, and write its line.

        ``cause`` is why the provider was not reached, where it was not: it stands here and is told to nobody else.
        """
        provider = attempt.target.partition("/")[0]
        self.provider_errors.labels(provider, attempt.code).inc()
        self.lost.labels(provider).inc(attempt.cost)
        known = {} if cause is None else {"cause": cause}
        self._log.warning(
            "attempt_failed",
            request_id=request_id,
            target=attempt.target,
            code=attempt.code,
            status=attempt.status,
            input_tokens=attempt.input_tokens,
            output_tokens=attempt.output_tokens,
            cost_usd=usd_string(attempt.cost),
            **known,
        )

    def stream_broke(self, request_id: str, target: str, error: ProviderError) -> None:
        """Write why an answer broke off within, where the connection did; the request's own line has the rest."""
        if error.cause:
            self._log.warning(
                "stream_broke", request_id=request_id, target=target, code=error.code.value, cause=error.cause
            )

    def refused(self, request_id: str, caller: Caller | None, code: str) -> None:
        """Count a request that was turned away, and write its line."""
        self.refusals.labels(code).inc()
        self._log.info(
            "refused", request_id=request_id, account=caller.account if caller is not None else None, code=code
        )

    def expose(self) -> bytes:
        """This process's metrics in Prometheus's text format."""
        return generate_latest(self.registry)
