"""API keys: ``gw-<id>-<secret>``.

The id finds the key, the secret (256 random bits) proves it. Only a SHA-256 of the secret is stored; since the secret
is random and not a password, a slow hash would add cost and no safety. An unknown id and a wrong secret look the same
from outside. Lookups are cached a few seconds, which is how long a revoked key may still pass.
"""

import hashlib
import hmac
import secrets
import time
from typing import Any

import msgspec

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode, ServiceUnavailable
from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable, retrying
from gateway.limits.revocations import KEY_PREFIX, revoke

PREFIX = "gw-"
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 12
_TOKEN_MAX = 128

_CACHE_S = 3.0
# A revocation is urgent: Redis is asked again for this long before it is said to have failed.
_REVOKE_S = 5.0
# With Redis away, a key that was seen this recently is still believed; running streams are not asked at all.
_STALE_S = 60.0
_CACHE_MAX = 20_000

_NO_DIGEST = hashlib.sha256(b"").hexdigest()


class NewKey(msgspec.Struct, frozen=True):
    """A key that was just made; ``token`` is shown this once."""

    id: str
    token: str


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored; times are Unix ms, 0 for never."""

    id: str
    account: str
    digest: str
    name: str = ""
    models: tuple[str, ...] | None = None
    expires_ms: int = 0
    revoked_ms: int = 0

    @property
    def caller(self) -> Caller:
        """Who this key stands for."""
        models = None if self.models is None else frozenset(self.models)
        return Caller(account=self.account, subject=f"key:{self.id}", method="api_key", models=models)


class ApiKeys:
    """Makes, checks and revokes keys."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._cache: dict[str, tuple[float, KeyRecord | None]] = {}

    async def create(
        self, account: str, *, name: str, models: tuple[str, ...] | None = None, expires_ms: int = 0
    ) -> NewKey:
        """Make a key for an account."""
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        secret = secrets.token_urlsafe(32)
        fields: dict[str, Any] = {"account": account, "digest": _digest(secret), "name": name, "expires": expires_ms}
        if models is not None:
            fields["models"] = msgspec.json.encode(models)
        flat = [item for pair in fields.items() for item in pair]
        await self._redis.call("HSET", keys.api_key(key_id), "created", int(time.time() * 1000), *flat)
        await self._redis.call("SADD", keys.account_keys(account), key_id)
        return NewKey(key_id, f"{PREFIX}{key_id}-{secret}")

    async def revoke(self, account: str, key_id: str) -> bool:
        """Refuse a key from now on; ``False`` where the account has no such key."""
        redis, now_ms = self._redis, int(time.time() * 1000)
        if not await retrying(lambda: redis.call("SISMEMBER", keys.account_keys(account), key_id), _REVOKE_S):
            return False
        await retrying(lambda: redis.call("HSET", keys.api_key(key_id), "revoked", now_ms), _REVOKE_S)
        self._cache.pop(key_id, None)
        await revoke(self._redis, f"{KEY_PREFIX}{key_id}")
        return True

    def forget(self, name: str) -> None:
        """Ask Redis again about ``key:<id>``, which was revoked somewhere."""
        self._cache.pop(name.removeprefix(KEY_PREFIX), None)

    async def list(self, account: str) -> list[KeyRecord]:
        """The account's keys, in no order."""
        ids = await self._redis.call("SMEMBERS", keys.account_keys(account))
        records = [await self._load(member.decode()) for member in ids]
        return [record for record in records if record is not None]

    def is_known(self, token: str) -> bool:
        """Whether this process has seen the key lately, with this secret. Asks nobody."""
        key_id, _, secret = token.removeprefix(PREFIX).partition("-")
        known = self._cache.get(key_id)
        return known is not None and known[1] is not None and hmac.compare_digest(_digest(secret), known[1].digest)

    async def verify(self, token: str) -> Caller:
        """The token's caller; raises ``AuthenticationError``, or ``ServiceUnavailable`` while Redis cannot say."""
        key_id, _, secret = token.removeprefix(PREFIX).partition("-")
        if len(token) > _TOKEN_MAX or len(key_id) != _ID_LENGTH or not key_id.isalnum() or not key_id.isascii():
            raise _unknown()
        record = await self._cached(key_id)
        expected = record.digest if record is not None else _NO_DIGEST
        if not hmac.compare_digest(_digest(secret), expected) or record is None:
            raise _unknown()
        if record.revoked_ms:
            raise AuthenticationError("This API key was revoked.")
        if record.expires_ms and record.expires_ms <= time.time() * 1000:
            raise AuthenticationError("This API key has expired.", code=ErrorCode.TOKEN_EXPIRED)
        return record.caller

    async def _cached(self, key_id: str) -> KeyRecord | None:
        now = time.monotonic()
        known = self._cache.get(key_id)
        if known is not None and now - known[0] < _CACHE_S:
            return known[1]
        try:
            record = await self._load(key_id)
        except StoreUnavailable:
            if known is not None and now - known[0] < _STALE_S:
                return known[1]
            raise ServiceUnavailable(
                "The API key cannot be checked at the moment. Try again shortly.",
                code=ErrorCode.IDENTITY_UNAVAILABLE,
                retry_after_s=1,
            ) from None
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[key_id] = (now, record)
        return record

    async def _load(self, key_id: str) -> KeyRecord | None:
        fields = await self._redis.call(
            "HMGET", keys.api_key(key_id), "account", "digest", "name", "models", "expires", "revoked"
        )
        account, digest, name, models, expires, revoked = fields
        if account is None:
            return None
        return KeyRecord(
            id=key_id,
            account=account.decode(),
            digest=digest.decode(),
            name=(name or b"").decode(),
            models=None if models is None else tuple(msgspec.json.decode(models)),
            expires_ms=int(expires or 0),
            revoked_ms=int(revoked or 0),
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _unknown() -> AuthenticationError:
    return AuthenticationError("The API key is not known here.")
