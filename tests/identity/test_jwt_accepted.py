"""Tokens that are good: every way to sign one, and how long an accepted token is remembered."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from jose import jwt as jose_jwt

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode
from gateway.identity import jwt
from gateway.identity.jwks import ALGORITHMS
from gateway.identity.jwt import JwtVerifier
from tests.identity.issuer import RSA_PRIVATE, Clock, ec_jwk, rsa_jwk
from tests.identity.tokens import (
    ENTRIES,
    SECRET,
    FixedKeys,
    assemble,
    build_claims,
    build_secret_verifier,
    build_settings,
    build_token,
    build_verifier,
    refuse,
)


class TestAccepted:
    @pytest.mark.parametrize("algorithm", list(ALGORITHMS))
    async def test_every_algorithm_of_the_allow_list(self, verifier: JwtVerifier, algorithm: str) -> None:
        caller = await verifier.verify(build_token(algorithm, scope="read write", tier="pro"))
        assert caller == Caller(
            account="acme", subject="user-1", method="jwt", tier="pro", scopes=frozenset({"read", "write"})
        )

    async def test_a_token_that_python_jose_wrote(self, verifier: JwtVerifier) -> None:
        private = RSA_PRIVATE.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        token = jose_jwt.encode(build_claims(), private, algorithm="RS256", headers={"kid": "rsa"})
        assert (await verifier.verify(token)).account == "acme"

    async def test_a_token_without_kid_is_tried_with_the_keys_that_fit(self, verifier: JwtVerifier) -> None:
        assert (await verifier.verify(assemble({"alg": "ES256"}, build_claims(), "ES256"))).account == "acme"

    async def test_a_token_without_kid_is_not_tried_with_many_keys(self) -> None:
        many = [rsa_jwk(kid=str(number)) for number in range(jwt.UNNAMED_KEYS_MAX + 1)]
        await refuse(build_verifier(*many), assemble({"alg": "RS256"}, build_claims()))
        few = build_verifier(*many[1:])
        assert (await few.verify(assemble({"alg": "RS256"}, build_claims()))).account == "acme"

    async def test_a_shared_kid_is_told_apart_by_the_keys_type(self) -> None:
        verifier = build_verifier(rsa_jwk(kid="same"), ec_jwk(kid="same"))
        for algorithm in ("RS256", "ES256"):
            token = assemble({"alg": algorithm, "kid": "same"}, build_claims(), algorithm)
            assert (await verifier.verify(token)).account == "acme"

    async def test_a_secret_of_the_config(self) -> None:
        token = jose_jwt.encode(build_claims(), SECRET, algorithm="HS256", headers={"kid": "anything"})
        verifier = build_secret_verifier()
        assert (await verifier.verify(token)).account == "acme"
        await verifier.aclose()


class TestAcceptedTokens:
    async def test_an_accepted_token_is_checked_again_after_a_minute(self) -> None:
        clock, keys = Clock(), FixedKeys(*ENTRIES)
        stand_in: Any = keys
        verifier, token = JwtVerifier(build_settings(), stand_in, clock=clock), build_token()
        callers = [await verifier.verify(token) for _ in range(5)]
        assert len(keys.asked) == 1 and all(caller is callers[0] for caller in callers)
        clock.now += 59.9
        await verifier.verify(token)
        assert len(keys.asked) == 1
        clock.now += 0.1
        await verifier.verify(token)
        assert len(keys.asked) == 2

    async def test_an_accepted_token_does_not_outlive_its_expiry(self) -> None:
        clock = Clock()
        verifier, token = build_verifier(clock=clock), build_token(exp=Clock()() + 10)
        await verifier.verify(token)
        clock.now += 39
        await verifier.verify(token)
        clock.now += 1
        assert (await refuse(verifier, token)).code is ErrorCode.TOKEN_EXPIRED

    async def test_a_refused_token_is_not_remembered(self, verifier: JwtVerifier) -> None:
        for n in range(20):
            await refuse(verifier, build_token(aud=f"x{n}"))
        assert not verifier._accepted._entries

    async def test_the_least_recently_used_goes_first(
        self, verifier: JwtVerifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwt, "CACHE_ENTRIES_MAX", 3)
        tokens = [build_token(sub=f"user-{n}") for n in range(4)]
        for token in (*tokens[:3], tokens[0], tokens[3]):
            await verifier.verify(token)
        kept = [hashlib.sha256(tokens[n].encode()).digest() for n in (2, 0, 3)]
        assert list(verifier._accepted._entries) == kept
