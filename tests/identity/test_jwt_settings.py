"""Settings of the verifier that contradict each other, and the secret that is not printed."""

import json
from typing import Any

import pytest

from gateway.identity.jwt import JwtVerifier
from tests.identity.tokens import ENTRIES, SECRET, FixedKeys, build_settings


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
