"""Vertex AI: addresses, tokens of a service account, and both of its formats over a real connection."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from gateway.canonical.errors import ProviderError, ProviderRejected, ProviderUnavailable
from gateway.canonical.events import Event, Finish, RedactedReasoning, TextDelta
from gateway.canonical.request import Message, Request, Text
from gateway.config import Config, ConfigError, GoogleConfig, ProviderConfig
from gateway.protocols.gemini.client import GeminiClient
from gateway.providers.credentials import (
    CredentialError,
    Credentials,
    Headers,
    OutgoingRequest,
    StaticCredentials,
)
from gateway.providers.google_auth import GoogleCredentials, machine_identity, service_account_of
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Call
from gateway.providers.transport import Transport
from gateway.providers.vertex import (
    CLAUDE,
    GEMINI,
    Google,
    IncompleteGoogle,
    VertexAnthropicClient,
    build_vertex,
    host_of,
)
from gateway.wiring import router, validate
from tests.harness import GatewayProcess
from tests.providers.google_token_server import TokenServer
from tests.upstream import Plan, Upstream

ASKED = OutgoingRequest("POST", "https://example.com/x", {}, b"{}")
QUESTION = Request(format="openai_chat", model="v/m", messages=(Message("user", (Text("Hi"),)),))


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as running:
        yield running


class Clock:
    """The time, as the test wants it."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.passed_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def credentials(tokens: TokenServer, clock: Clock, tmp_path: Path) -> AsyncIterator[GoogleCredentials]:
    made = GoogleCredentials(service_account_of(tokens.key_file(tmp_path)), clock=clock)
    yield made
    tokens.gate.set()
    await made.aclose()


def bearer(number: int) -> Headers:
    return {"authorization": f"Bearer token-{number}"}


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class TestTokens:
    async def test_one_token_serves_every_call_until_it_expires(
        self, tokens: TokenServer, credentials: GoogleCredentials, clock: Clock
    ) -> None:
        assert tokens.asked == 0
        assert [await credentials.headers(ASKED) for _ in range(3)] == [bearer(1)] * 3
        clock.passed_s = 3600
        assert await credentials.headers(ASKED) == bearer(2)
        assert tokens.asked == 2

    async def test_those_who_wait_wait_for_the_same_one(
        self, tokens: TokenServer, credentials: GoogleCredentials
    ) -> None:
        tokens.gate.clear()
        waiting = [asyncio.ensure_future(credentials.headers(ASKED)) for _ in range(5)]  # noqa: TID251
        await until(lambda: tokens.asked)
        waiting.pop().cancel()  # a client that leaves takes nothing from the others
        tokens.gate.set()
        assert await asyncio.gather(*waiting) == [bearer(1)] * 4
        assert tokens.asked == 1

    async def test_it_is_renewed_before_it_expires_while_calls_go_on(
        self, tokens: TokenServer, credentials: GoogleCredentials, clock: Clock
    ) -> None:
        await credentials.headers(ASKED)
        clock.passed_s = 3400
        tokens.gate.clear()
        assert [await credentials.headers(ASKED) for _ in range(3)] == [bearer(1)] * 3
        await until(lambda: tokens.asked == 2)
        tokens.gate.set()
        await until(lambda: dict(credentials._headers) == bearer(2))
        assert await credentials.headers(ASKED) == bearer(2)
        assert tokens.asked == 2

    async def test_a_renewal_that_fails_is_no_harm_while_the_old_one_is_good(
        self, tokens: TokenServer, credentials: GoogleCredentials, clock: Clock
    ) -> None:
        await credentials.headers(ASKED)
        tokens.status = 400
        clock.passed_s = 3400
        assert await credentials.headers(ASKED) == bearer(1)
        await until(lambda: tokens.asked == 2)
        await until(lambda: credentials._renewal is not None and credentials._renewal.done())
        assert await credentials.headers(ASKED) == bearer(1)
        assert tokens.asked == 2  # the next try waits a while
        clock.passed_s = 3600
        with pytest.raises(CredentialError):
            await credentials.headers(ASKED)

    async def test_a_refusal_says_why_and_the_next_call_tries_again(
        self, tokens: TokenServer, credentials: GoogleCredentials
    ) -> None:
        tokens.status = 400
        with pytest.raises(CredentialError, match=r"RefreshError: invalid_grant: Invalid JWT Signature\."):
            await credentials.headers(ASKED)
        tokens.status = 200
        assert await credentials.headers(ASKED) == bearer(2)

    async def test_no_file_a_broken_one_and_no_server_are_told(self, tokens: TokenServer, tmp_path: Path) -> None:
        broken = tmp_path / "broken.json"
        broken.write_text('{"type": "service_account"}')
        unreachable = tokens.key_file(tmp_path, token_uri="http://127.0.0.1:1/token")
        for path in (str(tmp_path / "none.json"), str(broken), unreachable):
            failing = GoogleCredentials(service_account_of(path))
            with pytest.raises(CredentialError, match="Google gave no token"):
                await failing.headers(ASKED)
            await failing.aclose()

    async def test_without_a_file_it_is_what_googles_own_tools_find(
        self, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", tokens.key_file(tmp_path))
        found = GoogleCredentials(machine_identity)
        assert await found.headers(ASKED) == bearer(1)
        await found.aclose()

    async def test_closing_does_not_wait_for_one_that_is_under_way(
        self, tokens: TokenServer, credentials: GoogleCredentials
    ) -> None:
        tokens.gate.clear()
        waiting = asyncio.ensure_future(credentials.headers(ASKED))  # noqa: TID251
        await until(lambda: tokens.asked)
        await credentials.aclose()
        with pytest.raises(asyncio.CancelledError):
            await waiting


class TestAddresses:
    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("global", "aiplatform.googleapis.com"),
            ("us-central1", "us-central1-aiplatform.googleapis.com"),
            ("eu", "aiplatform.eu.rep.googleapis.com"),
        ],
    )
    def test_a_region_has_a_host(self, region: str, host: str) -> None:
        assert host_of(region) == host

    def test_both_kinds_are_called_in_their_project_and_region(self) -> None:
        here = Google(project="acme", region="us-east5")
        gemini = build_vertex("v", "google", here, kind=GEMINI, base_url=None, environment={})
        claude = build_vertex("v", "google", here, kind=CLAUDE, base_url=None, environment={})
        host = "https://us-east5-aiplatform.googleapis.com"
        where = "projects/acme/locations/us-east5/publishers"
        assert gemini.url == f"{host}/v1beta1/{where}/google/models/{{model}}:streamGenerateContent?alt=sse"
        assert claude.url == f"{host}/v1/{where}/anthropic/models/{{model}}:streamRawPredict"
        assert gemini.headers == claude.headers == {}

    def test_the_environment_says_what_the_configuration_leaves_out(self) -> None:
        environment = {"GOOGLE_CLOUD_PROJECT": "p"}
        endpoint = build_vertex("v", "google", Google(), kind=GEMINI, base_url=None, environment=environment)
        assert "/projects/p/locations/global/" in endpoint.url
        environment["GOOGLE_CLOUD_LOCATION"] = "europe-west4"
        endpoint = build_vertex("v", "google", Google(), kind=GEMINI, base_url="http://x/v1/", environment=environment)
        assert endpoint.url.startswith("http://x/v1/projects/p/locations/europe-west4/publishers/google/")

    def test_a_project_is_needed(self) -> None:
        with pytest.raises(IncompleteGoogle, match=r"google\.project is missing"):
            build_vertex("v", "google", Google(), kind=GEMINI, base_url=None, environment={})

    def test_a_configuration_is_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigError, match=r"providers\.vertex: google\.project is missing"):
            validate(Config(providers={"vertex": ProviderConfig()}))
        with_key = ProviderConfig(api_key="k", google=GoogleConfig(project="p"))
        with pytest.raises(ConfigError, match=r"providers\.vertex: Vertex AI takes no api_key"):
            validate(Config(providers={"vertex": with_key}))
        here = ProviderConfig(type="vertex_anthropic", google=GoogleConfig(project="p"))
        validate(Config(providers={"mine": here, "vertex": ProviderConfig(google=GoogleConfig(project="p"))}))


