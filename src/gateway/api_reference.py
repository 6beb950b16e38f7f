"""The reference of every HTTP endpoint, made from the code that answers it.

What FastAPI routes is read from its OpenAPI; the inference endpoints are plain ASGI and described by the protocol they
speak. Nothing here is started: the routers are built around nothing, since they use it only when they are called.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from gateway.canonical.errors import ErrorCode
from gateway.config import Config
from gateway.http.admin import Admin, admin_router
from gateway.http.admin_config import config_router
from gateway.http.admin_reports import reports_router
from gateway.http.admin_streams import streams_admin_router
from gateway.http.chat_streams import chat_stop_router
from gateway.http.count_tokens import count_router
from gateway.http.health import health_router
from gateway.http.inference import models_router
from gateway.http.stored_responses import stored_responses_router
from gateway.http.streams import streams_router
from gateway.surface import inference_roles

_TITLES = {
    "models": ("Models", "Wants an API key or a JWT."),
    "chat": (
        "Chats",
        "Wants an API key or a JWT. `GET /api/chat/{id}/stream`, for AI SDK 4 `GET /api/ai/chat-stream?chatId={id}`, "
        "answers with the stream that a chat is at, from its beginning; nothing to resume is 204, for AI SDK 4 empty "
        "and 200. `GET /api/chat/ws` takes a WebSocket with the frames of AI SDK 7's `WebSocketChatTransport`.",
    ),
    "responses": ("Stored responses", "Wants an API key or a JWT."),
    "streams": ("Streams", "Wants an API key or a JWT."),
    "health": ("Health", "Wants no credential."),
    "admin": ("Admin", "Wants the admin key. Amounts are decimal USD strings, times are RFC 3339 in UTC."),
}


_REQUEST_HEADERS = {
    "Idempotency-Key": "1 to 255 visible ASCII characters: the same request with the same key runs once.",
    "x-gateway-strict": "`true`: refuse what a provider could not be asked for as it is written.",
    "x-gateway-resumable": "`true`: a chat's answer goes on when its page goes away; `false`: it does not.",
    "x-gateway-events": "`1`: also send what the gateway has to say within the stream (`x_gateway`), such as budgets.",
}
_ANSWER_HEADERS = {
    "x-gateway-stream-id": "The stream's id, for `GET /v1/streams/{id}`.",
    "x-gateway-warnings": "What the provider was not asked for: `dropped:FIELD`, `lowered:FIELD`, `changed:FIELD`.",
    "x-ratelimit-limit-requests": "The tightest limit on requests; also `-remaining-`, `-reset-`, and for `-tokens`.",
    "retry-after": "Seconds until it is worth trying again, on a refusal that waiting helps against.",
    "x-should-retry": "`false` on a refusal that waiting does not help against.",
}


def reference() -> str:
    """Markdown: what every request shares, each endpoint by family, the bodies, the error codes."""
    document = _document()
    lines = [
        *("# HTTP API reference", "", "Made by `gateway api reference`; do not edit.", ""),
        "A credential is sent as `Authorization: Bearer <credential>`. Every answer has an `x-request-id`; a client's",
        "own is kept where it is 1 to 64 letters, digits or `. _ : -`.",
        *("", *_inference()),
    ]
    for tag, (title, note) in _TITLES.items():
        lines += [f"## {title}", "", note, "", *_operations(document, tag)]
    return "\n".join([*lines, *_bodies(document), *_errors()])


def _document() -> dict[str, Any]:
    nothing: Any = None
    app = FastAPI()
    app.include_router(models_router(nothing, nothing))
    app.include_router(count_router(nothing, nothing, body_bytes_max=0))
    app.include_router(health_router(nothing, nothing))
    app.include_router(streams_router(nothing, nothing, nothing))
    app.include_router(stored_responses_router(nothing, nothing))
    app.include_router(chat_stop_router(nothing, nothing, nothing))
    admin = Admin(key="", accounts=nothing, api_keys=nothing, ledger=nothing, tiers=())
    app.include_router(admin_router(admin, nothing))
    app.include_router(reports_router(admin, nothing, nothing))
    app.include_router(streams_admin_router(admin, nothing, nothing))
    app.include_router(config_router(admin, nothing))
    return app.openapi()


def _inference() -> Iterator[str]:
    yield from ("## Inference", "", "Wants an API key or a JWT, and a body of `application/json`.", "")
    yield from ("| endpoint | |", "|---|---|")
    for path, role in inference_roles(Config()).items():
        yield f"| `POST {path}` | {_first_line(type(role).__doc__)} {_first_line(role.decode_request.__doc__)} |"
    yield from ("", "| header of the request | |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in _REQUEST_HEADERS.items())
    yield from ("", "| header of the answer | |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in _ANSWER_HEADERS.items())
    yield ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].replace("``", "`")


def _operations(document: dict[str, Any], tag: str) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield from _operation(f"{method.upper()} {path}", operation)


def _operation(name: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from (f"### `{name}`", "", f"{operation['summary']}.", "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for parameter in parameters:
            need = "required" if parameter["required"] else _default(parameter["schema"])
            yield f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'])} | {need} |"
        yield ""
    if "requestBody" in operation:
        yield from (f"Body: {_content(operation['requestBody'])}", "")
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            yield from (f"Answer: {status}{_answer(response)}", "")


def _answer(response: dict[str, Any]) -> str:
    content = _content(response)
    return f", {content}" if content else ""


def _content(holder: dict[str, Any]) -> str:
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return _type(schema) if schema else ""


def _bodies(document: dict[str, Any]) -> Iterator[str]:
    yield from ("## Bodies", "")
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("ValidationError"):  # FastAPI's own, which our error handlers replace
            continue
        yield from (f"### {name}", "", schema.get("description", ""), "", "| field | type | |", "|---|---|---|")
        required = schema.get("required", ())
        for field, field_schema in schema["properties"].items():
            notes = ("required" if field in required else _default(field_schema), field_schema.get("description", ""))
            yield f"| `{field}` | {_type(field_schema)} | {'; '.join(note for note in notes if note)} |"
        yield ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words; ``|`` would end a cell of the table."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format") or schema.get("type", "any"))


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return f"default `{default}`" if default not in (None, "") else ""


def _errors() -> Iterator[str]:
    yield from ("## Error codes", "", "| status | code |", "|---|---|")
    for code in sorted(ErrorCode, key=lambda code: code.http_status):
        yield f"| {code.http_status} | `{code.value}` |"
    yield ""
