"""Bodies no client should send: each is refused in the protocol's own envelope, and costs nothing.

The rows are those of the bad-input matrix, which ``test_bad_inputs.py`` shows one by one; here are their variations.
"""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.http.conftest import (
    BODY_BYTES_MAX,
    CHAT,
    DATA_STREAM,
    Stage,
    assert_refused,
    body_of,
    read_answer,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "canary-4711"
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def nothing_is_charged_by_any_of_them(stage: Stage) -> AsyncIterator[None]:
    yield
    await stage.nothing_happened()
    assert CANARY not in stage.log()


def with_field(path: str, json_text: str) -> bytes:
    """A good body with one more field, or one of another value, written by hand."""
    name = json.loads(json_text.partition(":")[0])
    body = {field: value for field, value in body_of(path).items() if field != name}
    return json.dumps(body).encode()[:-1] + b", " + json_text.encode() + b"}"


def nested(depth: int) -> str:
    return '"x": ' + "[" * depth + "]" * depth


GOOD = json.dumps({"model": "demo/fast", "messages": [{"role": "user", "content": CANARY}]})
NOT_JSON = {
    "nothing": b"",
    "white space": b" \n\t ",
    "words": b"hello",
    "cut off": GOOD[:-1].encode(),
    "cut off in a string": GOOD[:-4].encode(),
    "something after it": GOOD.encode() + b"x",
    "two values": GOOD.encode() * 2,
    "a trailing comma": GOOD[:-1].encode() + b",}",
    "single quotes": GOOD.replace('"', "'").encode(),
    "a comment": b"/* */" + GOOD.encode(),
    "invalid UTF-8": GOOD.encode().replace(b"canary", b"can\xff\xfery"),
    "invalid UTF-8 in a field that nobody reads": GOOD[:-1].encode() + b',"x":"\xc3\x28"}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "UTF-16 without a mark": GOOD.encode("utf-16-le"),
    "UTF-32": GOOD.encode("utf-32"),
    "gzip": gzip.compress(GOOD.encode()),
    "a lone high surrogate": GOOD.replace(CANARY, "\\ud800").encode(),
    "a lone low surrogate": GOOD.replace(CANARY, "\\udc00x").encode(),
    "a lone surrogate in a field that nobody reads": GOOD[:-1].encode() + b',"x":"\\ud800"}',
    "a raw line feed in a string": GOOD.replace(CANARY, "a\nb").encode(),
    "a NUL between values": GOOD.replace(", ", ",\0").encode(),
    "NaN": GOOD[:-1].encode() + b',"temperature":NaN}',
    "Infinity": GOOD[:-1].encode() + b',"temperature":-Infinity}',
    "a leading zero": GOOD[:-1].encode() + b',"seed":01}',
    "depth 65": with_field(CHAT, nested(64)),
    "depth 500": with_field(CHAT, nested(500)),
    "depth 100,000": with_field(CHAT, nested(100_000)),
    "depth 200,000 and no end": with_field(CHAT, '"x": ' + "[" * 200_000),
    "objects 100,000 deep": with_field(CHAT, '"x": ' + '{"a":' * 100_000 + "1" + "}" * 100_000),
    "brackets only": b"[" * 500_000,
    "250,000 arrays": with_field(CHAT, '"x": [' + "[]," * 250_000 + "1]"),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_told_so(stage: Stage, path: str, body: bytes) -> None:
    error = assert_refused(await stage.post(path, body), 400, path, code="invalid_json")
    assert "canary" not in error["message"]


@pytest.mark.parametrize("body", [b"[]", b"null", b"true", b"5", b'"text"', b"{}", b'[{"model": "demo/fast"}]'])
async def test_json_that_is_no_request_is_refused(stage: Stage, path: str, body: bytes) -> None:
    assert_refused(await stage.post(path, body), 400, path, code="invalid_value")


# Field, JSON text, what is named as wrong.
WRONG_FIELDS = [
    ("max_tokens", "-1", "max_tokens"),
    ("max_tokens", "0", "max_tokens"),
    ("max_tokens", "9223372036854775808", "max_tokens"),
    ("max_tokens", "1e30", "max_tokens"),
    ("max_tokens", "9" * 5000, None),
    ("max_tokens", '"5"', "max_tokens"),
    ("max_tokens", "true", "max_tokens"),
    ("max_tokens", "1.0", "max_tokens"),
    ("max_tokens", "[]", "max_tokens"),
    ("max_completion_tokens", "0", "max_completion_tokens"),
    ("n", "0", "n"),
    ("n", "1000", "n"),
    ("n", '"1"', "n"),
    ("stream", '"yes"', "stream"),
    ("stream", "1", "stream"),
    ("stream_options", '{"include_usage": true}', "stream_options"),
    ("temperature", "1e999", "temperature"),
    ("temperature", "-1", "temperature"),
    ("temperature", '"hot"', "temperature"),
    ("temperature", "9" * 400, None),
    ("top_p", "2", "top_p"),
    ("seed", "1.5", "seed"),
    ("seed", "9" * 5000, None),
    ("thinking", '{"budget": ' + "9" * 30 + "}", None),
    ("unknown_field", "1" * 5000, None),
    ("model", "5", "model"),
    ("model", "null", "model"),
    ("messages", "[]", "messages"),
    ("messages", "{}", "messages"),
    ("messages", '"Hello"', "messages"),
    ("messages", "[null]", "messages[0]"),
    ("messages", '["Hello"]', "messages[0]"),
    ("messages", f'[{{"role": "{CANARY}", "content": "x"}}]', "messages[0].role"),
    ("messages", '[{"content": "x"}]', "messages[0].role"),
    ("messages", '[{"role": "user"}]', "messages[0].content"),
    ("messages", '[{"role": "user", "content": {"text": "x"}}]', "messages[0].content"),
    ("messages", '[{"role": "user", "content": 5}]', "messages[0].content"),
    ("messages", '[{"role": "user", "content": ["x"]}]', "messages[0].content[0]"),
    ("messages", '[{"role": "user", "content": [{"text": "x"}]}]', "messages[0].content[0].type"),
    ("messages", '[{"role": "user", "content": [{"type": "text"}]}]', "messages[0].content[0]"),
    ("messages", '[{"role": "assistant"}]', "messages[0].content"),
    ("messages", '[{"role": "tool", "content": "x"}]', "messages[0].tool_call_id"),
    ("messages", "[" + ",".join(['{"role": "user", "content": "x"}'] * 10_001) + "]", "messages"),
    ("tools", "{}", "tools"),
    ("tools", '[{"type": "function", "function": {}}]', "tools[0].function.name"),
    ("tools", '[{"type": "function", "function": {"name": "f", "parameters": []}}]', "tools[0].function.parameters"),
    ("tools", "[" + ",".join(['{"type": "function", "function": {"name": "f"}}'] * 5000) + "]", "tools"),
    ("tools", '[{"type": "function", "function": {"name": "f", "parameters": {"maximum": 1' + "0" * 25 + "}}}]", None),
    ("tool_choice", f'"{CANARY}"', "tool_choice"),
    ("response_format", '{"type": "xml"}', "response_format.type"),
    ("response_format", '{"type": "json_schema"}', "response_format.json_schema"),
    ("stop", json.dumps(["x"] * 1000), "stop"),
    ("stop", '""', "stop"),
    ("stop", '["a", ""]', "stop"),
    ("logit_bias", json.dumps({str(i): 1 for i in range(50_000)}), "logit_bias"),
    ("user", json.dumps("x" * 1_000_000), "user"),
    ("user", "5", "user"),
    ("metadata", json.dumps({"k": "x" * 1_000_000}), "metadata[...]"),
    ("metadata", json.dumps({str(i): "x" for i in range(100)}), "metadata"),
    ("metadata", '{"k": 5}', "metadata[...]"),
    *((name, f'"{CANARY}"', name) for name in ("api_base", "api_key", "base_url", "api_version", "extra_body")),
    ("extra_headers", "{}", "extra_headers"),
    ("headers", "{}", "headers"),
]


@pytest.mark.parametrize(("field", "value", "param"), WRONG_FIELDS, ids=lambda value: str(value)[:40])
async def test_a_wrong_field_is_named(stage: Stage, field: str, value: str, param: str | None) -> None:
    answer = await stage.post(CHAT, with_field(CHAT, f'"{field}": {value}'))
    error = assert_refused(answer, 400)
    assert error["param"] == param
    assert CANARY not in answer.text


async def test_two_hundred_fifty_seven_fields_are_too_many(stage: Stage) -> None:
    more = {f"field{number}": number for number in range(257)}
    assert_refused(await stage.post(CHAT, body_of(CHAT, **more)), 400)


WRONG_UI_FIELDS = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "parts": {}}]}, "messages[0].parts"),
    ({"messages": [{"role": "user", "content": "x", "experimental_attachments": [{}]}]}, "url"),
    ({"maxTokens": 0}, "maxTokens"),
    ({"maxTokens": "5"}, "maxTokens"),
    ({"maxTokens": True}, "maxTokens"),
    ({"temperature": 5}, "temperature"),
    ({"seed": 10**30}, None),
    ({"system": 5}, "system"),
    ({"tools": [{}]}, "tools[0].name"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize(("changes", "param"), WRONG_UI_FIELDS, ids=str)
async def test_a_wrong_field_of_the_ai_sdk_is_named(stage: Stage, changes: dict[str, Any], param: str | None) -> None:
    error = assert_refused(await stage.post(DATA_STREAM, body_of(DATA_STREAM, **changes)), 400, DATA_STREAM)
    assert error["param"] == param or error["param"].endswith(f".{param}")


@pytest.mark.parametrize("model", ["gpt-99", "nobody/gpt", "/", "demo/", "/fast", "../../etc/passwd", "demo"])
async def test_an_unknown_model_is_not_found(stage: Stage, path: str, model: str) -> None:
    error = assert_refused(await stage.post(path, body_of(path, model=model)), 404, path, code="model_not_found")
    assert error["param"] == "model"


@pytest.mark.parametrize("model", ["a\nb", "demo/fast\0", "demo/fäst", "demo fast", "\u202e", CANARY * 1000])
async def test_a_model_name_that_is_no_name_is_not_repeated(stage: Stage, path: str, model: str) -> None:
    answer = await stage.post(path, body_of(path, model=model))
    assert_refused(answer, 404, path, code="model_not_found")
    assert len(answer.content) < 300 and model not in answer.json()["error"]["message"]


async def test_a_model_the_provider_does_not_have_costs_nothing(stage: Stage, path: str) -> None:
    assert_refused(await stage.post(path, body_of(path, model="demo/unknown")), 404, path, code="model_not_found")


PICTURES = {
    "bad base64": "data:image/png;base64,*not base64*",
    "bare base64": base64.b64encode(b"picture").decode(),
    "no base64": "data:image/svg+xml,<svg/>",
    "a local file": "file:///etc/passwd",
    "nothing": "",
}


@pytest.mark.parametrize("url", PICTURES.values(), ids=PICTURES.keys())
async def test_a_picture_that_is_none_is_refused(stage: Stage, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = await stage.post(CHAT, body_of(CHAT, messages=[{"role": "user", "content": content}]))
    assert assert_refused(answer, 400)["param"].startswith("messages[0].content[0]")
    attached = {"role": "user", "content": "x", "experimental_attachments": [{"url": url, "contentType": "image/png"}]}
    answer = await stage.post(DATA_STREAM, body_of(DATA_STREAM, messages=[attached]))
    assert assert_refused(answer, 400, DATA_STREAM)["param"] == "experimental_attachments[0].url"


@pytest.mark.parametrize("file", [{}, {"file_data": "data:text/plain,x"}, {"file_data": "%%%"}])
async def test_a_file_without_content_is_refused(stage: Stage, file: dict[str, str]) -> None:
    content = [{"type": "file", "file": file}]
    answer = await stage.post(CHAT, body_of(CHAT, messages=[{"role": "user", "content": content}]))
    assert_refused(answer, 400)


async def test_a_schema_that_refers_to_itself_is_not_followed(stage: Stage) -> None:
    schema = {"$ref": "#", "properties": {"x": {"$ref": "#/properties/x"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    answer = await stage.post(CHAT, body_of(CHAT, model="demo/unknown", tools=[tool]))
    assert_refused(answer, 404)


@pytest.mark.parametrize("second", ["demo/fast", "gpt-99"])
async def test_a_name_that_stands_twice_is_refused(stage: Stage, path: str, second: str) -> None:
    twice = json.dumps(body_of(path)).encode()[:-1] + f', "model": "{second}"}}'.encode()
    assert_refused(await stage.post(path, twice), 400, path, code="invalid_json")


MEDIA_TYPES = {
    "none": {"content-type": ""},
    "text": {"content-type": "text/plain"},
    "a form": {"content-type": "application/x-www-form-urlencoded"},
    "several parts": {"content-type": "multipart/form-data; boundary=x"},
    "UTF-16": {"content-type": "application/json; charset=utf-16"},
    "Latin-1 after another parameter": {"content-type": "application/json; x=y; charset=iso-8859-1"},
    "lines of JSON": {"content-type": "application/jsonl"},
    "gzip": JSON | {"content-encoding": "gzip"},
    "brotli": JSON | {"content-encoding": "br"},
}


@pytest.mark.parametrize("headers", MEDIA_TYPES.values(), ids=MEDIA_TYPES.keys())
async def test_another_media_type_is_not_supported(stage: Stage, path: str, headers: dict[str, str]) -> None:
    answer = await stage.post(path, GOOD.encode(), headers)
    assert_refused(answer, 415, path, code="unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", 'application/json; charset="UTF-8"', "application/json;charset=utf-8;x=y"],
)
async def test_json_in_utf8_is_understood_however_it_is_labelled(stage: Stage, path: str, content_type: str) -> None:
    answer = await stage.post(path, body_of(path, model="gpt-99"), {"content-type": content_type})
    assert_refused(answer, 404, path)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_another_method_is_not_allowed(stage: Stage, path: str, method: str) -> None:
    answer = await stage.raw(f"{method} {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: 0")
    assert_refused(answer, 405, path, code="method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_a_body_whose_length_is_too_large_is_refused_before_it_is_sent(stage: Stage, path: str) -> None:
    head = f"POST {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: 104857600"
    assert_refused(await stage.raw(head), 413, path, code="request_too_large")


async def test_a_hundred_megabytes_are_refused_and_never_kept(stage: Stage, path: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        piece = b"x" * (1 << 20)
        for _ in range(100):
            yield piece

    before = stage.rss_bytes()
    headers = JSON | {"content-length": str(100 << 20)}
    answer = await stage.client.post(path, content=pieces(), headers=headers)
    assert_refused(answer, 413, path)
    answer = await stage.client.post(path, content=pieces(), headers=JSON)
    assert_refused(answer, 413, path)
    assert stage.rss_bytes() - before < (32 << 20)


async def test_chunks_without_end_are_refused_at_the_limit(stage: Stage, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {stage.key}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    answering = asyncio.create_task(read_answer(reader))  # noqa: TID251 - awaited below
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    sent = 0
    while not answering.done() and sent < 64 << 20:
        writer.write(chunk)
        await writer.drain()
        sent += 0x10000
    assert_refused(await answering, 413, path)
    writer.close()


async def test_a_body_of_exactly_the_limit_is_read(stage: Stage, path: str) -> None:
    good = json.dumps(body_of(path, model="gpt-99")).encode()
    assert_refused(await stage.post(path, good.ljust(BODY_BYTES_MAX)), 404, path)
    assert_refused(await stage.post(path, good.ljust(BODY_BYTES_MAX + 1)), 413, path)


async def test_a_body_shorter_than_its_length_is_the_end_of_the_connection(stage: Stage, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {stage.key}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{GOOD}".encode())
    writer.write_eof()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_longer_than_its_length_is_not_read_as_part_of_it(stage: Stage, path: str) -> None:
    body = json.dumps(body_of(path, model="gpt-99")).encode()
    head = f"POST {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: {len(body) - 1}"
    answer = await stage.raw(head, body)
    assert answer.status == 400
    assert answer.json()["error"]["code"] in ("invalid_json", "invalid_request")  # the one read first: body or rest


@pytest.mark.parametrize(
    "credential", [None, "", "Bearer", "Bearer x", "Basic eDp5", "Bearer gw-aaaaaaaaaaaa-x", "Bearer é"]
)
async def test_without_a_credential_nothing_is_read(stage: Stage, path: str, credential: str | None) -> None:
    headers = JSON | ({} if credential is None else {"authorization": credential})
    async with httpx.AsyncClient(base_url=stage.gateway.base_url, trust_env=False) as client:
        request = client.build_request("POST", path, content=b"\0", headers={k: v.encode() for k, v in headers.items()})
        assert_refused(await client.send(request), 401, path, code="invalid_api_key")
