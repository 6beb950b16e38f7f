"""A signed JWT to a ``Caller``.

We read the token ourselves and leave only the check of the signature to python-jose: the algorithm comes from our
allow-list and must fit the key, and the bytes that were verified are the bytes that are read, so there is no second
parser to disagree with. Nothing in a token's header can bring a key (``jku``, ``jwk``, ``x5u``, ``x5c`` are not looked
at), only choose among the issuer's by ``kid``. Claims are judged after the signature. No message holds a part of a
token.
"""

import base64
import binascii
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeGuard

import msgspec
from jose import jwk

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode
from gateway.identity.jwks import ALGORITHMS, KID_CHARS_MAX, KeySet, SigningKey

HMAC_ALGORITHM = "HS256"
TOKEN_CHARS_MAX = 8192
SECRET_BYTES_MIN = 32  # RFC 7518 §3.2
UNNAMED_KEYS_MAX = 4
NUMERIC_DATE_MAX = 253_402_300_799  # the last second of the year 9999
TEXT_CHARS_MAX = 255
CACHE_ENTRIES_MAX = 4096
CACHE_TTL_S = 60.0

ACCOUNT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

MALFORMED = "The bearer token is not a well-formed signed JWT."
UNTRUSTED = "The bearer token is not signed with a key that is trusted here."


class JwtSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are accepted, and which claims say what.

    Either ``jwks_url`` with ``algorithms``, or ``secret`` with HS256 and nothing else. A claim's name may be a path
    ("org.id"); a claim of exactly that name goes first. With ``models_claim`` set, a token without that claim may use
    no model. Raises ``ValueError`` where the settings contradict each other.
    """

    issuer: str
    audience: tuple[str, ...]
    jwks_url: str | None = None
    secret: str | None = None
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    leeway_s: int = 30
    account_claim: str = "account"
    tier_claim: str | None = "tier"
    scopes_claim: str = "scope"
    models_claim: str | None = None
    jwks_ttl_s: float = 300
    jwks_cooldown_s: float = 30
    jwks_max_age_s: float = 86400

    def __post_init__(self) -> None:
        if (self.jwks_url is None) == (self.secret is None):
            raise ValueError("jwt needs either jwks_url or secret, and never both")
        if not self.issuer or not self.audience or not all(self.audience):
            raise ValueError("jwt needs an issuer and at least one audience")
        if self.secret is not None:
            _check_secret(self.secret)
        elif not self.algorithms or not set(self.algorithms) <= ALGORITHMS.keys():
            raise ValueError(f"jwt algorithms with jwks_url must be some of {', '.join(ALGORITHMS)}")

    def __repr__(self) -> str:
        return f"JwtSettings(issuer={self.issuer!r})"  # the generated one would print the secret


def _check_secret(secret: str) -> None:
    if len(secret.encode()) < SECRET_BYTES_MIN:
        raise ValueError(f"jwt secret must have at least {SECRET_BYTES_MIN} bytes")
    if "-----BEGIN" in secret or '"kty"' in secret or secret.startswith(("ssh-", "ecdsa-")):
        raise ValueError("jwt secret is a key pair's key, which is no secret; use jwks_url")


class JwtVerifier:
    """Turns tokens of one issuer into callers, and closes the key set it was given.

    A token that was accepted is remembered, by its SHA-256, for at most ``CACHE_TTL_S``: that is also how long it
    outlives a key that the issuer withdrew.
    """

    def __init__(self, settings: JwtSettings, keys: KeySet | None, *, clock: Callable[[], float] = time.time) -> None:
        if (keys is None) != (settings.jwks_url is None):
            raise ValueError("a key set belongs to jwks_url, and to nothing else")
        self._settings = settings
        self._keys = keys
        self._secret_key = None if settings.secret is None else _secret_key(settings.secret)
        self._algorithms = frozenset(settings.algorithms if settings.secret is None else (HMAC_ALGORITHM,))
        self._clock = clock
        self._accepted = _AcceptedTokens()

    async def verify(self, token: str) -> Caller:
        """The token's caller. Raises ``AuthenticationError``, or ``ServiceUnavailable`` if there are no keys to ask."""
        if len(token) > TOKEN_CHARS_MAX or not token.isascii():
            _refuse(MALFORMED)
        digest = hashlib.sha256(token.encode()).digest()
        caller = self._accepted.get(digest, self._clock())
        if caller is not None:
            return caller
        signed = _parse(token)
        if signed.algorithm not in self._algorithms:
            _refuse("The bearer token's signing algorithm is not accepted here.")
        await self._check_signature(signed)
        claims = _parse_object(signed.payload)
        now = self._clock()
        expires_at = self._check_registered(claims, now)
        caller = self._read_caller(claims)
        self._accepted.put(digest, caller, until=min(expires_at, now + CACHE_TTL_S))
        return caller

    async def aclose(self) -> None:
        """Closes the key set."""
        if self._keys is not None:
            await self._keys.aclose()

    async def _check_signature(self, signed: "_SignedToken") -> None:
        candidates = [key for key in await self._find_keys(signed.kid) if key.fits(signed.algorithm)]
        if len(candidates) > UNNAMED_KEYS_MAX:  # each try costs CPU, and a token should name its key
            _refuse(UNTRUSTED)
        if not any(key.verify(signed.algorithm, signed.message, signed.signature) for key in candidates):
            _refuse(UNTRUSTED)

    async def _find_keys(self, kid: str | None) -> tuple[SigningKey, ...]:
        if self._secret_key is not None:
            return (self._secret_key,)
        assert self._keys is not None
        return await self._keys.find(kid)

    def _check_registered(self, claims: Mapping[str, object], now: float) -> float:
        """Checks the claims of RFC 7519 §4.1; returns when the token ends, leeway included."""
        settings = self._settings
        if claims.get("iss") != settings.issuer:
            _refuse("The bearer token's issuer (iss) is not accepted here.")
        audience = claims.get("aud")
        names = [audience] if isinstance(audience, str) else audience
        if not _is_text_list(names) or not set(names) & set(settings.audience):
            _refuse("The bearer token's audience (aud) does not name this gateway.")
        expires_at = _numeric_date(claims, "exp")
        if expires_at is None:
            _refuse("The bearer token has no expiry (exp).")
        if now >= expires_at + settings.leeway_s:
            _refuse("The bearer token has expired; get a new one.", code=ErrorCode.TOKEN_EXPIRED)
        for name in ("nbf", "iat"):
            starts_at = _numeric_date(claims, name)
            if starts_at is not None and starts_at > now + settings.leeway_s:
                _refuse(f"The bearer token is not valid yet ({name}).")
        return expires_at + settings.leeway_s

    def _read_caller(self, claims: Mapping[str, object]) -> Caller:
        settings = self._settings
        account = _find_claim(claims, settings.account_claim)
        if not isinstance(account, str) or not ACCOUNT.fullmatch(account):
            _refuse_claim(settings.account_claim)
        return Caller(
            account=account,
            subject=_read_text(claims, "sub") or _refuse_claim("sub"),
            method="jwt",
            tier=None if settings.tier_claim is None else _read_text(claims, settings.tier_claim),
            models=None if settings.models_claim is None else _read_names(claims, settings.models_claim),
            scopes=_read_names(claims, settings.scopes_claim),
        )


