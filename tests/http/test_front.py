"""What every answer has in common: its id, what browsers need, an envelope, and nothing that is none of the reader's
business."""

import json
from collections.abc import Mapping

import httpx
import pytest

from tests.harness import ADMIN_KEY, GatewayProcess
from tests.http.conftest import CHAT, DATA_STREAM, Stage, assert_refused, body_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://app.example"
EXPOSED = ("x-request-id", "retry-after", "x-vercel-ai-data-stream", "x-ratelimit-remaining-requests")


async def preflight(client: httpx.AsyncClient, path: str, method: str = "POST") -> httpx.Response:
    """What a browser asks before it sends the real request: never with a credential."""
    headers = {
        "origin": ORIGIN,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-own",
    }
    request = client.build_request("OPTIONS", path, headers=headers)
    request.headers.pop("authorization", None)
    return await client.send(request)


# Other origins.


@pytest.mark.parametrize("target", [CHAT, DATA_STREAM, "/v1/models", "/v1/nowhere"])
async def test_a_preflight_is_answered_before_authentication(stage: Stage, target: str) -> None:
    answer = await preflight(stage.client, target)
    assert answer.status_code == 204 and answer.content == b""
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    assert {"authorization", "content-type", "x-own"} <= set(allowed.split(","))
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["x-request-id"]


async def test_another_origin_may_read_what_a_stream_says_in_its_header(stage: Stage, path: str) -> None:
    answer = await stage.post(path, body_of(path, stream=True) if path == CHAT else body_of(path), {"origin": ORIGIN})
    assert answer.status_code == 200
    assert_readable(answer.headers)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413, 415])
async def test_another_origin_may_read_every_refusal(stage: Stage, path: str, status: int) -> None:
    headers = {"origin": ORIGIN, "content-type": "application/json"}
    match status:
        case 401:
            answer = await stage.post(path, b"{}", headers | {"authorization": "Bearer x"})
        case 404:
            answer = await stage.post(path + "/x", b"{}", headers)
        case 405:
            answer = await stage.client.put(path, content=b"{}", headers=headers)
        case 413:
            answer = await stage.post(path, b" " * 2_000_000, headers)
        case 415:
            answer = await stage.post(path, b"{}", headers | {"content-type": "text/plain"})
        case _:
            answer = await stage.post(path, b"{", headers)
    assert_refused(answer, status, path)
    assert_readable(answer.headers)


def assert_readable(headers: Mapping[str, str]) -> None:
    assert headers["access-control-allow-origin"] == "*"
    exposed = headers["access-control-expose-headers"].split(", ")
    assert set(EXPOSED) <= set(exposed)


async def test_only_configured_origins_are_told_that_they_may() -> None:
    async with GatewayProcess({"server": {"cors_origins": [ORIGIN]}}) as gateway:
        async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
            assert (await preflight(client, CHAT)).headers["access-control-allow-origin"] == ORIGIN
            own = await client.post(CHAT, headers={"origin": ORIGIN})
            assert own.headers["access-control-allow-origin"] == ORIGIN
            assert own.headers["vary"] == "origin"
            other = await client.post(CHAT, headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers


# Request ids.


@pytest.mark.parametrize("target", [CHAT, DATA_STREAM, "/v1/models", "/healthz", "/nowhere", "/admin/v1/accounts"])
async def test_a_request_id_comes_back(stage: Stage, target: str) -> None:
    method = "POST" if target in (CHAT, DATA_STREAM) else "GET"
    answer = await stage.client.request(method, target, headers={"x-request-id": "my.request:1_2-3"})
    assert answer.headers.get_list("x-request-id") == ["my.request:1_2-3"]


async def test_a_request_id_is_the_one_of_the_answer_the_log_and_the_record(stage: Stage) -> None:
    answer = await stage.post(CHAT, body_of(CHAT), {"x-request-id": "traced-1"})
    assert answer.json()["id"] == "chatcmpl-traced-1" or answer.headers["x-request-id"] == "traced-1"
    await stage.gateway.settled()
    assert any(row["record"]["request_id"] == "traced-1" for row in await stage.gateway.usage())
    assert "traced-1" in stage.log()


@pytest.mark.parametrize("malformed", [b"", b"a b", b"x" * 65, b"a\tb", b"\xff", b"<script>", b"a,b", b"a;b"])
async def test_a_malformed_request_id_is_replaced(stage: Stage, path: str, malformed: bytes) -> None:
    answer = await stage.client.post(path, content=b"", headers=[(b"x-request-id", malformed)])
    given = answer.headers["x-request-id"]
    assert given.encode() != malformed and given.isalnum() and len(given) == 32


# Routes.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "target",
    ["/v1", "/v1/", "/v1/nowhere", "/v1/chat", "/api/", "/api/ai", "/api/ai/nowhere", "/", "/admin/v1/x", "/%00"],
)
async def test_an_unknown_route_is_not_found_in_an_envelope(stage: Stage, method: str, target: str) -> None:
    answer = await stage.client.request(method, target)
    assert_refused(answer, 404, target, code="not_found")


