"""Who guesses keys waits: by address, for as long as the guesses were many, and whoever is known goes on."""

from typing import Any

import pytest

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode, LimitExceeded
from gateway.identity.attempts import FailedAttempts
from gateway.identity.authenticator import Authenticator
from tests.identity.issuer import Clock

ADDRESS = "192.0.2.1"


@pytest.fixture
def attempts(clock: Clock) -> FailedAttempts:
    return FailedAttempts(failures_max=3, period_s=60, addresses_max=10, clock=clock)


def fail(attempts: FailedAttempts, times: int, address: str = ADDRESS) -> None:
    for _ in range(times):
        attempts.note(address)


def test_a_few_failures_are_let_pass(attempts: FailedAttempts) -> None:
    assert attempts.retry_after_s(ADDRESS) is None
    fail(attempts, 2)
    assert attempts.retry_after_s(ADDRESS) is None


def test_after_too_many_the_address_waits_until_one_is_forgotten(attempts: FailedAttempts, clock: Clock) -> None:
    fail(attempts, 3)
    assert attempts.retry_after_s(ADDRESS) == pytest.approx(20)
    assert attempts.retry_after_s("192.0.2.2") is None
    clock.now += 19
    assert attempts.retry_after_s(ADDRESS) == pytest.approx(1)
    clock.now += 1
    assert attempts.retry_after_s(ADDRESS) is None
    fail(attempts, 1)
    assert attempts.retry_after_s(ADDRESS) == pytest.approx(20)
    clock.now += 60
    fail(attempts, 2)
    assert attempts.retry_after_s(ADDRESS) is None


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", ADDRESS, True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("/run/gateway:sock", "/run/gateway:sock", True),
    ],
)
def test_a_network_of_ipv6_is_one_address(attempts: FailedAttempts, one: str, other: str, is_one: bool) -> None:
    fail(attempts, 3, one)
    assert (attempts.retry_after_s(other) is not None) is is_one


def test_addresses_are_bounded_and_the_one_that_failed_least_lately_goes(attempts: FailedAttempts) -> None:
    fail(attempts, 3)
    for number in range(9):
        attempts.note(f"198.51.100.{number}")
    assert attempts.retry_after_s(ADDRESS) is not None
    attempts.note("203.0.113.1")
    assert attempts.retry_after_s(ADDRESS) is None


class Keys:
    """The one key there is; counts who asks."""

    def __init__(self) -> None:
        self.asked = 0

    def is_known(self, token: str) -> bool:
        return token in ("gw-good", "gw-expired")

    async def verify(self, token: str) -> Caller:
        self.asked += 1
        if token == "gw-good":
            return Caller(account="acme", subject="key:good", method="api_key")
        raise AuthenticationError("No.", code=ErrorCode.TOKEN_EXPIRED if token == "gw-expired" else None)


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


async def test_guesses_stop_being_looked_up_and_known_keys_go_on() -> None:
    keys: Any = Keys()
    door = Authenticator(keys, None)
    client = (ADDRESS, 5000)
    for _ in range(100):
        with pytest.raises(AuthenticationError):
            await door.authenticate(bearer("gw-expired"), client)
    for number in range(60):
        with pytest.raises(AuthenticationError):
            await door.authenticate(bearer(f"gw-{number}"), client)
    asked = keys.asked
    with pytest.raises(LimitExceeded) as caught:
        await door.authenticate(bearer("gw-guess"), client)
    assert caught.value.code.http_status == 429 and caught.value.retry_after_s
    assert keys.asked == asked
    assert (await door.authenticate(bearer("gw-good"), client)).account == "acme"
    for elsewhere in (("192.0.2.2", 5000), None):
        with pytest.raises(AuthenticationError):
            await door.authenticate(bearer("gw-guess"), elsewhere)
