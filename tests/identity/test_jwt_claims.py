"""What a token claims: the registered claims, and those that name account, tier, scopes and models."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import ErrorCode
from gateway.identity.jwt import JwtVerifier
from tests.identity.issuer import Clock
from tests.identity.tokens import ISSUER, OTHER_RSA_PRIVATE, assemble, build_claims, build_token, build_verifier, refuse


class TestRegisteredClaims:
    @pytest.mark.parametrize(
        "issuer", [None, "", "https://issuer.example", "https://ISSUER.example/", [ISSUER], {"a": 1}, 5, ISSUER + " "]
    )
    async def test_another_issuer(self, verifier: JwtVerifier, issuer: Any) -> None:
        await refuse(verifier, build_token(iss=issuer))

    @pytest.mark.parametrize("audience", ["gateway", "other", ["x", "gateway"], ["gateway", "other"]])
    async def test_an_audience_that_names_us(self, verifier: JwtVerifier, audience: Any) -> None:
        assert (await verifier.verify(build_token(aud=audience))).account == "acme"

    @pytest.mark.parametrize(
        "audience",
        [None, "", "x", "Gateway", "gateway other", [], ["x"], ["gateway", 5], [["gateway"]], {"gateway": 1}],
    )
    async def test_an_audience_that_does_not(self, verifier: JwtVerifier, audience: Any) -> None:
        await refuse(verifier, build_token(aud=audience))

    async def test_no_expiry(self, verifier: JwtVerifier) -> None:
        await refuse(verifier, build_token(exp=None))

    @pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
    @pytest.mark.parametrize(
        "value",
        ["null", '"1000600"', '"never"', "true", "[]", "{}", "-1", "NaN", "Infinity", "1e999", "1e300", "253402300800"],
    )
    async def test_times_that_are_none(self, verifier: JwtVerifier, name: str, value: str) -> None:
        text = json.dumps(build_claims(**{name: None}))[:-1] + f', "{name}": {value}}}'
        await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa"}, text))

    async def test_a_number_with_thousands_of_digits(self, verifier: JwtVerifier) -> None:
        for digits in ("9" * 400, "9" * 4400):
            text = json.dumps(build_claims(exp=None))[:-1] + f', "exp": {digits}}}'
            await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa"}, text))

    async def test_an_expiry_may_have_a_fraction(self, verifier: JwtVerifier) -> None:
        assert (await verifier.verify(build_token(exp=Clock()() + 0.5))).account == "acme"

    async def test_the_expiry_has_leeway_and_its_own_code(self, verifier: JwtVerifier) -> None:
        now = Clock()()
        assert (await verifier.verify(build_token(exp=now - 29))).account == "acme"
        for exp in (now - 30, now - 31, 0):
            assert (await refuse(verifier, build_token(exp=exp))).code is ErrorCode.TOKEN_EXPIRED

    async def test_a_forged_expired_token_is_not_told_that_it_expired(self, verifier: JwtVerifier) -> None:
        forged = assemble({"alg": "RS256", "kid": "rsa"}, build_claims(exp=0), "RS256", OTHER_RSA_PRIVATE)
        assert (await refuse(verifier, forged)).code is ErrorCode.INVALID_API_KEY
        assert (await refuse(verifier, build_token(exp=0, aud="x"))).code is ErrorCode.INVALID_API_KEY

    @pytest.mark.parametrize("name", ["nbf", "iat"])
    async def test_a_token_from_the_future(self, verifier: JwtVerifier, name: str) -> None:
        now = Clock()()
        assert (await verifier.verify(build_token(**{name: now + 30}))).account == "acme"
        error = await refuse(verifier, build_token(**{name: now + 31}))
        assert error.code is ErrorCode.INVALID_API_KEY and name in error.message

    @pytest.mark.parametrize("subject", [None, "", 5, ["user"], {"a": 1}, True, "a\nb", "a\x00", "s" * 256])
    async def test_a_subject_that_is_no_text(self, verifier: JwtVerifier, subject: Any) -> None:
        await refuse(verifier, build_token(sub=subject))

    async def test_half_a_surrogate_pair(self, verifier: JwtVerifier) -> None:
        for name in ("sub", "tier", "scope", "account"):
            await refuse(verifier, build_token(**{name: "\ud800"}))

    @pytest.mark.parametrize(
        "payload", ["[]", "null", '"x"', "5", "{", '{"iss":"a","iss":"b"}', "[" * 5000, '{"a":{"b":1,"b":2}}']
    )
    async def test_a_payload_that_is_no_plain_object(self, verifier: JwtVerifier, payload: str) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa"}, payload))

    async def test_a_nested_token(self, verifier: JwtVerifier) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa", "cty": "JWT"}, build_token()))


class TestOwnClaims:
    @pytest.mark.parametrize("account", ["a", "0", "acme-2_x", "a" * 64])
    async def test_an_account(self, verifier: JwtVerifier, account: str) -> None:
        assert (await verifier.verify(build_token(account=account))).account == account

    @pytest.mark.parametrize(
        "account",
        [None, "", "Acme", "-acme", "_acme", "acme\n", "acme corp", "a:b", "a}b{", "ácme", "a" * 65, 5, ["acme"], True],
    )
    async def test_a_missing_or_malformed_account(self, verifier: JwtVerifier, account: Any) -> None:
        error = await refuse(verifier, build_token(account=account))
        assert error.message == "The bearer token's claim account is missing or malformed."

    async def test_paths_into_the_claims(self) -> None:
        verifier = build_verifier(account_claim="org.id", tier_claim="org.plan.name", scopes_claim="x.y.z")
        caller = await verifier.verify(build_token(org={"id": "nested", "plan": {"name": "gold"}}, x="text"))
        assert (caller.account, caller.tier, caller.scopes) == ("nested", "gold", frozenset())
        for org in (None, "nested", {}, {"id": None}, {"id": {"id": "nested"}}, ["id"], {"id": ["nested"]}):
            assert "org.id" in (await refuse(verifier, build_token(org=org))).message

    async def test_a_claim_whose_own_name_has_dots(self) -> None:
        name = "https://issuer.example/account"
        assert (await build_verifier(account_claim=name).verify(build_token(**{name: "dotted"}))).account == "dotted"

    @pytest.mark.parametrize("scope", ["read write", ["read", "write"], " read  write ", ["write", "read", "read"]])
    async def test_scopes(self, verifier: JwtVerifier, scope: Any) -> None:
        assert (await verifier.verify(build_token(scope=scope))).scopes == {"read", "write"}

    @pytest.mark.parametrize("scope", [None, "", []])
    async def test_no_scopes(self, verifier: JwtVerifier, scope: Any) -> None:
        assert (await verifier.verify(build_token(scope=scope))).scopes == frozenset()

    @pytest.mark.parametrize("value", [5, True, {"read": True}, ["read", 5], [["read"]], "read\nwrite", ["a" * 256]])
    async def test_malformed_lists(self, value: Any) -> None:
        verifier = build_verifier(models_claim="models")
        assert "scope" in (await refuse(verifier, build_token(scope=value))).message
        assert "models" in (await refuse(verifier, build_token(models=value))).message

    async def test_models(self) -> None:
        verifier = build_verifier(models_claim="models")
        assert (await verifier.verify(build_token(models=["fast", "openai/gpt-4o"]))).models == {
            "fast",
            "openai/gpt-4o",
        }
        assert (await verifier.verify(build_token())).models == frozenset()  # the claim was asked for: none is granted
        assert (await build_verifier().verify(build_token(models=["fast"]))).models is None

    @pytest.mark.parametrize("tier", [5, "", ["pro"], True, "a\x1bb"])
    async def test_a_malformed_tier(self, verifier: JwtVerifier, tier: Any) -> None:
        assert "tier" in (await refuse(verifier, build_token(tier=tier))).message

    async def test_a_tier_that_is_not_asked_for(self) -> None:
        assert (await build_verifier(tier_claim=None).verify(build_token(tier=5))).tier is None
