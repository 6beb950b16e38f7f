"""The requests of the bad-input matrix as tables: name (its row first), what is sent, what must come back."""

import base64
import gzip
import json
from collections.abc import Callable

import msgspec

from tests.http.conftest import BODY_BYTES_MAX, CHAT, DATA_STREAM, body_of
from tests.http.raw import JSON, post, request

PROTOCOLS = {"chat": CHAT, "ai-sdk-4": DATA_STREAM}


class Expected(msgspec.Struct, frozen=True):
    """A refusal; ``None`` is not looked at."""

    status: int
    code: str | None = None
    param: str | None = None


INVALID_JSON = Expected(400, "invalid_json")
INVALID_VALUE = Expected(400, "invalid_value")
UNSUPPORTED_VALUE = Expected(400, "unsupported_value")
NO_MODEL = Expected(404, "model_not_found", "model")
TOO_LARGE = Expected(413, "request_too_large")
MEDIA_TYPE = Expected(415, "unsupported_media_type")

GOOD = {path: json.dumps(body_of(path)).encode() for path in PROTOCOLS.values()}
TOKENS = {CHAT: "max_tokens", DATA_STREAM: "maxTokens"}


def with_field(path: str, text: str) -> bytes:
    """A good body with one more field, written by hand."""
    return GOOD[path][:-1] + b", " + text.encode("utf-8", "surrogatepass") + b"}"


def instead(path: str, field: str, text: str) -> bytes:
    """A good body with a field of another value, written by hand."""
    return with_field_of({name: value for name, value in body_of(path).items() if name != field}, field, text)


def with_field_of(body: dict[str, object], field: str, text: str) -> bytes:
    return json.dumps(body).encode()[:-1] + f', "{field}": {text}}}'.encode()


def messages(path: str, *items: object) -> bytes:
    return json.dumps(body_of(path, messages=list(items))).encode()


def _said(path: str, text: str) -> bytes:
    """A good body whose prompt is this JSON string."""
    return GOOD[path].replace(b'"Hello"', text.encode())