class _AcceptedTokens:
    """Callers by the digest of their token: bounded, the least recently used goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    def get(self, digest: bytes, now: float) -> Caller | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        until, caller = entry
        if now >= until:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return caller

    def put(self, digest: bytes, caller: Caller, *, until: float) -> None:
        self._entries[digest] = (until, caller)
        if len(self._entries) > CACHE_ENTRIES_MAX:
            self._entries.popitem(last=False)


class _SignedToken(msgspec.Struct, frozen=True):
    """A token taken apart and not yet believed. ``message`` is what was signed."""

    algorithm: str
    kid: str | None
    message: bytes
    payload: bytes
    signature: bytes


def _parse(token: str) -> _SignedToken:
    """The compact form of RFC 7515 §3.1: exactly three parts, none empty, so neither JWE nor an unsigned token."""
    parts = token.encode().split(b".")
    if len(parts) != 3:
        _refuse(MALFORMED)
    encoded_header, payload, signature = (_decode_part(part) for part in parts)
    header = _parse_object(encoded_header)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or "crit" in header:  # we understand no extension, so any critical one is refused
        _refuse(MALFORMED)
    if not (kid is None or (isinstance(kid, str) and len(kid) <= KID_CHARS_MAX)):
        _refuse(MALFORMED)
    return _SignedToken(algorithm, kid, parts[0] + b"." + parts[1], payload, signature)


def _decode_part(part: bytes) -> bytes:
    """Strict base64url (RFC 7515 §2): no padding, no other characters, and only one spelling of the same bytes."""
    try:
        decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        _refuse(MALFORMED)
    if not decoded or base64.urlsafe_b64encode(decoded).rstrip(b"=") != part:
        _refuse(MALFORMED)
    return decoded


def _parse_object(encoded: bytes) -> dict[str, object]:
    """A JSON object without repeated names, NaN or Infinity."""
    try:
        value = json.loads(encoded.decode("utf-8"), object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        _refuse(MALFORMED)
    if not isinstance(value, dict):
        _refuse(MALFORMED)
    return value


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("repeated name")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _numeric_date(claims: Mapping[str, object], name: str) -> float | None:
    """Seconds since the epoch, perhaps with a fraction (RFC 7519 §2); ``None`` if the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NUMERIC_DATE_MAX:
        _refuse_claim(name)
    return float(value)


def _find_claim(claims: Mapping[str, object], path: str) -> object:
    if path in claims:  # names like "https://example.com/account" hold dots of their own
        return claims[path]
    value: object = claims
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _read_text(claims: Mapping[str, object], path: str) -> str | None:
    value = _find_claim(claims, path)
    if value is None:
        return None
    if not _is_text(value) or not value:
        _refuse_claim(path)
    return value


def _read_names(claims: Mapping[str, object], path: str) -> frozenset[str]:
    """A space separated string (RFC 8693 §4.2) or an array of strings; absent grants nothing."""
    value = _find_claim(claims, path)
    if value is None:
        return frozenset()
    names = value.split(" ") if isinstance(value, str) else value
    if not _is_text_list(names):
        _refuse_claim(path)
    return frozenset(name for name in names if name)


def _is_text(value: object) -> TypeGuard[str]:
    """Printable, which also excludes lone surrogates, and short enough to be put in a log line."""
    return isinstance(value, str) and len(value) <= TEXT_CHARS_MAX and value.isprintable()


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(map(_is_text, value))


def _secret_key(secret: str) -> SigningKey:
    encoded = base64.urlsafe_b64encode(secret.encode()).decode()
    return SigningKey(None, {HMAC_ALGORITHM: jwk.construct({"kty": "oct", "k": encoded}, HMAC_ALGORITHM)})


def _refuse(message: str, *, code: ErrorCode | None = None) -> NoReturn:
    # Not chained: a parser's error would carry a piece of the token into a traceback.
    raise AuthenticationError(message, code=code) from None


def _refuse_claim(path: str) -> NoReturn:
    _refuse(f"The bearer token's claim {path} is missing or malformed.")
