"""The composition root: builds every object from the configuration, and owns start-up and shutdown."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
from fastapi import FastAPI

from gateway import __version__
from gateway.config import Config, ConfigError, Environment
from gateway.embedded_redis import EmbeddedRedis, NoRedis
from gateway.entrance import Entrance, Offer
from gateway.http.admin import Admin, admin_router
from gateway.http.admin_config import config_router
from gateway.http.admin_reports import reports_router
from gateway.http.admin_streams import streams_admin_router
from gateway.http.errors import add_error_handlers
from gateway.http.front import Front
from gateway.identity.authenticator import Authenticator
from gateway.identity.keys import ApiKeys
from gateway.ledger import Ledger, Streams
from gateway.limits.accounts import Accounts
from gateway.limits.admission import Admission
from gateway.limits.alone import Alone
from gateway.limits.checks import UnfitRedis, check_redis
from gateway.limits.connect import open_redis
from gateway.limits.deployment_capacity import DeploymentCapacity
from gateway.limits.journal import Journal
from gateway.limits.reaper import Reaper
from gateway.limits.redis import Redis, StoreUnavailable, retrying
from gateway.limits.reservation import Books, HoldPolicy
from gateway.limits.revocations import STREAM_PREFIX, Revocations, revoke
from gateway.limits.scripts import Retention, Scripts, SettleReply
from gateway.limits.settlements import Settlement, Settlements
from gateway.limits.sick import SickList
from gateway.limits.tiers import Rulebook
from gateway.live import LiveExchanges
from gateway.metering import tokens
from gateway.protocols.ai_sdk_4 import AiSdk4Server
from gateway.protocols.anthropic_messages.server import AnthropicMessagesServer
from gateway.protocols.openai_chat.server import OpenAiChatServer
from gateway.protocols.wire import ServerRole
from gateway.providers.transport import Transport
from gateway.reload import ConfigFile, Reloader, Running, close_providers
from gateway.services import Patience, Services
from gateway.surface import Parts, add_routes
from gateway.tasks import TaskOwner
from gateway.telemetry import Telemetry
from gateway.watch import Watch
from gateway.wiring import capacities, deployment_capacities, jwt_verifier, router

_log = structlog.get_logger()

DEV_ACCOUNT = "dev"
_DEV_CREDIT_MICROUSD = 10_000_000
_FLUSH_S = 5.0
_BULK_TIMEOUT_S = 2.0
_REDIS_WAIT_S = 30.0

# What an operator can do something about; the message says what, and nobody needs a traceback.
START_UP_ERRORS = (ConfigError, NoRedis, UnfitRedis)


class Gateway:
    """Everything one process runs. ``app`` is the ASGI application; it serves while ``running`` is entered."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config = config
        self.environment = environment
        self.data_dir = environment.data_dir
        self.live = LiveExchanges()
        self.telemetry = Telemetry()
        self.telemetry.in_flight.set_function(lambda: len(self.live))
        self.dev_key: str | None = None
        self.reload_asked = asyncio.Event()
        self._file = ConfigFile(environment)
        self._tasks = TaskOwner()
        self._embedded = None
        if not environment.redis_url:
            self._embedded = EmbeddedRedis(self.data_dir / "redis", fsync=environment.redis_fsync)
        self._fastapi = FastAPI(
            title="Gateway",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
        )
        self.app = Front(self._fastapi, cors_origins=config.server.cors_origins)
        anthropic = AnthropicMessagesServer()
        envelopes: dict[str, ServerRole] = {"/api/": AiSdk4Server()}
        envelopes |= {"/v1/messages": anthropic, "anthropic-version": anthropic}
        add_error_handlers(self._fastapi, envelopes, OpenAiChatServer())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything, and stop it in the reverse order. Raises one of ``START_UP_ERRORS``."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"GATEWAY_DATA_DIR: {self.data_dir} cannot be used: {error.strerror}") from None
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            yield

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start everything in the order in which it is needed; the stack stops it in the reverse one."""
        if self._embedded is not None:
            await self._embedded.start()
            stack.push_async_callback(self._embedded.stop)
            supervisor = TaskOwner()
            supervisor.start(self._embedded.supervise(), "embedded-redis")
            stack.push_async_callback(supervisor.aclose)
        redis = await self._connect(stack)
        books = await self._open_books(redis, stack)
        transport = Transport()
        stack.push_async_callback(transport.aclose)
        stack.push_async_callback(self._tasks.aclose)
        stack.push_async_callback(self._flush, books.settlements)
        accounts, api_keys = Accounts(books.scripts), ApiKeys(redis)
        watch = Watch(self.config, redis, accounts, self._load, gateway=books.scripts.gateway)
        stack.push_async_callback(watch.aclose)
        services = self._services(books, watch, transport)
        authenticator = await self._authenticator(api_keys, stack)
        admin = Admin(
            key=self._admin_key(), accounts=accounts, api_keys=api_keys, ledger=Ledger(redis), tiers=watch.tiers
        )
        self._fastapi.include_router(admin_router(admin, watch.explanation))
        self._fastapi.include_router(reports_router(admin, lambda: watch.experiments, watch.tallies))
        stop = partial(self._stop_stream, redis)
        self._fastapi.include_router(streams_admin_router(admin, Streams(redis), stop))
        bulk = self._open_bulk(stack)
        parts = Parts(services=services, authenticator=authenticator, redis=redis, bulk=bulk, stop=stop)
        surface = add_routes(self._fastapi, self.app, self.config, parts)
        stack.push_async_callback(close_providers, services)
        running = Running(services, watch, surface, admin, transport)
        reloader = Reloader(self._file, self.config, running.prepare, self.telemetry.registry)
        self._fastapi.include_router(config_router(admin, reloader))
        if self._embedded is not None:
            await self._ensure_dev_account(accounts, api_keys)
        revocations = Revocations(redis, lambda name: self._revoke(name, accounts, api_keys))
        self._tasks.start(self.live.run(), "live")
        self._tasks.start(books.settlements.run(), "settlements")
        self._tasks.start(books.reaper.run(self.config.holds.lease_s / 3), "reaper")
        self._tasks.start(revocations.run(), "revocations")
        deployments = services.entrance.router.deployments
        self._tasks.start(SickList(redis, deployments.sick, deployments.hear).run(), "sick-list")
        watch.start(self._tasks)
        self._tasks.start(reloader.run(self.reload_asked), "reload")

    @property
    def _redis_url(self) -> str:
        return self.environment.redis_url or (self._embedded.url if self._embedded else "")

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Redis:
        try:
            redis = open_redis(self._redis_url)
        except ValueError as error:
            raise ConfigError(f"GATEWAY_REDIS_URL: {error}") from None
        redis.on_round_trip = self.telemetry.redis.observe
        redis.start()
        stack.push_async_callback(redis.aclose)
        try:
            durability, is_own = self.config.redis.durability, self._embedded is not None
            await retrying(lambda: check_redis(redis, durability=durability, is_own=is_own), _REDIS_WAIT_S)
        except StoreUnavailable as error:
            raise NoRedis(
                f"Redis did not answer within {_REDIS_WAIT_S:g} s ({error}). Is GATEWAY_REDIS_URL right?"
            ) from None
        return redis

    def _open_bulk(self, stack: contextlib.AsyncExitStack) -> Redis:
        """A connection for what is large, stored responses and logs of answers: money does not wait behind it."""
        redis = open_redis(self._redis_url, timeout_s=_BULK_TIMEOUT_S)
        redis.start()
        stack.push_async_callback(redis.aclose)
        return redis

    async def _open_books(self, redis: Redis, stack: contextlib.AsyncExitStack) -> Books:
        """The journal, what it still has to settle, and where this process keeps its holds."""
        holds, retention = self.config.holds, Retention()
        try:
            name = _kept_secret(self.data_dir / "gateway-id", "", length=6)
            journal = Journal.open_free(self.data_dir / "journal")
        except OSError as error:
            raise ConfigError(f"GATEWAY_DATA_DIR: {self.data_dir} cannot hold a journal: {error.strerror}") from None
        stack.callback(journal.close)
        scripts = Scripts(redis, f"{name}.{journal.number}")
        settlements = Settlements(scripts, journal, retention)
        recovered = await settlements.recover(self.data_dir / "journal")
        if recovered:
            _log.info("journal_recovered", streams=recovered)
        self.telemetry.unsettled.set_function(lambda: settlements.pending)
        keeps_money = self.config.credits == "on"
        policy = HoldPolicy(slice_s=holds.slice_s, lease_s=holds.lease_s, keeps_money=keeps_money)
        reaper = Reaper(scripts, retention, grace_s=policy.grace_s, charge_held=holds.reap_charge == "held")
        books = Books(scripts=scripts, journal=journal, settlements=settlements, policy=policy, reaper=reaper)
        scripts.on_rollback = books.say_again
        return books

    async def _flush(self, settlements: Settlements) -> None:
        left = await settlements.flush(_FLUSH_S)
        if left:
            _log.warning("settlements_left", count=left, advice="the journal has them; the next start posts them")

    def _services(self, books: Books, watch: Watch, transport: Transport) -> Services:
        server, statistics = self.config.server, watch.statistics

        def on_posted(settlement: Settlement, reply: SettleReply) -> None:
            if reply.absorbed:
                self.telemetry.absorbed.inc(reply.absorbed)
                statistics.absorbed(settlement.stream.account, reply.absorbed)

        books.settlements.on_posted = on_posted
        offer = Offer(router(self.config, transport), watch.entitlements, Rulebook(capacities(self.config)))
        entrance = Entrance(offer, Admission(books, self._alone(watch)), tokens.counter)
        return Services(
            entrance=entrance,
            live=self.live,
            telemetry=self.telemetry,
            statistics=statistics,
            tasks=self._tasks,
            capacity=DeploymentCapacity(books.scripts, deployment_capacities(self.config)),
            observe_latency=watch.latency.observe,
            patience=Patience(commit_s=server.commit_s, heartbeat_s=server.heartbeat_s, send_s=server.send_timeout_s),
        )

    def _alone(self, watch: Watch) -> Alone | None:
        """What decides about rates while Redis is away; nothing where there is money to lose."""
        if self.config.credits == "on" or self.config.redis_away == "closed":
            return None
        return Alone(lambda: watch.gauges.replicas)

    def _load(self) -> tuple[int, int]:
        """Streams that run here, and how many this process is meant for."""
        return len(self.live), self.config.server.streams_max

    async def _stop_stream(self, redis: Redis, stream_id: str) -> None:
        """End a stream here at once, and on another gateway within half a second."""
        self.live.revoke(f"{STREAM_PREFIX}{stream_id}")
        await revoke(redis, f"{STREAM_PREFIX}{stream_id}")

    def _revoke(self, name: str, accounts: Accounts, api_keys: ApiKeys) -> None:
        accounts.forget(name)
        api_keys.forget(name)
        self.live.revoke(name)

    async def _authenticator(self, api_keys: ApiKeys, stack: contextlib.AsyncExitStack) -> Authenticator:
        if self.config.jwt is None:
            return Authenticator(api_keys, None)
        verifier = jwt_verifier(self.config.jwt)
        stack.push_async_callback(verifier.aclose)
        return Authenticator(api_keys, verifier)

    def _admin_key(self) -> str:
        return self.environment.admin_key or _kept_secret(self.data_dir / "admin-key", "gwadmin-")

    async def _ensure_dev_account(self, accounts: Accounts, api_keys: ApiKeys) -> None:
        """An account to try things with, and its key: made on the first start, shown on every one."""
        path = self.data_dir / "dev-key"
        if await accounts.create(DEV_ACCOUNT, name="Development", tier=None):
            await accounts.grant(DEV_ACCOUNT, grant_id="first-start", amount=_DEV_CREDIT_MICROUSD)
            path.unlink(missing_ok=True)
        if not path.exists():
            key = await api_keys.create(DEV_ACCOUNT, name="development")
            _write_secret(path, key.token)
        self.dev_key = path.read_text().strip()


def _kept_secret(path: Path, prefix: str, *, length: int = 32) -> str:
    """A random secret that outlives restarts, readable by its owner only; of two first starts at once, one's wins."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        _write_secret(draft, prefix + secrets.token_hex(length))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()


def _write_secret(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
