"""Tokens good and bad as an issuer or an attacker would make them, and verifiers to show them to."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk

from gateway.canonical.errors import AuthenticationError
from gateway.identity.jwks import SigningKey, parse_key_set
from gateway.identity.jwt import JwtSettings, JwtVerifier
from tests.identity.issuer import EC_PRIVATE, RSA_PRIVATE, Clock, ec_jwk, rsa_jwk

ISSUER = "https://issuer.example/"
SECRET = "a secret that is long enough to be one"
OTHER_RSA_PRIVATE = rsa.generate_private_key(65537, 2048)
ENTRIES = [rsa_jwk(kid="rsa"), ec_jwk("ES256", kid="ec"), ec_jwk("ES384", kid="ec3"), ec_jwk("ES512", kid="ec5")]
KIDS = {"RS256": "rsa", "RS384": "rsa", "RS512": "rsa", "ES256": "ec", "ES384": "ec3", "ES512": "ec5"}


class FixedKeys:
    """A key set without an issuer; remembers what was asked for."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self._keys = parse_key_set(json.dumps({"keys": entries}).encode())
        self.asked: list[str | None] = []

    async def find(self, kid: str | None) -> tuple[SigningKey, ...]:
        self.asked.append(kid)
        return tuple(key for key in self._keys if kid in (None, key.kid))


def b64(raw: bytes | str | dict[str, Any]) -> str:
    if isinstance(raw, dict):
        raw = json.dumps(raw)
    if isinstance(raw, str):
        raw = raw.encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(message: str, algorithm: str = "RS256", private: Any = None) -> bytes:
    if private is None:
        private = EC_PRIVATE.get(algorithm, RSA_PRIVATE)
    return bytes(jwk.construct(private, algorithm).sign(message.encode()))


def assemble(header: Any, claims: Any, algorithm: str = "RS256", private: Any = None) -> str:
    """A token of any header and claims (text for what JSON would not write), signed by what is said here."""
    message = f"{b64(header)}.{b64(claims)}"
    return f"{message}.{b64(sign(message, algorithm, private))}"


def build_claims(**claims: Any) -> dict[str, Any]:
    """Claims that are accepted at the tests' time, with changes; ``None`` leaves a claim out."""
    base = {"iss": ISSUER, "aud": "gateway", "exp": Clock()() + 600, "sub": "user-1", "account": "acme"}
    return {name: value for name, value in (base | claims).items() if value is not None}


def build_token(algorithm: str = "RS256", **claims: Any) -> str:
    return assemble({"alg": algorithm, "kid": KIDS[algorithm]}, build_claims(**claims), algorithm)


def build_settings(**changes: Any) -> JwtSettings:
    base = {"issuer": ISSUER, "audience": ("gateway", "other"), "jwks_url": "https://issuer.example/jwks"}
    return JwtSettings(**(base | changes))


def build_verifier(*entries: dict[str, Any], clock: Clock | None = None, **changes: Any) -> JwtVerifier:
    keys: Any = FixedKeys(*(entries or ENTRIES))
    return JwtVerifier(build_settings(**changes), keys, clock=clock or Clock())


def build_secret_verifier(**changes: Any) -> JwtVerifier:
    return JwtVerifier(build_settings(jwks_url=None, secret=SECRET, **changes), None, clock=Clock())


async def refuse(verifier: JwtVerifier, token: str) -> AuthenticationError:
    """The error of a token that must be refused; it holds no part of the token."""
    with pytest.raises(AuthenticationError) as caught:
        await verifier.verify(token)
    error = caught.value
    assert error.__suppress_context__
    assert not any(part in str(error) for part in token.split(".") if len(part) > 8)
    return error
