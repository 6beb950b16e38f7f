"""Changing the configuration while it runs: read again, checked and built beside the old one, then swapped at once.

Nothing that is in use is changed: a request that was let in keeps the objects it began with, and the next one finds
others. What follows from the file is made in a thread, so that streams do not wait for it; the swap itself awaits
nothing. Sections that are built into connections, or that money depends on, wait for a restart and are named.
"""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import BaseModel

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.config import Config, ConfigError, Environment, WebhookConfig
from gateway.config_file import load
from gateway.entrance import Offer
from gateway.http.admin import Admin
from gateway.http.admin_config import ConfigOut, ReloadOut
from gateway.limits.tiers import Rulebook
from gateway.providers.provider import Provider
from gateway.providers.transport import Transport
from gateway.services import Services
from gateway.surface import Surface
from gateway.telemetry import set_log_level
from gateway.watch import Watch
from gateway.wiring import (
    capacities,
    deployment_capacities,
    deployment_rules,
    gone_providers,
    router,
    validate,
)
from gateway.wiring_models import catalogue_path

_log = structlog.get_logger()

LIVE_SECTIONS = frozenset(
    (
        *("providers", "models", "catalogue", "routing", "tiers", "unpriced", "experiments"),
        *("alerts", "chat", "resume", "reload", "log"),
    )
)
FIXED_SECTIONS = frozenset(Config.model_fields) - LIVE_SECTIONS

_LOOK_S = 1.0
_HIDDEN = "***"
# How the keys of config.py that take a secret are documented, or called; a plugin's settings may be anything.
_SECRET_MARK = "${ENV_NAME}"
_SECRET_NAMES = ("secret", "settings")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@]*@|\?.*")

Adopt: TypeAlias = Callable[[], None]
Stamp: TypeAlias = tuple[int, int, int, int]