@asynccontextmanager
async def provider(upstream: Upstream, credentials: Credentials, kind: str) -> AsyncIterator[HttpProvider]:
    version = "v1beta1" if kind == GEMINI else "v1"
    here = Google(project="acme", region="us-east5")
    base_url = f"{upstream.base_url}/{version}"
    endpoint = build_vertex("v", "google", here, kind=kind, base_url=base_url, environment={})
    transport = Transport()
    role = GeminiClient() if kind == GEMINI else VertexAnthropicClient()
    made = HttpProvider(msgspec.structs.replace(endpoint, credentials=credentials), role, transport)
    try:
        yield made
    finally:
        await made.aclose()
        await transport.aclose()


async def said(made: HttpProvider, model: str, request: Request = QUESTION) -> list[Event]:
    batches = [batch async for batch in made.stream(Call(request, model))]
    return [event for batch in batches for frame in batch.frames for event in frame.events]


def words(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class TestCalls:
    async def test_gemini_answers_a_token_of_a_service_account(
        self, tokens: TokenServer, credentials: GoogleCredentials
    ) -> None:
        async with Upstream(api_key="token-1") as upstream, provider(upstream, credentials, GEMINI) as made:
            upstream.plan = Plan(signature="c2ln")
            events = await said(made, "gemini-3-flash")
            assert words(events) == "Hello, world!" and isinstance(events[-2], Finish)
            assert RedactedReasoning("gemini:end:c2ln") in events
            (received,) = upstream.requests
            assert received.headers["authorization"] == "Bearer token-1"
            path = "/v1beta1/projects/acme/locations/us-east5/publishers/google/models/gemini-3-flash"
            assert received.path == f"{path}:streamGenerateContent"

    async def test_claude_answers_without_a_model_in_the_body(
        self, tokens: TokenServer, credentials: GoogleCredentials
    ) -> None:
        async with Upstream(api_key="token-1") as upstream, provider(upstream, credentials, CLAUDE) as made:
            assert words(await said(made, "claude-sonnet-4@20250514")) == "Hello, world!"
            (received,) = upstream.requests
            path = "/v1/projects/acme/locations/us-east5/publishers/anthropic/models/claude-sonnet-4@20250514"
            assert received.path == f"{path}:streamRawPredict"
            body = json.loads(received.raw)
            assert "model" not in body and body["anthropic_version"] == "vertex-2023-10-16"
            assert (body["stream"], body["max_tokens"]) == (True, 8192)
            assert "x-api-key" not in received.headers

    async def test_no_token_is_no_call(self, tokens: TokenServer, credentials: GoogleCredentials) -> None:
        tokens.status = 403
        async with Upstream() as upstream, provider(upstream, credentials, GEMINI) as made:
            with pytest.raises(ProviderUnavailable) as caught:
                await said(made, "gemini-3-flash")
            assert caught.value.retryable and "invalid_grant" not in caught.value.message
            assert upstream.requests == []

    async def test_a_token_that_is_refused_is_the_gateways_fault(self) -> None:
        wrong = StaticCredentials({"authorization": "Bearer wrong"})
        for kind, model in ((GEMINI, "gemini-3-flash"), (CLAUDE, "claude-x")):
            async with Upstream(api_key="right") as upstream, provider(upstream, wrong, kind) as made:
                with pytest.raises(ProviderError) as caught:
                    await said(made, model)
                assert (caught.value.code.value, caught.value.status) == ("provider_unavailable", 401)

    async def test_claudes_errors_are_anthropics_or_googles(self) -> None:
        token = StaticCredentials({"authorization": "Bearer t"})
        google = {"error": {"code": 400, "message": "Bad: projects/acme/x.", "status": "INVALID_ARGUMENT"}}
        anthropic = {"type": "error", "error": {"type": "invalid_request_error", "message": "Too long."}}
        async with Upstream() as upstream, provider(upstream, token, CLAUDE) as made:
            for body, text in ((google, "Bad: ***."), ([google], "Bad: ***."), (anthropic, "Too long.")):
                upstream.plan = Plan(status=400, error_body=body if isinstance(body, dict) else json.dumps(body))
                with pytest.raises(ProviderRejected) as caught:
                    await said(made, "claude-x")
                assert caught.value.message == text


def test_a_gateway_knows_all_three_of_googles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "k")
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    here = ProviderConfig(google=GoogleConfig(project="p"))
    config = Config(providers={"vertex": here, "vertex_anthropic": here})

    async def build() -> dict[str, tuple[str | None, str, bool]]:
        transport = Transport()
        made = router(config, transport)
        await transport.aclose()
        asked = {"gemini": "gemini-2.5-pro", "vertex": "gemini-2.5-flash-lite", "vertex_anthropic": "claude-x"}
        found = {name: made._providers[name] for name in asked}
        return {
            name: (each.wire, each.vendor, each.holds_full(asked[name], reasons=False)) for name, each in found.items()
        }

    assert asyncio.run(build()) == {
        "gemini": ("gemini", "google", True),
        "vertex": ("gemini", "google", False),
        "vertex_anthropic": ("anthropic_messages", "google", False),
    }


