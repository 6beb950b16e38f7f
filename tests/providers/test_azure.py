"""Azure OpenAI over a real socket: both surfaces, keys and Entra's tokens, and what its content filter says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError, RateLimitError

from gateway.canonical.errors import ProviderUnavailable
from gateway.canonical.events import Event, Finish, MessageStart, TextDelta
from gateway.canonical.request import Message, Request, Text
from gateway.providers.azure import Azure, IncompleteAzure, build_azure
from gateway.providers.azure_chat import AzureChatClient
from gateway.providers.azure_credentials import Entra, EntraCredentials
from gateway.providers.credentials import CredentialError, OutgoingRequest
from gateway.providers.http_provider import HttpProvider
from gateway.providers.provider import Call
from gateway.providers.transport import Transport
from tests.harness import GatewayProcess
from tests.upstream import Plan, Usage
from tests.upstream.azure import TOKEN, AzureUpstream

CLASSIC = Azure(api_version="2024-10-21")
V1 = Azure()
REQUEST = Request(format="anthropic_messages", model="m", messages=(Message("user", (Text("Hi"),)),))
OUTGOING = OutgoingRequest("POST", "https://x/", {}, b"")
LOOP = pytest.mark.asyncio(loop_scope="module")
SURFACES = pytest.mark.parametrize("settings", [CLASSIC, V1], ids=["classic", "v1"])


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def azure() -> AsyncIterator[AzureUpstream]:
    async with AzureUpstream(deployments=("gpt-4o", "my o3:eu")) as running:
        yield running


@pytest.fixture
def upstream(azure: AzureUpstream) -> AzureUpstream:
    """Azure as if it were fresh."""
    azure.plan, azure.azure.tokens, azure.azure.is_filtered_late = Plan(), 0, False
    azure.requests.clear()
    return azure


@pytest_asyncio.fixture(loop_scope="module")
async def transport() -> AsyncIterator[Transport]:
    transport = Transport()
    yield transport
    await transport.aclose()


def provider(upstream: AzureUpstream, transport: Transport, settings: Azure, key: str | None = "azure-key") -> Any:
    endpoint = build_azure("azure", "azure", settings, base_url=upstream.base_url, key=key, environment={})
    return HttpProvider(endpoint, AzureChatClient(), transport)


async def events(asked: HttpProvider, model: str = "gpt-4o") -> list[Event]:
    batches = [batch async for batch in asked.stream(Call(REQUEST, model))]
    return [event for batch in batches for frame in batch.frames for event in frame.events]


@SURFACES
@LOOP
async def test_both_surfaces_answer_with_a_key(upstream: AzureUpstream, transport: Transport, settings: Azure) -> None:
    told = await events(provider(upstream, transport, settings))
    assert "".join(event.text for event in told if isinstance(event, TextDelta)) == "Hello, world!"
    assert isinstance(told[0], MessageStart) and told[0].model == "gpt-4o" and told[0].id.startswith("chatcmpl-")
    (received,) = upstream.requests
    assert received.headers["api-key"] == "azure-key" and "authorization" not in received.headers
    assert received.body["model"] == "gpt-4o"


@LOOP
async def test_a_deployments_name_is_one_segment_of_the_path(upstream: AzureUpstream, transport: Transport) -> None:
    await events(provider(upstream, transport, CLASSIC), "my o3:eu")
    assert upstream.requests[0].path == "/openai/deployments/my%20o3%3Aeu/chat/completions"
    assert upstream.requests[0].query == "api-version=2024-10-21"


@SURFACES
@LOOP
async def test_a_token_of_entras_is_fetched_once(
    upstream: AzureUpstream, transport: Transport, settings: Azure
) -> None:
    app = msgspec.structs.replace(
        settings, tenant_id="acme", client_id="gw", client_secret="s3cr3t", authority=upstream.base_url
    )
    asked = provider(upstream, transport, app, key=None)
    for _ in range(2):
        assert isinstance((await events(asked))[-2], Finish | TextDelta)
    await asked.aclose()
    token, first, second = upstream.requests
    assert token.path == "/acme/oauth2/v2.0/token" and b"cognitiveservices.azure.com" in token.raw
    assert first.headers["authorization"] == second.headers["authorization"] == f"Bearer {TOKEN.format(1)}"


@LOOP
async def test_a_token_is_renewed_while_the_old_one_still_serves(upstream: AzureUpstream) -> None:
    clock = Clock()
    entra = Entra(tenant_id="acme", client_id="gw", client_secret="s3cr3t", authority=upstream.base_url)
    credentials = EntraCredentials(entra, clock=clock)
    assert (await credentials.headers(OUTGOING))["authorization"] == f"Bearer {TOKEN.format(1)}"
    clock.now += 3599 - 200
    served = await asyncio.gather(*(credentials.headers(OUTGOING) for _ in range(5)))
    assert {headers["authorization"] for headers in served} == {f"Bearer {TOKEN.format(1)}"}
    await upstream.until(lambda each: len(each.requests) == 2 and each.requests[1].is_complete)
    while (await credentials.headers(OUTGOING))["authorization"] != f"Bearer {TOKEN.format(2)}":
        await asyncio.sleep(0)
    clock.now += 3599
    await asyncio.gather(*(credentials.headers(OUTGOING) for _ in range(5)))
    assert upstream.azure.tokens == 3
    await credentials.aclose()


@LOOP
async def test_a_platforms_token_is_read_anew_each_time(upstream: AzureUpstream, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cr3t\n")
    clock = Clock()
    entra = Entra(tenant_id="acme", client_id="gw", token_file=str(file), authority=upstream.base_url)
    credentials = EntraCredentials(entra, clock=clock)
    await credentials.headers(OUTGOING)
    assert b"jwt-bearer" in upstream.requests[0].raw and b"client_secret" not in upstream.requests[0].raw
    file.unlink()
    clock.now += 4000
    with pytest.raises(CredentialError):
        await credentials.headers(OUTGOING)


@pytest.mark.parametrize("body", ['{"error":"invalid_client","error_description":"AADSTS7000215 …"}', "<html>", ""])
@LOOP
async def test_without_a_token_the_provider_is_unavailable(
    upstream: AzureUpstream, transport: Transport, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AzureUpstream, "_accept", lambda self, received, vendor: Plan(status=401, error_body=body))
    app = Azure(tenant_id="acme", client_id="gw", client_secret="wrong", authority=upstream.base_url)
    with pytest.raises(ProviderUnavailable) as caught:
        await events(provider(upstream, transport, app, key=None))
    assert "wrong" not in caught.value.message and "AADSTS" not in caught.value.message


@pytest.mark.parametrize(
    "base_url",
    ["https://r.openai.azure.com", "https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai"],
)
def test_an_address_is_taken_in_every_spelling(base_url: str) -> None:
    built = build_azure("a", "azure", V1, base_url=base_url, key="k", environment={})
    assert built.url == "https://r.openai.azure.com/openai/v1/chat/completions"
    assert built.embeddings_url == "https://r.openai.azure.com/openai/v1/embeddings"


@pytest.mark.parametrize(
    ("settings", "base_url", "missing"),
    [
        (V1, None, "base_url"),
        (V1, "https://r", "AZURE_OPENAI_API_KEY"),
        (Azure(tenant_id="t"), "https://r", "client_id"),
    ],
)
def test_what_is_missing_is_named(settings: Azure, base_url: str | None, missing: str) -> None:
    with pytest.raises(IncompleteAzure, match=missing):
        build_azure("a", "azure", settings, base_url=base_url, key=None, environment={})


def test_the_environments_key_and_application_are_found() -> None:
    keyed = build_azure("a", "azure", V1, base_url="https://r", key=None, environment={"AZURE_OPENAI_API_KEY": "k"})
    assert keyed.headers == {"api-key": "k"} and keyed.credentials is None
    found = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_FEDERATED_TOKEN_FILE": "/run/token"}
    assert isinstance(
        build_azure("a", "azure", V1, base_url="https://r", key=None, environment=found).credentials, EntraCredentials
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(azure: AzureUpstream) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client before a gateway that reaches Azure on its classic surface, and on v1."""
    price = {"input": 1, "output": 10}
    common = {"type": "azure", "base_url": azure.base_url, "api_key": "azure-key", "price": price}
    config = {
        "providers": {
            "azure": {key: value for key, value in common.items() if key != "type"},
            "classic": {**common, "azure": {"api_version": "2024-10-21"}},
            "shut": {**common, "api_key": "wrong"},
        }
    }
    async with GatewayProcess(config) as gateway:
        key = await gateway.account(usd="1")
        async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as running:
            yield running