class ConfigFile:
    """The file on disk and the catalogue it names; both may be links to ones that are swapped. Its methods block."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._path = environment.config or Path("gateway.yaml")
        self._catalogue: Path | None = None
        self._read = self._looked = self._stamps()
        self._is_needed = environment.config is not None or self._read[0] is not None

    @property
    def catalogue_stamp(self) -> Stamp | None:
        """Which catalogue was there when it was read last; ``None`` where there was none."""
        return self._read[1]

    def follow(self, config: Config) -> None:
        """Look at the catalogue of this configuration from now on."""
        if (path := catalogue_path(config)) != self._catalogue:
            self._catalogue = path
            self._read = self._looked = (self._read[0], _stamp(path))

    def has_changed(self) -> bool:
        """Whether one is another than was read last, and stayed the same since the last look: nobody writes it now."""
        looked, self._looked = self._looked, self._stamps()
        return self._looked != self._read and self._looked == looked

    def read(self) -> Config:
        """What it says. Raises ``ConfigError``, also where it is gone or empty: nobody means that."""
        self._read = self._looked = self._stamps()
        stamp = self._read[0]
        if stamp is None and self._is_needed:
            raise ConfigError(f"{self._path}: there is no such file")
        if stamp is not None:
            self._is_needed = True
            if stamp[1] == 0:
                raise ConfigError(f"{self._path}:1: the file is empty; write {{}} for the defaults")
        return load(self._environment, self._check)

    def _check(self, config: Config) -> None:
        """The catalogue is looked at before it is read, also where it turns out to be what is wrong."""
        self.follow(config)
        validate(config)

    def _stamps(self) -> tuple[Stamp | None, Stamp | None]:
        return _stamp(self._path), None if self._catalogue is None else _stamp(self._catalogue)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


class Running(msgspec.Struct, frozen=True):
    """What runs and follows the configuration."""

    services: Services
    watch: Watch
    surface: Surface
    admin: Admin
    transport: Transport

    def prepare(self, before: Config, after: Config) -> Adopt:
        """Make everything new; the function puts it to use. Raises ``ConfigError``. Blocks, and may run in a thread."""
        services, watch = self.services, self.watch
        old = services.entrance.router
        gone = gone_providers(before, after)
        new = router(after, self.transport, before=(before, old))
        rulebook, shares = Rulebook(capacities(after)), deployment_capacities(after)
        adopt_watch = watch.prepare(before, after)

        def adopt() -> None:
            adopt_watch()
            new.deployments.follow(deployment_rules(after.routing), gone=gone)
            services.capacity.follow(shares)
            services.entrance.offer = Offer(new, watch.entitlements, rulebook)
            self.admin.tiers = watch.tiers
            self.surface.follow(after)
            set_log_level(after.log.level)
            retired = [provider for name, provider in old.providers.items() if name in gone]
            if retired:
                services.tasks.start(self._close(retired), "retired-providers")

        return adopt

    async def _close(self, providers: list[Provider]) -> None:
        """Once nobody can use them any more: those who could are here already."""
        await self.services.live.outlast_those_here()
        for provider in providers:
            await provider.aclose()


async def close_providers(services: Services) -> None:
    """Have every provider give up what it holds."""
    for provider in services.entrance.router.providers.values():
        await provider.aclose()


class Reloader:
    """Keeps the configuration in use, and replaces it: on a signal, when its file changes, or for the operator."""

    def __init__(
        self,
        file: ConfigFile,
        config: Config,
        prepare: Callable[[Config, Config], Adopt],
        registry: CollectorRegistry,
    ) -> None:
        self.config = config
        file.follow(config)
        self._file = file
        self._catalogue_stamp = file.catalogue_stamp
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._needs_restart: list[str] = []
        self._at = _now()
        self._reloads = Counter(
            "gateway_config_reloads", "Times the configuration was read again.", ("result",), registry=registry
        )
        self._current = Gauge(
            "gateway_config_info",
            "1 for the configuration in use; the hash is of what GET /admin/v1/config shows.",
            ("hash",),
            registry=registry,
        )
        self._tell(_digest(config))

    async def run(self, asked: asyncio.Event) -> None:
        """Look at the file every second, and read it when ``asked``; a task root."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await asked.wait()
            except TimeoutError:
                if not self.config.reload.watch or not await asyncio.to_thread(self._file.has_changed):
                    continue
            trigger = "signal" if asked.is_set() else "watch"
            asked.clear()
            try:
                await self.reload(trigger)
            except ConfigError:
                continue  # it is in the log
            except Exception:  # a plugin's trouble must not be the last that is heard of the file
                _log.exception("reload_broke", trigger=trigger)

    async def reload_for_admin(self) -> ReloadOut:
        """Read the file again; raises ``RequestError`` with every problem that it has."""
        try:
            return await self.reload("admin")
        except ConfigError as error:
            raise RequestError(str(error), code=ErrorCode.INVALID_VALUE) from None

    async def reload(self, trigger: str) -> ReloadOut:
        """Read the file and put it to use; raises ``ConfigError``, and then nothing has changed."""
        async with self._lock:
            try:
                made = await asyncio.to_thread(self._make, self.config)
            except ConfigError as error:
                self._reloads.labels("refused").inc()
                _log.warning("config_refused", trigger=trigger, problems=str(error).splitlines())
                raise
            made.adopt()
            self._catalogue_stamp = made.catalogue_stamp
            if made.changed:
                self.config, self._at = made.config, _now()
                self._tell(made.digest)
            self._needs_restart = made.needs_restart
            self._reloads.labels("changed" if made.changed else "unchanged").inc()
            report = {"changed": made.changed, "needs_restart": made.needs_restart}
            _log.info("config_reloaded", trigger=trigger, **report)
            return ReloadOut(**report, at=_now())

    def _make(self, before: Config) -> "_Made":
        """Everything that takes its time; also where nothing differs, since a file that this one names may."""
        read = self._file.read()
        after = read.model_copy(update={name: getattr(before, name) for name in FIXED_SECTIONS})
        changed, stamp = list(differences(before, after)), self._file.catalogue_stamp
        if stamp != self._catalogue_stamp and "catalogue" not in changed:
            changed.append("catalogue")
        return _Made(
            config=after,
            changed=changed,
            catalogue_stamp=stamp,
            needs_restart=list(differences(after, read)),
            adopt=self._prepare(before, after),
            digest=_digest(after),
        )

    def shown(self) -> ConfigOut:
        """The configuration in use, without its secrets."""
        return ConfigOut(config=redacted(self.config), needs_restart=self._needs_restart, at=self._at)

    def _tell(self, digest: str) -> None:
        self._current.clear()
        self._current.labels(digest).set(1)


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    """Another configuration, ready to be put to use."""

    config: Config
    changed: list[str]
    catalogue_stamp: Stamp | None
    needs_restart: list[str]
    adopt: Adopt
    digest: str


def _digest(config: Config) -> str:
    return hashlib.sha256(msgspec.json.encode(redacted(config), order="sorted")).hexdigest()[:12]


def differences(one: Config, other: Config) -> Iterator[str]:
    """The keys that differ, by section and name: ``models.fast``, ``alerts.repeat_s``, ``unpriced``."""
    for section in Config.model_fields:
        ours, theirs = getattr(one, section), getattr(other, section)
        if ours == theirs:
            continue
        mine, its = _entries(ours), _entries(theirs)
        if mine is None or its is None:
            yield section
            continue
        yield from (f"{section}.{name}" for name in {**mine, **its} if mine.get(name) != its.get(name))


def _entries(value: Any) -> dict[str, Any] | None:
    return {**value} if isinstance(value, dict) else dict(value) if isinstance(value, BaseModel) else None


def redacted(section: BaseModel) -> dict[str, Any]:
    """A section as JSON would have it, with secrets hidden, and addresses without user and query."""
    return {name: _HIDDEN if value and _is_secret(section, name) else _plain(value) for name, value in section}


def _is_secret(section: BaseModel, name: str) -> bool:
    description = type(section).model_fields[name].description or ""
    is_address = isinstance(section, WebhookConfig) and name == "url"  # with many services it is all one needs to post
    return is_address or name in _SECRET_NAMES or _SECRET_MARK in description


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return redacted(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _IN_ADDRESS.sub("", str(value)) if "://" in str(value) else str(value)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
