"""The issuer's public keys: fetched, checked, kept, and found again by ``kid``.

A key is taken only from a JWK dictionary, and only its public members are read; which algorithms it may verify follows
from its own type and curve, never from a token. ``KeySet`` is the one place that talks to the issuer. Its fetch is a
task of its own that callers wait for, so a client that leaves cannot spoil it for the others. Tokens are read in
``jwt.py``, which knows nothing of HTTP.
"""

import asyncio
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import httpx
import msgspec
from jose import jwk
from jose.exceptions import JOSEError
from jose.utils import base64_to_long

from gateway.canonical.errors import ErrorCode, ServiceUnavailable

ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
"""The asymmetric algorithms of RFC 7518 §3.1 that python-jose verifies (no PS*, no EdDSA), with key type and curve."""

PUBLIC_MEMBERS: Mapping[str, tuple[str, ...]] = {"RSA": ("n", "e"), "EC": ("x", "y")}
PUBLIC_MEMBER = re.compile(r"[A-Za-z0-9_-]{1,1366}")  # 1366 characters are the 8192 bits of the largest RSA modulus
RSA_BITS_MIN = 2048  # RFC 7518 §3.3
RSA_EXPONENT_BITS_MAX = 32  # a long exponent makes each verification slow

DOCUMENT_BYTES_MAX = 256 * 1024
KEYS_MAX = 100
KID_CHARS_MAX = 256
MISSING_KIDS_MAX = 1024
EMPTY_RETRY_S = 2.0


class _Verifier(Protocol):
    """What we use of a python-jose key."""

    def verify(self, msg: bytes, sig: bytes) -> bool: ...