@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", "/v1/models"), ("DELETE", "/v1/models/demo/fast"), ("POST", "/healthz"), ("PUT", "/admin/v1/accounts")],
)
async def test_a_known_route_names_its_methods(stage: Stage, method: str, target: str) -> None:
    answer = await stage.client.request(method, target)
    assert_refused(answer, 405, target, code="method_not_allowed")
    assert answer.headers["allow"]


async def test_a_long_path_is_not_repeated_in_full(stage: Stage) -> None:
    answer = await stage.client.get("/v1/" + "a" * 10_000)
    assert_refused(answer, 404)


async def test_head_never_opens_a_stream(stage: Stage, path: str) -> None:
    body = json.dumps(body_of(path)).encode()
    head = f"HEAD {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: {len(body)}"
    before = await stage.gateway.metric("gateway_requests_total")
    answer = await stage.raw(head, body)
    assert answer.status == 405
    assert answer.headers["x-request-id"] and answer.headers["allow"] == "POST"
    assert await stage.gateway.metric("gateway_requests_total") == before


# Models.


async def test_models_are_listed_for_whoever_may_use_them(stage: Stage) -> None:
    listed = (await stage.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert "demo/fast" in [model["id"] for model in listed["data"]]
    one = (await stage.client.get("/v1/models/demo/fast")).json()
    assert one in listed["data"]
    assert_refused(await stage.client.get("/v1/models", headers={"authorization": ""}), 401)


@pytest.mark.parametrize("model", ["gpt-99", "demo%00", "%FF", "x" * 10_000, "a%0d%0ab", "%F0%9F%92%A9", "demo/"])
async def test_a_model_that_is_not_there_is_not_found(stage: Stage, model: str) -> None:
    answer = await stage.client.get(f"/v1/models/{model}")
    assert_refused(answer, 404)


# Operations.


async def test_health_and_readiness_need_no_credential(stage: Stage) -> None:
    async with httpx.AsyncClient(base_url=stage.gateway.base_url, trust_env=False) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "# TYPE gateway_requests_total counter" in metrics.text


CANARIES = {
    name: f"canary-{name}-4711" for name in ("prompt", "system", "tool", "user", "model", "key", "field", "path")
}


async def test_prompts_and_keys_are_in_no_log_metric_or_error(stage: Stage) -> None:
    answers = []
    for path in (CHAT, DATA_STREAM):
        messages = [
            {"role": "system", "content": CANARIES["system"]},
            {"role": "user", "content": CANARIES["prompt"]},
        ]
        tool = {"name": CANARIES["tool"], "description": CANARIES["tool"]}
        tools = [{"type": "function", "function": tool}] if path == CHAT else [tool]
        good = body_of(path, messages=messages, tools=tools, user=CANARIES["user"])
        assert (await stage.post(path, good)).status_code == 200
        bad = [
            good | {"temperature": CANARIES["prompt"]},
            good | {"messages": [{"role": CANARIES["prompt"], "content": CANARIES["prompt"]}]},
            good | {"messages": [{"role": "user", "content": {CANARIES["field"]: CANARIES["prompt"]}}]},
            good | {"tool_choice": CANARIES["tool"], "topP": CANARIES["tool"]},
            good | {"model": "demo/error", "max_tokens": None, "maxTokens": None},
        ]
        answers += [await stage.post(path, body) for body in bad]
        answers.append(await stage.post(path, json.dumps(good).encode()[:-5]))
        answers.append(await stage.post(path, good, {"authorization": f"Bearer {CANARIES['key']}"}))
        answers.append(await stage.post(f"{path}?key={CANARIES['key']}", {"messages": []}))
    admin_headers = {"authorization": f"Bearer {CANARIES['key']}"}
    answers.append(await stage.client.get("/admin/v1/accounts", headers=admin_headers))
    answers.append(await stage.gateway.admin.post("/accounts", json={"id": "x", "tier": CANARIES["field"]}))
    assert (await stage.client.get("/v1/models")).status_code == 200
    await stage.gateway.settled()
    metrics = (await stage.client.get("/metrics")).text
    secret = stage.key.rsplit("-", 1)[1]
    for text in (stage.log(), metrics, *(answer.text for answer in answers)):
        for canary in (*CANARIES.values(), secret, stage.key, ADMIN_KEY):
            assert canary not in text
    assert "canary" not in metrics