# Bodies that both protocols refuse alike; each is made for a path.
_BODIES: list[tuple[str, Expected, Callable[[str], bytes]]] = [
    ("01-empty-body", INVALID_JSON, lambda path: b""),
    ("02-not-json", INVALID_JSON, lambda path: b"hello"),
    ("02-truncated", INVALID_JSON, lambda path: GOOD[path][:-4]),
    ("02-trailing-garbage", INVALID_JSON, lambda path: GOOD[path] + b"x"),
    ("03-top-level-array", INVALID_VALUE, lambda path: b"[" + GOOD[path] + b"]"),
    ("03-top-level-null", INVALID_VALUE, lambda path: b"null"),
    ("03-top-level-string", INVALID_VALUE, lambda path: b'"text"'),
    ("04-invalid-utf-8", INVALID_JSON, lambda path: GOOD[path].replace(b"Hello", b"\xc3\x28")),
    ("05-utf-16", INVALID_JSON, lambda path: GOOD[path].decode().encode("utf-16")),
    ("05-byte-order-mark", INVALID_JSON, lambda path: b"\xef\xbb\xbf" + GOOD[path]),
    ("06-lone-surrogate", INVALID_JSON, lambda path: _said(path, '"\\ud800"')),
    ("06-lone-surrogate-unread", INVALID_JSON, lambda path: with_field(path, '"x": "\\udc00"')),
    ("07-nul-in-the-model", NO_MODEL, lambda path: instead(path, "model", '"demo/fast\\u0000"')),
    ("08-duplicate-keys", INVALID_JSON, lambda path: with_field(path, '"model": "demo/fast"')),
    ("08-duplicate-keys-within", INVALID_JSON, lambda path: GOOD[path].replace(b'"role"', b'"role": "user", "role"')),
    ("08-duplicate-keys-unread", INVALID_JSON, lambda path: with_field(path, '"x": [{"a": 1, "\\u0061": 1}]')),
    ("09-nan", INVALID_JSON, lambda path: with_field(path, '"temperature": NaN')),
    ("09-infinity", INVALID_JSON, lambda path: with_field(path, '"x": -Infinity')),
    ("09-1e999", INVALID_VALUE, lambda path: with_field(path, '"temperature": 1e999')),
    ("09-1e999-unread", INVALID_VALUE, lambda path: with_field(path, '"x": {"y": [-1e999]}')),
    ("10-tokens-negative", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "-1")),
    ("10-tokens-0", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "0")),
    ("11-tokens-2-to-the-63", INVALID_VALUE, lambda path: instead(path, TOKENS[path], str(2**63))),
    ("11-tokens-1e30", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "1e30")),
    ("11-5000-digits", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "9" * 5000)),
    ("11-5000-digits-unread", INVALID_VALUE, lambda path: with_field(path, '"x": ' + "9" * 5000)),
    ("12-tokens-text", INVALID_VALUE, lambda path: instead(path, TOKENS[path], '"5"')),
    ("12-tokens-true", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "true")),
    ("12-tokens-1.0", INVALID_VALUE, lambda path: instead(path, TOKENS[path], "1.0")),
    ("13-depth-65", INVALID_JSON, lambda path: with_field(path, '"x": ' + "[" * 64 + "]" * 64)),
    ("13-depth-500", INVALID_JSON, lambda path: with_field(path, '"x": ' + "[" * 500 + "]" * 500)),
    ("14-depth-100000", INVALID_JSON, lambda path: with_field(path, '"x": ' + "[" * 100_000 + "]" * 100_000)),
    ("15-10001-keys", INVALID_JSON, lambda path: with_field(path, '"x": ' + json.dumps(dict.fromkeys(range(10_001))))),
    ("15-70000-keys", INVALID_JSON, lambda path: with_field(path, '"x": ' + json.dumps(dict.fromkeys(range(70_000))))),
    *(
        (f"16-{name}", UNSUPPORTED_VALUE, lambda path, name=name: with_field(path, f'"{name}": "http://evil"'))
        for name in ("api_base", "api_key", "base_url", "baseURL", "extra_headers", "extra_body")
    ),
    ("38-unknown-model", NO_MODEL, lambda path: instead(path, "model", '"gpt-99"')),
    ("38-model-with-a-line-feed", NO_MODEL, lambda path: instead(path, "model", '"demo/fast\\n"')),
    ("38-model-like-a-path", NO_MODEL, lambda path: instead(path, "model", '"../../etc/passwd"')),
    ("38-model-of-10-kB", NO_MODEL, lambda path: instead(path, "model", '"' + "m" * 10_240 + '"')),
    ("39-no-messages", Expected(400, "invalid_value", "messages"), lambda path: messages(path)),
    (
        "39-unknown-role",
        Expected(400, "invalid_value", "messages[0].role"),
        lambda path: messages(path, {"role": "wizard", "content": "x"}),
    ),
    (
        "39-content-an-object",
        Expected(400, "invalid_value", "messages[0].content"),
        lambda path: messages(path, {"role": "user", "content": {}}),
    ),
    (
        "39-10001-messages",
        Expected(400, "invalid_value", "messages"),
        lambda path: messages(path, *[{"role": "user", "content": "x"}] * 10_001),
    ),
    (
        "40-picture-beyond-the-limit",
        TOO_LARGE,
        lambda path: with_picture(path, "data:image/png;base64," + "A" * BODY_BYTES_MAX),
    ),
    ("40-picture-not-base64", INVALID_VALUE, lambda path: with_picture(path, "data:image/png;base64,*not base64*")),
    ("40-picture-svg", UNSUPPORTED_VALUE, lambda path: with_picture(path, "data:image/svg+xml;base64," + SVG)),
    ("40-picture-svg-as-text", INVALID_VALUE, lambda path: with_picture(path, "data:image/svg+xml,<svg/>")),
    ("40-picture-a-file", INVALID_VALUE, lambda path: with_picture(path, "file:///etc/passwd")),
    ("41-5000-tools", Expected(400, "invalid_value", "tools"), lambda path: with_tools(path, *[{}] * 5000)),
]
SVG = base64.b64encode(b"<svg/>").decode()


def with_picture(path: str, url: str) -> bytes:
    """A good body with a picture."""
    if path == CHAT:
        part = {"type": "image_url", "image_url": {"url": url}}
        return messages(path, {"role": "user", "content": [part]})
    attached = {"url": url, "contentType": "image/png"}
    return messages(path, {"role": "user", "content": "x", "experimental_attachments": [attached]})


def with_tools(path: str, *schemas: object) -> bytes:
    """A good body with a tool for each schema of its parameters."""
    tools = [{"name": f"f{number}", "parameters": schema} for number, schema in enumerate(schemas)]
    asked = [{"type": "function", "function": tool} for tool in tools] if path == CHAT else tools
    return json.dumps(body_of(path, tools=asked)).encode()


_CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
_INVOCATION = {"toolCallId": "1", "toolName": "f", "state": "result", "args": {}, "result": 1}
REFUSED_BODIES: list[tuple[str, str, Expected, bytes]] = [
    *(
        (f"{name}-{protocol}", path, expected, build(path))
        for name, expected, build in _BODIES
        for protocol, path in PROTOCOLS.items()
    ),
    # What only one of them reads.
    (
        "07-nul-in-an-id-chat",
        CHAT,
        INVALID_VALUE,
        messages(CHAT, {"role": "assistant", "tool_calls": [_CALL | {"id": "a\0"}]}, {"role": "user", "content": "x"}),
    ),
    ("07-nul-in-a-tool-chat", CHAT, INVALID_VALUE, with_tools(CHAT, {}).replace(b"f0", b"f\\u0000")),
    ("07-nul-in-the-user-chat", CHAT, INVALID_VALUE, with_field(CHAT, '"user": "a\\u0000"')),
    (
        "07-nul-in-an-id-ai-sdk-4",
        DATA_STREAM,
        INVALID_VALUE,
        messages(
            DATA_STREAM,
            {"role": "assistant", "content": "", "toolInvocations": [_INVOCATION | {"toolCallId": "a\0"}]},
            {"role": "user", "content": "x"},
        ),
    ),
    (
        "07-nul-in-a-tool-ai-sdk-4",
        DATA_STREAM,
        INVALID_VALUE,
        with_tools(DATA_STREAM, {}).replace(b"f0", b"f\\u0000"),
    ),
    ("12-stream-yes-chat", CHAT, Expected(400, "invalid_value", "stream"), with_field(CHAT, '"stream": "yes"')),
    (
        "42-1000-stops-chat",
        CHAT,
        Expected(400, "invalid_value", "stop"),
        with_field(CHAT, f'"stop": {["x"] * 1000}'.replace("'", '"')),
    ),
    ("42-empty-stop-chat", CHAT, Expected(400, "invalid_value", "stop"), with_field(CHAT, '"stop": ["a", ""]')),
    ("42-n-1000-chat", CHAT, Expected(400, "invalid_value", "n"), with_field(CHAT, '"n": 1000')),
    (
        "42-logit-bias-of-70000-chat",
        CHAT,
        Expected(400, "invalid_value", "logit_bias"),
        with_field(CHAT, '"logit_bias": ' + json.dumps(dict.fromkeys(range(70_000), 1))),
    ),
    (
        "46-user-of-1-MB-chat",
        CHAT,
        Expected(400, "invalid_value", "user"),
        with_field(CHAT, '"user": "' + "u" * 1_000_000 + '"'),
    ),
    (
        "46-user-of-513-bytes-chat",
        CHAT,
        Expected(400, "invalid_value", "user"),
        with_field(CHAT, '"user": "' + "ü" * 256 + 'u"'),
    ),
    ("46-user-a-number-chat", CHAT, Expected(400, "invalid_value", "user"), with_field(CHAT, '"user": 5')),
    (
        "46-metadata-of-513-bytes-chat",
        CHAT,
        Expected(400, "invalid_value", "metadata"),
        with_field(CHAT, '"metadata": {"k": "' + "ü" * 256 + 'u"}'),
    ),
    ("46-metadata-a-number-chat", CHAT, INVALID_VALUE, with_field(CHAT, '"metadata": {"k": 5}')),
]

_RECURSIVE = {"type": "object", "properties": {"x": {"$ref": "#"}, "y": {"$ref": "http://evil/schema"}}}
ACCEPTED_BODIES: list[tuple[str, str, bytes]] = [
    case
    for protocol, path in PROTOCOLS.items()
    for case in (
        (f"07-nul-in-the-prompt-{protocol}", path, _said(path, '"a\\u0000b"')),
        # Legal, and no reference in it is followed: the provider judges it.
        (f"41-recursive-schema-{protocol}", path, with_tools(path, _RECURSIVE)),
    )
]


def _typed(path: str, *headers: str) -> Callable[[str], bytes]:
    """A good body under another content type."""
    length = f"Content-Length: {len(GOOD[path])}"
    line = f"POST {path} HTTP/1.1"
    return lambda key: request(line, f"Authorization: Bearer {key}", length, *headers, body=GOOD[path])


def _methods(path: str, method: str) -> Callable[[str], bytes]:
    return lambda key: post(path, key, GOOD[path]).replace(b"POST", method.encode(), 1)


IDEMPOTENCY_KEYS = {
    "empty-idempotency-key": ["Idempotency-Key: "],
    "idempotency-key-of-5-kB": ["Idempotency-Key: " + "k" * 5000],
    "idempotency-key-of-two-words": ["Idempotency-Key: a b"],
    "idempotency-key-beyond-ascii": ["Idempotency-Key: \xe4"],
    "two-idempotency-keys": ["Idempotency-Key: a", "Idempotency-Key: b"],
}


