"""How Bedrock is reached: addresses, keys that are found and renewed, signatures that AWS's own library accepts."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.credentials import Credentials as Keychain
from botocore.exceptions import ProfileNotFound

from gateway.canonical.errors import ProviderRejected, ProviderUnavailable
from gateway.canonical.events import Event, TextDelta
from gateway.canonical.request import Message, Request, Text
from gateway.config import ConfigError
from gateway.config_file import parse
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.providers.aws_credentials import SigV4Credentials
from gateway.providers.bedrock import Aws, IncompleteAws, build_bedrock
from gateway.providers.credentials import CredentialError, OutgoingRequest
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Call
from gateway.providers.transport import Transport
from gateway.wiring import validate
from tests.upstream import Plan
from tests.upstream.bedrock import BedrockUpstream
from tests.upstream.bedrock_rules import Keys

MODEL = "anthropic.claude-sonnet-4-20250514-v1:0"
KEYS = Keys("AKIDEXAMPLE", "secret/with+signs", None)
TEMPORARY = Keys("ASIAEXAMPLE", "another", "session/token+==")
OUTGOING = OutgoingRequest("POST", "https://bedrock-runtime.eu-west-1.amazonaws.com/model/a%3A0/converse", {}, b"{}")


def request(text: str = "Hi") -> Request:
    return Request(format="openai_chat", model="m", messages=(Message("user", (Text(text),)),))


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = Transport()
    yield transport
    await transport.aclose()


@pytest.fixture(autouse=True)
def machine_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the keys of whoever runs it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def provider(upstream: BedrockUpstream, transport: Transport, settings: Aws, **more: Any) -> HttpProvider:
    given = {"key": None, "environment": {"AWS_REGION": "eu-west-1"}, **more}
    endpoint = build_bedrock("bedrock", "aws", settings, base_url=upstream.base_url, **given)
    return HttpProvider(endpoint, BedrockConverseClient(), transport)


async def said(asked: HttpProvider, model: str = MODEL, text: str = "Hi") -> str:
    batches = [batch async for batch in asked.stream(Call(request(text), model))]
    events: list[Event] = [event for batch in batches for frame in batch.frames for event in frame.events]
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize(
    ("settings", "environment", "base"),
    [
        (Aws(region="eu-west-1"), {"AWS_REGION": "us-east-1"}, "https://bedrock-runtime.eu-west-1.amazonaws.com"),
        (Aws(), {"AWS_REGION": "us-east-1"}, "https://bedrock-runtime.us-east-1.amazonaws.com"),
        (Aws(), {"AWS_DEFAULT_REGION": "cn-north-1"}, "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_the_region_names_the_host(settings: Aws, environment: dict[str, str], base: str) -> None:
    built = build_bedrock("b", "aws", settings, base_url=None, key=None, environment=environment)
    assert built.url == f"{base}/model/{{model}}/converse-stream"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(IncompleteAws, match="region"):
        build_bedrock("b", "aws", Aws(), base_url=None, key=None, environment={})
    with pytest.raises(IncompleteAws, match="secret_access_key"):
        build_bedrock("b", "aws", Aws(region="r", access_key_id="a"), base_url=None, key=None, environment={})


def test_an_api_key_stands_for_itself_and_keys_of_ones_own_come_before_that_of_the_environment() -> None:
    found = {"AWS_REGION": "eu-west-1", "AWS_BEARER_TOKEN_BEDROCK": "found"}
    bearer = build_bedrock("b", "aws", Aws(), base_url=None, key=None, environment=found)
    assert bearer.headers == {"authorization": "Bearer found"} and bearer.credentials is None
    own = Aws(access_key_id="a", secret_access_key="s")
    signed = build_bedrock("b", "aws", own, base_url=None, key=None, environment=found)
    assert signed.headers == {} and isinstance(signed.credentials, SigV4Credentials)
    given = build_bedrock("b", "aws", Aws(), base_url=None, key="given", environment=found)
    assert given.headers == {"authorization": "Bearer given"}


@pytest.mark.parametrize("keys", [KEYS, TEMPORARY], ids=["fixed", "temporary"])
async def test_a_signed_call_is_accepted(transport: Transport, keys: Keys) -> None:
    settings = Aws(access_key_id=keys[0], secret_access_key=keys[1], session_token=keys[2])
    async with BedrockUpstream(keys=keys) as upstream:
        asked = provider(upstream, transport, settings)
        assert await said(asked) == "Hello, world!"
        assert await said(asked, "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0")
        assert await said(asked, text="ä" * 300_000)  # hashed in a thread
        assert [each.refused for each in upstream.requests] == [None] * 3


async def test_a_wrong_secret_is_refused_and_not_told(transport: Transport) -> None:
    async with BedrockUpstream(keys=KEYS) as upstream:
        asked = provider(upstream, transport, Aws(access_key_id=KEYS[0], secret_access_key="wrong"))
        with pytest.raises(ProviderUnavailable) as caught:
            await said(asked)
        assert caught.value.status == 403 and "signature" not in caught.value.message


async def test_an_api_key_is_sent_as_it_is(transport: Transport) -> None:
    async with BedrockUpstream(bearer="bedrock-api-key-1") as upstream:
        assert await said(provider(upstream, transport, Aws(), key="bedrock-api-key-1")) == "Hello, world!"
        with pytest.raises(ProviderUnavailable):
            await said(provider(upstream, transport, Aws(), key="bedrock-api-key-2"))


async def test_keys_are_found_in_a_profile(transport: Transport, tmp_path: Path) -> None:
    lines = ("[work]", f"aws_access_key_id = {TEMPORARY[0]}", f"aws_secret_access_key = {TEMPORARY[1]}")
    (tmp_path / "credentials").write_text("\n".join((*lines, f"aws_session_token = {TEMPORARY[2]}\n")))
    async with BedrockUpstream(keys=TEMPORARY) as upstream:
        assert await said(provider(upstream, transport, Aws(profile="work"))) == "Hello, world!"
        with pytest.raises(ProviderUnavailable, match="no credential"):
            await said(provider(upstream, transport, Aws(profile="absent")))


async def test_without_any_keys_the_provider_is_unavailable(transport: Transport) -> None:
    async with BedrockUpstream(keys=KEYS) as upstream:
        with pytest.raises(ProviderUnavailable, match="no credential"):
            await said(provider(upstream, transport, Aws()))
        assert upstream.requests == []


async def test_a_path_made_of_a_models_name_goes_nowhere_else(transport: Transport) -> None:
    async with BedrockUpstream(bearer="k") as upstream:
        upstream.plan = Plan(status=404)
        with pytest.raises(ProviderRejected):
            await said(provider(upstream, transport, Aws(), key="k"), "../../x?y#z")
        assert upstream.requests[0].path == "/model/..%2F..%2Fx%3Fy%23z/converse-stream"


async def test_keys_are_looked_for_in_a_thread_once_a_minute_and_by_one() -> None:
    clock, looks = Clock(), list[int]()

    def source() -> Keychain:
        looks.append(threading.get_ident())
        return Keychain(f"key{len(looks)}", "secret")

    credentials = SigV4Credentials(source, service="bedrock", region="eu-west-1", clock=clock)
    served = await asyncio.gather(*(credentials.headers(OUTGOING) for _ in range(5)))
    assert all("Credential=key1/" in headers["Authorization"] for headers in served)
    clock.now = 61.0
    await asyncio.gather(*(credentials.headers(OUTGOING) for _ in range(5)))
    assert "Credential=key2/" in (await credentials.headers(OUTGOING))["Authorization"]
    assert len(looks) == 2 and threading.get_ident() not in looks


@pytest.mark.parametrize("error", [ProfileNotFound(profile="x"), OSError("unreadable")])
async def test_what_goes_wrong_in_the_search_is_a_missing_credential(error: Exception) -> None:
    def source() -> Keychain:
        raise error

    credentials = SigV4Credentials(source, service="bedrock", region="eu-west-1")
    with pytest.raises(CredentialError, match=type(error).__name__):
        await credentials.headers(OUTGOING)


async def test_a_search_that_found_nothing_stands_for_those_who_waited_for_it() -> None:
    clock, found = Clock(), list[Keychain | None]((None, Keychain("key2", "secret")))
    credentials = SigV4Credentials(lambda: found.pop(0), service="bedrock", region="eu-west-1", clock=clock)
    answers = await asyncio.gather(*(credentials.headers(OUTGOING) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, CredentialError) for answer in answers) and len(found) == 1
    clock.now = 5.0
    assert "Credential=key2/" in (await credentials.headers(OUTGOING))["Authorization"]


async def test_keys_that_cannot_be_renewed_are_used_on() -> None:
    clock, found = Clock(), list[Keychain | None]((Keychain("key1", "secret"), None, Keychain("key3", "secret")))
    credentials = SigV4Credentials(lambda: found.pop(0), service="bedrock", region="eu-west-1", clock=clock)
    for now, key, left in ((0.0, "key1", 2), (61.0, "key1", 1), (62.0, "key1", 1), (66.0, "key3", 0)):
        clock.now = now
        assert f"Credential={key}/" in (await credentials.headers(OUTGOING))["Authorization"]
        assert len(found) == left


MISTAKES = {
    "a cloud without a region": ("providers: {bedrock: {}}", "aws.region"),
    "half a pair of keys": ("providers: {b: {type: bedrock, aws: {region: eu-west-1, access_key_id: a}}}", "together"),
    "a cloud without a resource": ("providers: {azure: {api_key: k}}", "base_url"),
    "a resource without a credential": ("providers: {a: {type: azure, base_url: 'https://r'}}", "AZURE_OPENAI_API_KEY"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_cloud_that_is_not_set_up_is_told_before_anything_starts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    text, named = MISTAKES[case]
    with pytest.raises(ConfigError, match=named):
        validate(parse(text))


def test_botocore_is_imported_only_where_it_is_used_and_missed_only_there() -> None:
    script = """
import sys
sys.modules["botocore"] = None
from gateway.config import ConfigError
from gateway.config_file import parse
from gateway.wiring import validate
validate(parse("providers: {lab: {base_url: 'http://x', price: {input: 1, output: 1}}}"))
try:
    validate(parse("providers: {bedrock: {aws: {region: eu-west-1}}}"))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "gateway[bedrock]" in done.stdout