async def test_a_gateway_reaches_both_with_one_service_account(tokens: TokenServer, tmp_path: Path) -> None:
    google = {"project": "acme", "region": "us-east5", "credentials_file": tokens.key_file(tmp_path)}
    price = {"input": 1, "output": 10}
    async with Upstream() as upstream:
        config = {
            "providers": {
                "vertex": {"base_url": f"{upstream.base_url}/v1beta1", "google": google, "price": price},
                "vertex_anthropic": {"base_url": f"{upstream.base_url}/v1", "google": google, "price": price},
            }
        }
        async with GatewayProcess(config) as gateway:
            key = await gateway.account()
            async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
                for model in ("vertex/gemini-3-flash", "vertex_anthropic/claude-x@1"):
                    answer = await client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": "Hi"}]
                    )
                    assert answer.choices[0].message.content == "Hello, world!"
            async with AsyncAnthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as claude:
                message = await claude.messages.create(
                    model="vertex_anthropic/claude-x@1",
                    messages=[{"role": "user", "content": "Hi"}],
                    max_tokens=9,
                    extra_headers={"anthropic-beta": "context-1m-2025-08-07"},
                )
                assert message.content[0].type == "text"
            await gateway.settled(records=3)
            assert gateway.errors() == set()
        assert {received.headers["authorization"] for received in upstream.requests} == {
            "Bearer token-1",
            "Bearer token-2",
        }
        assert upstream.requests[2].headers["anthropic-beta"] == "context-1m-2025-08-07"
    assert tokens.asked == 2