def _endless_extension(key: str) -> bytes:
    body = b"1;x=" + b"a" * 1_000_000 + b"\r\nx\r\n0\r\n\r\n"
    headers = (f"Authorization: Bearer {key}", JSON, "Transfer-Encoding: chunked")
    return request(f"POST {CHAT} HTTP/1.1", *headers, body=body)


def _heads(path: str) -> list[tuple[str, Expected, Callable[[str], bytes]]]:
    zipped = gzip.compress(GOOD[path])
    line = f"POST {path} HTTP/1.1"
    twice = Expected(400, "invalid_request")
    no_key = Expected(400, "invalid_value", "idempotency-key")
    return [
        ("17-no-content-type", MEDIA_TYPE, _typed(path)),
        ("17-text-plain", MEDIA_TYPE, _typed(path, "Content-Type: text/plain")),
        ("18-charset-utf-16", MEDIA_TYPE, _typed(path, "Content-Type: application/json; charset=utf-16")),
        ("19-gzip", MEDIA_TYPE, lambda key: post(path, key, zipped, "Content-Encoding: gzip")),
        (
            "20-length-beyond-the-limit",
            TOO_LARGE,
            lambda key: request(line, f"Authorization: Bearer {key}", JSON, "Content-Length: 104857600"),
        ),
        ("28-two-credentials", twice, lambda key: post(path, key, GOOD[path], f"Authorization: Bearer {key}")),
        ("28-another-credential", twice, lambda key: post(path, "x", GOOD[path], f"Authorization: Bearer {key}")),
        *(
            (f"43-{name}", no_key, lambda key, values=values: post(path, key, GOOD[path], *values))
            for name, values in IDEMPOTENCY_KEYS.items()
        ),
        *(
            (f"35-{method.lower()}", Expected(405, "method_not_allowed"), _methods(path, method))
            for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")
        ),
    ]


REFUSED_HEADS: list[tuple[str, str, Expected, Callable[[str], bytes]]] = [
    (f"{name}-{protocol}", path, expected, build)
    for protocol, path in PROTOCOLS.items()
    for name, expected, build in _heads(path)
]
REFUSED_HEADS.append(("31-chunk-extension-of-1-MB", CHAT, Expected(400, "invalid_request"), _endless_extension))

_POST = f"POST {CHAT} HTTP/1.1"
_GET = "GET /healthz HTTP/1.1"
_CHUNKED = "Transfer-Encoding: chunked"
REFUSED_FRAMES: list[tuple[str, int, bytes]] = [
    ("23-length-and-chunks", 400, request(_POST, "Content-Length: 4", _CHUNKED, body=b"0\r\n\r\n")),
    ("23-chunks-and-length", 400, request(_POST, _CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n")),
    ("24-two-lengths", 400, request(_POST, "Content-Length: 1", "Content-Length: 1", body=b"x")),
    ("24-length-with-a-sign", 400, request(_POST, "Content-Length: +4", body=b"xxxx")),
    ("24-negative-length", 400, request(_POST, "Content-Length: -1")),
    ("24-list-of-lengths", 400, request(_POST, "Content-Length: 4,4", body=b"xxxx")),
    ("24-xchunked", 400, request(_POST, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    ("24-chunked-not-last", 400, request(_POST, "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n")),
    ("24-space-before-the-colon", 400, request(_POST, "Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
    ("25-folded-header", 400, request(_GET, "X: a\r\n b")),
    ("25-bare-line-feeds", 400, b"GET /healthz HTTP/1.1\nHost: x\n\n"),
    ("26-bare-carriage-return", 400, request(_GET, "X: a\rb")),
    ("26-nul-in-a-header", 400, request(_GET, "X: a\0b")),
    ("27-no-host", 400, b"GET /healthz HTTP/1.1\r\n\r\n"),
    ("27-two-hosts", 400, request(_GET, "Host: gateway")),
    ("30-header-of-1-MB", 431, request(_GET, "X-Long: " + "a" * 1_000_000)),
    ("30-header-of-70-kB", 431, request(_GET, "X-Long: " + "a" * 70_000)),
    ("30-20000-headers", 431, request(_GET, *["X: y"] * 20_000)),
    ("33-path-of-1-MB", 414, request(f"GET /{'a' * 1_000_000} HTTP/1.1")),
    ("34-http-0.9", 400, b"GET /healthz\r\n\r\n"),
    ("34-http-2-preface", 400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("34-tls-hello", 400, bytes.fromhex("16030100c8010000c40303") + bytes(range(190))),
]