class SigningKey:
    """One key, able to verify the algorithms that fit it and no other."""

    def __init__(self, kid: str | None, verifiers: Mapping[str, _Verifier]) -> None:
        self.kid = kid
        self._verifiers = verifiers

    def fits(self, algorithm: str) -> bool:
        """Whether this key's type, curve and own ``alg`` go with the algorithm."""
        return algorithm in self._verifiers

    def verify(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's. The algorithm must fit."""
        return bool(self._verifiers[algorithm].verify(message, signature))


class KeySetInvalid(ValueError):
    """The answer is not a key set, or is larger than we read."""


class _Document(msgspec.Struct):
    keys: list[dict[str, object]]


def parse_key_set(body: bytes) -> tuple[SigningKey, ...]:
    """The usable keys of a JWK Set (RFC 7517 §5); entries that are not for us are left out.

    A well-formed set without a usable key is the issuer's word too. Raises ``KeySetInvalid``.
    """
    if len(body) > DOCUMENT_BYTES_MAX:
        raise KeySetInvalid("the document is too large")
    try:
        entries = msgspec.json.decode(body, type=_Document).keys
    except (msgspec.MsgspecError, RecursionError) as error:
        raise KeySetInvalid("the document is not a JWK set") from error
    if len(entries) > KEYS_MAX:
        raise KeySetInvalid("the document holds too many keys")
    return tuple(key for key in map(parse_key, entries) if key is not None)


def parse_key(entry: Mapping[str, object]) -> SigningKey | None:
    """A public signing key from one JWK; ``None`` if it is another kind of key, a weak one, or not well formed."""
    kid = entry.get("kid")
    if not (kid is None or (isinstance(kid, str) and len(kid) <= KID_CHARS_MAX)):
        return None
    public = _public_members(entry)
    if public is None or not _is_for_signatures(entry):
        return None
    try:
        if public["kty"] == "RSA" and not _is_strong_rsa(public):
            return None
        verifiers = {name: jwk.construct(public, name) for name in _fitting_algorithms(entry)}
    except (JOSEError, ValueError):
        return None
    return SigningKey(kid, verifiers) if verifiers else None


def _fitting_algorithms(entry: Mapping[str, object]) -> Iterable[str]:
    own = entry.get("alg")
    for algorithm, (kty, crv) in ALGORITHMS.items():
        if kty == entry.get("kty") and crv in (None, entry.get("crv")) and own in (None, algorithm):
            yield algorithm


def _is_for_signatures(entry: Mapping[str, object]) -> bool:
    operations = entry.get("key_ops")
    if "d" in entry:  # its private half is public, so anyone may have signed with it
        return False
    return entry.get("use") in (None, "sig") and (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    )


def _public_members(entry: Mapping[str, object]) -> dict[str, str] | None:
    """Only what makes the public key, so that python-jose sees nothing else of the document."""
    kty, crv = entry.get("kty"), entry.get("crv")
    if not isinstance(kty, str) or kty not in PUBLIC_MEMBERS:
        return None
    public = {"kty": kty}
    if kty == "EC":
        if not isinstance(crv, str):
            return None
        public["crv"] = crv
    for name in PUBLIC_MEMBERS[kty]:
        value = entry.get(name)
        if not isinstance(value, str) or not PUBLIC_MEMBER.fullmatch(value):
            return None
        public[name] = value
    return public


def _is_strong_rsa(public: Mapping[str, str]) -> bool:
    modulus, exponent = base64_to_long(public["n"]), base64_to_long(public["e"])
    return bool(modulus.bit_length() >= RSA_BITS_MIN and exponent.bit_length() <= RSA_EXPONENT_BITS_MAX)


def check_jwks_url(url: str) -> None:
    """Raises ``ValueError`` unless the URL is https, or http to this very machine, without credentials in it."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError("jwks_url is not a URL") from error
    if parsed.userinfo:
        raise ValueError("jwks_url must not hold a user name or password")
    if not parsed.host or not (parsed.scheme == "https" or (parsed.scheme == "http" and _is_loopback(parsed.host))):
        raise ValueError("jwks_url must be https; http is allowed only to a loopback address")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Snapshot(msgspec.Struct, frozen=True):
    """The keys of one document, and when its fetch began."""

    fetched_at: float
    keys: tuple[SigningKey, ...]

    def select(self, kid: str | None) -> tuple[SigningKey, ...]:
        """Keys of this ``kid``; every key for a token that names none."""
        return self.keys if kid is None else tuple(key for key in self.keys if key.kid == kid)


class KeySet:
    """The keys behind one JWKS URL.

    A document serves for ``ttl_s``. A ``kid`` it lacks brings a new one early, but attempts begin at least
    ``cooldown_s`` apart (``EMPTY_RETRY_S`` while there are no keys at all), and a ``kid`` that a new document lacks is
    not looked for again before the next document. While the issuer is down the last good keys serve, up to
    ``max_age_s`` old.
    """

    timeout_s: float = 5.0
    """For a whole fetch: a trickling answer never meets a timeout between bytes."""

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float = 300,
        cooldown_s: float = 30,
        max_age_s: float = 86400,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_jwks_url(url)
        self._url = url
        self._ttl_s = ttl_s
        self._cooldown_s = cooldown_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=self.timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            # Compressed answers could grow past the bound in one step.
            headers={"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"},
        )
        self._snapshot: _Snapshot | None = None
        self._missing: dict[str, None] = {}  # an ordered set
        self._flight: asyncio.Task[None] | None = None
        self._attempted_at: float | None = None
        self._is_failing = False
        self._is_closed = False

    async def find(self, kid: str | None) -> tuple[SigningKey, ...]:
        """Keys of this ``kid``, perhaps none; every key for ``None``. Raises ``ServiceUnavailable`` without keys."""
        if self._is_document_due(kid):
            self._start_flight()
            await self._wait_for_flight(kid)
        snapshot = self._current()
        if snapshot is None:
            raise ServiceUnavailable(
                "Tokens cannot be checked now: the issuer's keys could not be fetched. Try again shortly.",
                code=ErrorCode.IDENTITY_UNAVAILABLE,
                retry_after_s=EMPTY_RETRY_S,
            )
        return snapshot.select(kid)

    async def aclose(self) -> None:
        """Ends a running fetch and closes the connection. Safe to call twice."""
        self._is_closed = True
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait({self._flight})
        await self._client.aclose()

    def _current(self) -> _Snapshot | None:
        snapshot = self._snapshot
        if snapshot is not None and self._clock() - snapshot.fetched_at < self._max_age_s:
            return snapshot
        return None

    def _is_document_due(self, kid: str | None) -> bool:
        snapshot = self._current()
        if snapshot is None or self._clock() - snapshot.fetched_at >= self._ttl_s:
            return True
        return kid is not None and kid not in self._missing and not snapshot.select(kid)

    def _start_flight(self) -> None:
        """Begins a fetch unless one is under way, or the last one began too short a time ago."""
        if self._is_closed or (self._flight is not None and not self._flight.done()):
            return
        now = self._clock()
        pause_s = self._cooldown_s if self._current() else min(self._cooldown_s, EMPTY_RETRY_S)
        if self._attempted_at is not None and now - self._attempted_at < pause_s:
            return
        self._attempted_at = now
        # This object is the task's owner: ``aclose`` ends it.
        self._flight = asyncio.get_running_loop().create_task(self._fetch(now), name="jwks-fetch")

    async def _wait_for_flight(self, kid: str | None) -> None:
        flight = self._flight
        if flight is None or flight.done():
            return
        snapshot = self._current()
        if self._is_failing and snapshot is not None and snapshot.select(kid):
            return  # the issuer is known to be down: a key we hold is not made to wait for it
        await asyncio.wait({flight})
        snapshot = self._current()
        if kid is not None and snapshot is not None and not self._is_failing and not snapshot.select(kid):
            self._remember_missing(kid)

    def _remember_missing(self, kid: str) -> None:
        self._missing[kid] = None
        if len(self._missing) > MISSING_KIDS_MAX:
            del self._missing[next(iter(self._missing))]

    async def _fetch(self, now: float) -> None:
        """Task root: leaves either a new snapshot or the old one, and never raises."""
        try:
            async with asyncio.timeout(self.timeout_s):
                keys = parse_key_set(await self._download())
        except Exception:
            self._is_failing = True
            return
        self._snapshot = _Snapshot(now, keys)
        self._missing.clear()
        self._is_failing = False

    async def _download(self) -> bytes:
        body = bytearray()
        async with self._client.stream("GET", self._url) as answer:
            if answer.status_code != 200:
                raise KeySetInvalid("the issuer did not answer 200")
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > DOCUMENT_BYTES_MAX:
                    raise KeySetInvalid("the document is too large")
        return bytes(body)
