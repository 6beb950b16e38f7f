"""Bodies no client of Anthropic's should send: refused in Anthropic's envelope, and free of charge.

What is wrong with a body as JSON is the same for every protocol; those rows come from the other suite.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.http.conftest import BODY_BYTES_MAX, Stage
from tests.http.test_bad_bodies import NOT_JSON

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
CANARY = "canary-4711"
USER = {"role": "user", "content": CANARY}
BOTH = pytest.mark.parametrize("path", [MESSAGES, COUNT])


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def nothing_is_charged_by_any_of_them(stage: Stage) -> AsyncIterator[None]:
    yield
    await stage.nothing_happened()
    assert CANARY not in stage.log()


def assert_refused(answer: httpx.Response, status: int, kind: str, code: str) -> dict[str, Any]:
    """A refusal in Anthropic's envelope; returns what is in it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"type", "message", "details"}
    assert (error["type"], error["details"]["error_code"]) == (kind, code), error
    assert 0 < len(error["message"]) < 600 and CANARY not in error["message"]
    return error


def body_of(**changes: Any) -> dict[str, Any]:
    return {"model": "demo/fast", "max_tokens": 1, "messages": [USER], **changes}


@BOTH
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_told_so(stage: Stage, path: str, body: bytes) -> None:
    assert_refused(await stage.post(path, body), 400, "invalid_request_error", "invalid_json")


@BOTH
@pytest.mark.parametrize("body", [b"[]", b"null", b"true", b"5", b'"text"', b"{}"])
async def test_json_that_is_no_request_is_refused(stage: Stage, path: str, body: bytes) -> None:
    assert_refused(await stage.post(path, body), 400, "invalid_request_error", "invalid_value")


@BOTH
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"metadata": {"user_id": "u" * 1000}}, "metadata.user_id"),
    ],
)
async def test_a_wrong_field_is_named(stage: Stage, path: str, changes: dict[str, Any], param: str) -> None:
    error = assert_refused(await stage.post(path, body_of(**changes)), 400, "invalid_request_error", "invalid_value")
    assert error["details"]["param"] == param and error["message"].startswith(param)


@BOTH
async def test_an_unknown_model_is_not_found(stage: Stage, path: str) -> None:
    answer = await stage.post(path, body_of(model="gpt-99"))
    assert_refused(answer, 404, "not_found_error", "model_not_found")


@BOTH
async def test_a_body_beyond_the_limit_is_too_large(stage: Stage, path: str) -> None:
    answer = await stage.post(path, body_of(messages=[{"role": "user", "content": "x" * BODY_BYTES_MAX}]))
    assert_refused(answer, 413, "request_too_large", "request_too_large")


@BOTH
async def test_another_media_type_is_refused(stage: Stage, path: str) -> None:
    answer = await stage.post(path, body_of(), {"content-type": "text/plain"})
    assert_refused(answer, 415, "invalid_request_error", "unsupported_media_type")


@BOTH
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_another_method_is_not_allowed(stage: Stage, path: str, method: str) -> None:
    assert_refused(await stage.client.request(method, path), 405, "invalid_request_error", "method_not_allowed")


async def test_what_is_not_there_is_not_found(stage: Stage) -> None:
    for path, headers in ((f"{MESSAGES}/batches", {}), ("/v1/files", {"anthropic-version": "2023-06-01"})):
        assert_refused(await stage.client.get(path, headers=headers), 404, "not_found_error", "not_found")


@BOTH
async def test_two_credentials_that_differ_are_one_too_many(stage: Stage, path: str) -> None:
    answer = await stage.post(path, body_of(), {"x-api-key": "another"})
    assert answer.json()["error"]["details"]["error_code"] == "invalid_request"
    same = await stage.post(COUNT, body_of(), {"x-api-key": stage.key})
    assert same.status_code == 200, same.text


@BOTH
async def test_no_credential_is_an_authentication_error(stage: Stage, path: str) -> None:
    async with httpx.AsyncClient(base_url=stage.gateway.base_url, trust_env=False) as stranger:
        answer = await stranger.post(path, json=body_of())
        assert_refused(answer, 401, "authentication_error", "invalid_api_key")


async def test_a_key_in_the_address_is_refused(stage: Stage) -> None:
    answer = await stage.post(f"{MESSAGES}?x-api-key=abc", body_of())
    assert_refused(answer, 400, "invalid_request_error", "invalid_request")


async def test_an_unknown_version_is_refused_and_an_unknown_query_is_not(stage: Stage) -> None:
    answer = await stage.post(COUNT, body_of(), {"anthropic-version": "2020-01-01"})
    error = assert_refused(answer, 400, "invalid_request_error", "invalid_value")
    assert error["details"]["param"] == "anthropic-version"
    assert (await stage.post(f"{COUNT}?beta=true", body_of())).status_code == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "after_id=a&before_id=b"])
async def test_a_page_that_is_none_is_refused(stage: Stage, query: str) -> None:
    answer = await stage.client.get(f"/v1/models?{query}", headers={"anthropic-version": "2023-06-01"})
    assert_refused(answer, 400, "invalid_request_error", "invalid_value")


async def test_openais_clients_still_get_their_own_shapes(stage: Stage) -> None:
    listed = (await stage.client.get("/v1/models")).json()
    assert listed["object"] == "list" and listed["data"][0]["object"] == "model"
    missing = (await stage.client.get("/v1/models/nope/nope")).json()
    assert missing["error"]["code"] == "model_not_found"
    assert json.loads((await stage.client.get("/v1/nope")).content).keys() == {"error"}
