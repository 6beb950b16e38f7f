"""Tokens good and bad: the attack corpus, the claims, the cache, and the whole way over a real key server."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jose import jwk
from jose import jwt as jose_jwt
from test_jwks import EC_PRIVATE, RSA_PRIVATE, Clock, JwksServer, ec_jwk, rsa_jwk

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode, GatewayError, ServiceUnavailable
from gateway.identity import jwt
from gateway.identity.jwks import ALGORITHMS, KeySet, SigningKey, parse_key_set
from gateway.identity.jwt import JwtSettings, JwtVerifier

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


@pytest.fixture
def verifier() -> JwtVerifier:
    return build_verifier()


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


class TestAlgorithm:
    @pytest.mark.parametrize(
        "name", ["none", "None", "NONE", "nOnE", "none ", "", "rs256", "RS256 ", "RSA-OAEP", "dir"]
    )
    @pytest.mark.parametrize("make", [build_verifier, build_secret_verifier])
    async def test_none_and_unknown_names_in_any_spelling(self, name: str, make: Any) -> None:
        header, claims = b64({"alg": name, "kid": "rsa"}), b64(build_claims())
        for signature in ("", "AA", b64(sign(f"{header}.{claims}"))):
            await refuse(make(), f"{header}.{claims}.{signature}")

    @pytest.mark.parametrize("value", [None, 5, True, ["RS256"], {"RS256": 1}])
    async def test_a_name_that_is_no_text(self, verifier: JwtVerifier, value: Any) -> None:
        await refuse(verifier, assemble({"alg": value, "kid": "rsa"}, build_claims()))
        await refuse(verifier, assemble({"kid": "rsa"}, build_claims()))

    @pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
    async def test_hmac_with_the_public_key_as_secret(self, verifier: JwtVerifier, algorithm: str) -> None:
        public = RSA_PRIVATE.public_key()
        spki, pkcs1 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1
        pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
        forms = [public.public_bytes(encoding, form) for encoding in (pem, der) for form in (spki, pkcs1)]
        forms += [json.dumps(entry).encode() for entry in ENTRIES] + [b"", ENTRIES[0]["n"].encode()]
        forms += [form.strip() for form in forms]
        message = f"{b64({'alg': algorithm, 'kid': 'rsa'})}.{b64(build_claims())}"
        for secret in forms:
            mac = hmac.new(secret, message.encode(), f"sha{algorithm[2:]}").digest()
            await refuse(verifier, f"{message}.{b64(mac)}")

    async def test_a_symmetric_key_in_the_issuers_set(self) -> None:
        verifier = build_verifier({"kty": "oct", "kid": "oct", "k": b64(SECRET), "alg": "HS256"}, *ENTRIES)
        message = f"{b64({'alg': 'HS256', 'kid': 'oct'})}.{b64(build_claims())}"
        await refuse(verifier, f"{message}.{b64(hmac.digest(SECRET.encode(), message.encode(), 'sha256'))}")

    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, "HS384", "HS512"])
    async def test_another_algorithm_than_hs256_with_a_secret(self, algorithm: str) -> None:
        verifier = build_secret_verifier(algorithms=("RS256", "ES256", "HS256"))
        private = SECRET if algorithm.startswith("HS") else None
        await refuse(verifier, assemble({"alg": algorithm}, build_claims(), algorithm, private))

    async def test_an_algorithm_off_the_list(self) -> None:
        verifier = build_verifier(algorithms=("ES256",))
        await refuse(verifier, build_token("RS256"))
        assert (await verifier.verify(build_token("ES256"))).account == "acme"

    @pytest.mark.parametrize("said", list(ALGORITHMS))
    @pytest.mark.parametrize("signed", list(ALGORITHMS))
    async def test_a_header_that_does_not_fit_the_key(self, verifier: JwtVerifier, said: str, signed: str) -> None:
        for kid in {"rsa", "ec", "ec3", "ec5"} - ({KIDS[signed]} if said == signed else set()):
            await refuse(verifier, assemble({"alg": said, "kid": kid}, build_claims(), signed))

    async def test_an_algorithm_other_than_the_keys_own(self) -> None:
        verifier = build_verifier(rsa_jwk(kid="rsa", alg="RS512"))
        await refuse(verifier, build_token("RS256"))
        assert (await verifier.verify(build_token("RS512"))).account == "acme"

    async def test_a_key_for_encryption(self) -> None:
        await refuse(build_verifier(rsa_jwk(kid="rsa", use="enc")), build_token("RS256"))

    async def test_pss_is_not_taken_for_pkcs1(self, verifier: JwtVerifier) -> None:
        message = f"{b64({'alg': 'RS256', 'kid': 'rsa'})}.{b64(build_claims())}"
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
        await refuse(verifier, f"{message}.{b64(RSA_PRIVATE.sign(message.encode(), pss, hashes.SHA256()))}")


class TestHeader:
    @pytest.mark.parametrize(
        "kid",
        [
            "../../../../dev/null",
            "/dev/null",
            "rsa' OR '1'='1",
            "rsa\x00",
            "rsa ",
            "RSA",
            "",
            "https://attacker.example/jwks",
            "k" * 256,
        ],
    )
    async def test_a_kid_is_only_compared(self, verifier: JwtVerifier, kid: str) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": kid}, build_claims()))

    @pytest.mark.parametrize("kid", [0, 1, True, ["rsa"], {"a": 1}, "k" * 257])
    async def test_a_kid_that_is_no_short_text_asks_for_no_key(self, kid: Any) -> None:
        keys: Any = FixedKeys(*ENTRIES)
        await refuse(JwtVerifier(build_settings(), keys), assemble({"alg": "RS256", "kid": kid}, build_claims()))
        assert keys.asked == []

    async def test_keys_that_the_token_brings_are_not_used(self, verifier: JwtVerifier) -> None:
        own = dict(jwk.construct(OTHER_RSA_PRIVATE.public_key(), "RS256").to_dict(), kid="rsa")
        brought = {"jwk": own, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["AA"]}
        for name, value in brought.items():
            for kid in ("rsa", "own"):
                header = {"alg": "RS256", "kid": kid, name: value}
                await refuse(verifier, assemble(header, build_claims(), "RS256", OTHER_RSA_PRIVATE))
        header = {"alg": "RS256", "kid": "rsa"} | brought
        assert (await verifier.verify(assemble(header, build_claims()))).account == "acme"

    @pytest.mark.parametrize("crit", [["exp"], [], None, "exp", ["b64"]])
    async def test_a_critical_extension_is_refused(self, verifier: JwtVerifier, crit: Any) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa", "crit": crit, "b64": False}, build_claims()))

    @pytest.mark.parametrize(
        "header",
        [
            '{"alg":"none","alg":"RS256","kid":"rsa"}',
            '{"alg":"RS256","alg":"RS256","kid":"rsa"}',
            '{"alg":"RS256","kid":"rsa","kid":"ec"}',
            '{"alg":"RS256","kid":"rsa"} {}',
            '{"alg":"RS256","kid":"rsa"}\x00',
            '{"alg":"RS256","kid":"rsa",}',
            '{"alg":"RS256","kid":"rsa","x":NaN}',
            '{"alg":"RS256","kid":"rsa","x":Infinity}',
            '\ufeff{"alg":"RS256","kid":"rsa"}',
            '["RS256"]',
            '"RS256"',
            "null",
            "{",
            "[" * 5000,
            '{"a":' * 1000,
            '{"alg":"RS256","kid":"rsa","x":' + "9" * 5000 + "}",
        ],
        ids=range(16),
    )
    async def test_json_that_two_parsers_could_read_differently(self, verifier: JwtVerifier, header: str) -> None:
        await refuse(verifier, assemble(header, build_claims()))

    async def test_headers_in_another_encoding(self, verifier: JwtVerifier) -> None:
        text = '{"alg":"RS256","kid":"rsa"}'
        for encoded in (text.encode("utf-16"), text.encode("utf-32"), b'{"alg":"RS256","kid":"rsa","x":"\xff"}'):
            message = f"{b64(encoded)}.{b64(build_claims())}"
            await refuse(verifier, f"{message}.{b64(sign(message))}")


class TestForm:
    async def test_parts_too_few_or_too_many(self, verifier: JwtVerifier) -> None:
        token = build_token()
        header, claims, signature = token.split(".")
        jwe = ".".join([b64({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF", "kid": "rsa"}), "AA", "AA", "AA", "AA"])
        for bad in ["", ".", "..", "...", header, f"{header}.{claims}", f"{token}.", f".{token}", jwe]:
            await refuse(verifier, bad)
        for bad in [f"{token}.{signature}", f"{token}.a.b", f".{claims}.{signature}", f"{header}..{signature}"]:
            await refuse(verifier, bad)

    async def test_a_missing_or_spoilt_signature(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token().rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        spoilt = [
            b"\x00" * 256,
            b"\x01",
            raw[:-1],
            raw + b"\x00",
            b"\x00" + raw,
            bytes([raw[0] ^ 1]) + raw[1:],
            raw * 2,
        ]
        for bad in ["", *map(b64, spoilt)]:
            await refuse(verifier, f"{message}.{bad}")

    async def test_elliptic_signatures_of_zero_or_in_der(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token("ES256").rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        der = b"0\x44\x02\x20" + raw[:32] + b"\x02\x20" + raw[32:]
        for bad in (bytes(64), b"\xff" * 64, bytes(31) + b"\x01" + bytes(31) + b"\x01", der, bytes(32) + raw[32:]):
            await refuse(verifier, f"{message}.{b64(bad)}")

    async def test_other_spellings_of_the_same_bytes(self, verifier: JwtVerifier) -> None:
        token = build_token()
        header, claims, signature = token.split(".")
        last = signature[-1]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        nearby = alphabet[alphabet.index(last) ^ 1]  # 256 bytes leave spare bits in the last character
        for bad in [
            f"{token}==",
            f"{token}=",
            f"{header}=.{claims}.{signature}",
            f"{token}\n",
            f" {token}",
            f"{token} ",
            f"{header}.{claims}.{signature[:-1]}{nearby}",
            f"{header}.{claims}.{signature[:9]}\n{signature[9:]}",
            f"{header}.{claims}.{signature[:9]}!{signature[9:]}",
            f"{header}.{claims}.{signature}A",
            f"{token}~trailing",
        ]:
            await refuse(verifier, bad)
        assert (await verifier.verify(token)).account == "acme"

    async def test_standard_base64_is_refused(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token().rpartition(".")
        while "-" not in signature and "_" not in signature:
            message, _, signature = build_token(jti=signature[:8]).rpartition(".")
        await refuse(verifier, f"{message}.{signature.replace('-', '+').replace('_', '/')}")

    @pytest.mark.parametrize("character", ["é", "\u212a", "\uff21", "\ud800", "\x00", "😀"])
    async def test_characters_that_do_not_belong(self, verifier: JwtVerifier, character: str) -> None:
        token = build_token()
        for at in (0, len(token) // 2, len(token)):
            await refuse(verifier, token[:at] + character + token[at:])

    async def test_a_huge_token_is_refused_unread(self) -> None:
        keys: Any = FixedKeys(*ENTRIES)
        verifier = JwtVerifier(build_settings(), keys, clock=Clock())
        for huge in (build_token(x="x" * 8000), "a" * 10_000_000, "." * 10_000_000):
            await refuse(verifier, huge)
        assert keys.asked == []
        assert len(largest := build_token(x="x" * 5400)) > 7000
        assert (await verifier.verify(largest)).account == "acme"


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


class TestSettings:
    @pytest.mark.parametrize(
        "changes",
        [
            {"secret": SECRET},
            {"jwks_url": None},
            {"jwks_url": None, "secret": "short"},
            {"jwks_url": None, "secret": "-----BEGIN PUBLIC KEY-----\n" + "A" * 64},
            {"jwks_url": None, "secret": json.dumps(ENTRIES[0])},
            {"jwks_url": None, "secret": "ssh-rsa " + "A" * 64},
            {"issuer": ""},
            {"audience": ()},
            {"audience": ("",)},
            {"algorithms": ()},
            {"algorithms": ("HS256",)},
            {"algorithms": ("RS256", "HS256")},
            {"algorithms": ("none",)},
            {"algorithms": ("PS256",)},
            {"algorithms": ("EdDSA",)},
        ],
    )
    def test_contradictions_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="jwt"):
            build_settings(**changes)

    def test_the_secret_is_not_printed(self) -> None:
        settings = build_settings(jwks_url=None, secret=SECRET)
        assert SECRET not in repr(settings) + str(settings) + f"{settings}"

    def test_keys_go_with_a_url_only(self) -> None:
        keys: Any = FixedKeys()
        with pytest.raises(ValueError, match="key set"):
            JwtVerifier(build_settings(), None)
        with pytest.raises(ValueError, match="key set"):
            JwtVerifier(build_settings(jwks_url=None, secret=SECRET), keys)


@pytest.fixture
async def server() -> AsyncIterator[JwksServer]:
    server = JwksServer()
    await server.start()
    server.publish(*ENTRIES)
    yield server
    await server.stop()


class TestOverTheWire:
    @pytest.fixture
    async def online(self, server: JwksServer, clock: Clock) -> AsyncIterator[JwtVerifier]:
        settings = build_settings(jwks_url=server.url)
        verifier = JwtVerifier(settings, KeySet(server.url, clock=clock), clock=clock)
        yield verifier
        await verifier.aclose()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    async def test_many_tokens_at_once_need_one_fetch(self, server: JwksServer, online: JwtVerifier) -> None:
        callers = await asyncio.gather(*(online.verify(build_token(sub=f"user-{n}")) for n in range(50)))
        assert len({caller.subject for caller in callers}) == 50
        assert server.fetches == 1

    async def test_a_rotated_key_is_found_and_the_old_one_ends(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        old = build_token("RS256")
        await online.verify(old)
        server.publish(ec_jwk(kid="new"))
        clock.now += 60
        token = assemble({"alg": "ES256", "kid": "new"}, build_claims(), "ES256")
        assert (await online.verify(token)).account == "acme"
        await refuse(online, old)

    async def test_forged_kids_do_not_reach_the_issuer(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        await online.verify(build_token())
        message, signature = b64(build_claims()), b64(bytes(256))
        for n in range(300):
            await refuse(online, f"{b64({'alg': 'RS256', 'kid': f'random-{n}'})}.{message}.{signature}")
        assert server.fetches == 1

    async def test_a_refused_algorithm_asks_for_no_key(self, server: JwksServer, online: JwtVerifier) -> None:
        await refuse(online, f"{b64({'alg': 'none', 'kid': 'x'})}.{b64(build_claims())}.AA")
        assert server.fetches == 0

    async def test_a_tokens_jku_is_not_fetched(self, server: JwksServer, online: JwtVerifier) -> None:
        header = {"alg": "RS256", "kid": "evil", "jku": f"http://127.0.0.1:{server.port}/evil", "x5u": server.url}
        await refuse(online, assemble(header, build_claims(), "RS256", OTHER_RSA_PRIVATE))
        assert not any(b"evil" in request for request in server.requests)

    async def test_without_keys_a_token_is_not_called_wrong(self, server: JwksServer, online: JwtVerifier) -> None:
        server.is_down = True
        with pytest.raises(ServiceUnavailable) as caught:
            await online.verify(build_token())
        assert isinstance(caught.value, GatewayError) and caught.value.retry_after_s
        assert caught.value.code.http_status == 503

    async def test_downtime_goes_unnoticed_with_keys_at_hand(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        await online.verify(build_token())
        server.is_down = True
        clock.now += 500
        assert (await online.verify(build_token(sub="user-2"))).subject == "user-2"