@LOOP
async def test_openais_client_meets_nothing_that_openai_would_not_send(
    upstream: AzureUpstream, client: AsyncOpenAI
) -> None:
    upstream.azure.is_filtered_late = True
    upstream.plan = Plan(usage=Usage(input=100, output=5, cache_read=60, reasoning=0))
    for model in ("azure/gpt-4o", "classic/gpt-4o"):
        asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"
        assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1 and chunks[0].model == "gpt-4o"
        whole = await client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == "Hello, world!" and whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.id[:9]) == (100, 5, "chatcmpl-")


@LOOP
async def test_a_filtered_answer_says_so_at_its_end(upstream: AzureUpstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=("I ",), finish_reason="content_filter")
    answer = await client.chat.completions.create(model="azure/gpt-4o", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].finish_reason == "content_filter" and answer.choices[0].message.content == "I "


@LOOP
async def test_errors_are_what_they_mean(upstream: AzureUpstream, client: AsyncOpenAI) -> None:
    async def ask(model: str = "azure/gpt-4o") -> None:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])

    filtered = {"message": "The response was filtered.", "type": None, "param": "prompt", "code": "content_filter"}
    upstream.plan = Plan(
        status=400, error_body={"error": {**filtered, "status": 400, "innererror": {"code": "ResponsibleAI"}}}
    )
    with pytest.raises(BadRequestError) as caught:
        await ask()
    assert caught.value.code == "content_filter" and "filtered" in caught.value.message
    upstream.plan = Plan(status=429, retry_after=7, error_body={"error": {"code": "429", "message": "Slow down."}})
    with pytest.raises(RateLimitError) as limited:
        await ask()
    assert limited.value.response.headers["retry-after"] == "7"
    with pytest.raises(NotFoundError) as missing:
        await ask("classic/absent")
    assert missing.value.code == "model_not_found"
    with pytest.raises(InternalServerError) as refused:
        await ask("shut/gpt-4o")
    assert refused.value.code == "provider_unavailable" and "subscription" not in refused.value.message


@LOOP
@pytest.mark.parametrize("model", ["azure/gpt-4o", "classic/gpt-4o"])
async def test_vectors_come_from_both_surfaces(upstream: AzureUpstream, client: AsyncOpenAI, model: str) -> None:
    answer = await client.embeddings.create(model=model, input="Hi", encoding_format="float")
    assert answer.data[0].embedding == [0.5, 0.25]
    surface = "v1" if model.startswith("azure/") else "deployments/gpt-4o"
    assert upstream.requests[0].path == f"/openai/{surface}/embeddings"
