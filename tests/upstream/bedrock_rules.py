"""What Bedrock refuses: bad signatures, bodies that AWS's own service model does not allow, conversations out of order.

Signatures are made again with botocore and compared; shapes, unions, lengths, patterns and enums are read from the
service model that botocore ships. Further rules are in the words that Bedrock refuses with.
"""

import base64
import binascii
import re
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.model import ListShape, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator

from .exchange import Received, Rejected

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)
_DOCUMENT_NAME = re.compile(r"[A-Za-z0-9()\[\]-]+(?: [A-Za-z0-9()\[\]-]+)*")
_BUDGET_MIN = 1024


class Keys(NamedTuple):
    """What calls have to be signed with."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    region: str = "eu-west-1"


def check_signature(received: Received, keys: Keys) -> None:
    """Raises ``Rejected`` unless botocore would have signed the request alike."""
    stated = _AUTHORIZATION.fullmatch(received.headers.get("authorization", ""))
    if stated is None:
        raise Rejected("Missing Authentication Token", status=403, code="MissingAuthenticationTokenException")
    key, _, region, service, signed, signature = stated.groups()
    if key != keys.access_key_id or received.headers.get("x-amz-security-token") != keys.session_token:
        raise Rejected(
            "The security token included in the request is invalid.", status=403, code="UnrecognizedClientException"
        )
    if (region, service) != (keys.region, "bedrock") or not {"host", "x-amz-date"} <= set(signed.split(";")):
        raise Rejected("Credential should be scoped to a valid region.", status=403, code="InvalidSignatureException")
    headers = {name: received.headers[name] for name in signed.split(";")}
    url = f"http://{received.headers['host']}{received.path}"
    again = AWSRequest(method=received.method, url=url, data=received.raw, headers=headers)
    again.context["timestamp"] = received.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(*keys[:3]), service, region)
    expected = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
    if expected != signature:
        raise Rejected(
            "The request signature we calculated does not match the signature you provided.",
            status=403,
            code="InvalidSignatureException",
        )


class Issued:
    """The reasoning that this server signed, and the redacted reasoning it gave out."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def note(self, text: str, signature: str) -> None:
        """Remembers a block of an answer."""
        self._known.add((text, signature))

    def note_redacted(self, data: str) -> None:
        """Remembers a block that nobody can read."""
        self._known.add(("", data))

    def check(self, where: str, reasoning: dict[str, Any]) -> None:
        """Raises ``Rejected`` for reasoning that is not as it was given out."""
        thought = reasoning.get("reasoningText")
        mark = (
            ("", reasoning.get("redactedContent")) if thought is None else (thought["text"], thought.get("signature"))
        )
        if mark not in self._known:
            raise Rejected(f"{where}: Invalid `signature` in `thinking` block")


@cache
def _input_shape() -> Any:
    model = botocore.session.get_session().get_service_model("bedrock-runtime")
    return model.operation_model("ConverseStream").input_shape


def check_body(body: Any, model: str, issued: Issued) -> None:
    """Raises ``Rejected``."""
    if not isinstance(body, dict):
        raise Rejected("Unexpected token", code="SerializationException")
    if "modelId" in body:
        raise Rejected("#: extraneous key [modelId] is not permitted")
    report = ParamValidator().validate({**body, "modelId": model}, _input_shape())
    if report.has_errors():
        raise Rejected(f"Malformed input request: {report.generate_report()}")
    _check_shape("body", body, _input_shape())
    turns = body.get("messages") or []
    _check_turns(turns)
    for number, turn in enumerate(turns):
        _check_content(f"messages.{number}", turn, issued)
    _check_results(turns)
    _check_tools(body, turns)
    _check_thinking(body, turns)


def _check_shape(where: str, value: Any, shape: Shape) -> None:
    """What botocore leaves to the server: names it does not know, enums, patterns, base64."""
    if isinstance(shape, StructureShape):
        if shape.is_document_type:
            return
        for name, inner in value.items():
            if name not in shape.members:
                raise Rejected(f"{where}: extraneous key [{name}] is not permitted")
            _check_shape(f"{where}.{name}", inner, shape.members[name])
    elif isinstance(shape, ListShape):
        for number, inner in enumerate(value):
            _check_shape(f"{where}.{number}", inner, shape.member)
    elif isinstance(shape, StringShape):
        _check_string(where, value, shape)
    elif shape.type_name == "blob":
        _check_base64(where, value)


def _check_string(where: str, value: str, shape: StringShape) -> None:
    pattern = shape.metadata.get("pattern")
    if shape.enum and value not in shape.enum:
        raise Rejected(f"{where}: {value!r} is not a valid enum value")
    if pattern and not re.fullmatch(pattern, value):
        raise Rejected(f"Value '{value}' at '{where}' failed to satisfy constraint: pattern {pattern}")


def _check_base64(where: str, value: str) -> None:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(f"{where}: not base64", code="SerializationException") from None


def _check_turns(turns: list[dict[str, Any]]) -> None:
    if not turns or turns[0]["role"] != "user":
        raise Rejected("A conversation must start with a user message. Try again with a conversation that starts so.")
    if any(before["role"] == after["role"] for before, after in pairwise(turns)):
        raise Rejected("A conversation must alternate between user and assistant roles.")


def _check_content(where: str, turn: dict[str, Any], issued: Issued) -> None:
    content = turn["content"]
    if not content:
        raise Rejected(f"The content field in the Message object at {where} is empty.")
    for number, block in enumerate(content):
        place = f"{where}.content.{number}"
        inner = [block, *(block.get("toolResult") or {}).get("content", [])]
        if any("text" in each and not each["text"].strip() for each in inner):
            raise Rejected(f"The text field in the ContentBlock object at {place} is blank.")
        if turn["role"] != "user" and any(name in block for name in ("image", "document", "toolResult")):
            raise Rejected(f"{place}: only the user may say this")
        if turn["role"] != "assistant" and any(name in block for name in ("toolUse", "reasoningContent")):
            raise Rejected(f"{place}: only the assistant may say this")
        if "reasoningContent" in block:
            issued.check(place, block["reasoningContent"])
    if turn["role"] == "assistant" and "reasoningContent" in content[-1]:
        raise Rejected(f"{where}: The final block in an assistant message cannot be `thinking`.")
    documents = [block["document"]["name"] for block in content if "document" in block]
    if documents and not any("text" in block for block in content):
        raise Rejected(f"{where}: a document needs a text beside it")
    if len(set(documents)) != len(documents) or not all(_DOCUMENT_NAME.fullmatch(name) for name in documents):
        raise Rejected(f"{where}: The document file name can only contain alphanumeric characters, once each")


def _ids(turn: dict[str, Any], kind: str) -> list[str]:
    return [block[kind]["toolUseId"] for block in turn["content"] if kind in block]


def _check_results(turns: list[dict[str, Any]]) -> None:
    empty: dict[str, Any] = {"content": []}
    for before, after in zip([empty, *turns], [*turns, empty], strict=True):
        if _ids(before, "toolUse") and sorted(_ids(before, "toolUse")) != sorted(_ids(after, "toolResult")):
            raise Rejected("Expected toolResult blocks for the following Ids")
        if _ids(after, "toolResult") and not _ids(before, "toolUse"):
            raise Rejected("The number of toolResult blocks exceeds the number of toolUse blocks of previous turn.")


def _check_tools(body: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    has_calls = any(_ids(turn, "toolUse") for turn in turns)
    if has_calls and "toolConfig" not in body:
        raise Rejected("The toolConfig field must be defined when using toolUse and toolResult content blocks.")
    config = body.get("toolConfig") or {"tools": []}
    names = [tool["toolSpec"]["name"] for tool in config["tools"] if "toolSpec" in tool]
    if len(set(names)) != len(names):
        raise Rejected("The tool names must be unique.")
    for tool in config["tools"]:
        if "toolSpec" in tool and tool["toolSpec"]["inputSchema"]["json"].get("type") != "object":
            raise Rejected("The value at toolConfig.tools.0.toolSpec.inputSchema.json.type must be one of: object.")
    chosen = (config.get("toolChoice") or {}).get("tool")
    if chosen is not None and chosen["name"] not in names:
        raise Rejected("The chosen tool is not defined.")


def _check_thinking(body: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    thinking = (body.get("additionalModelRequestFields") or {}).get("thinking") or {}
    if thinking.get("type") != "enabled":
        return
    config = body.get("inferenceConfig") or {}
    if not _BUDGET_MIN <= thinking["budget_tokens"] < config.get("maxTokens", 4096):
        raise Rejected("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if config.get("temperature") not in (None, 1) or "top_k" in body["additionalModelRequestFields"]:
        raise Rejected("`temperature` may only be set to 1 when thinking is enabled.")
    if {"any", "tool"} & set((body.get("toolConfig") or {}).get("toolChoice") or {}):
        raise Rejected("Thinking may not be enabled when tool_choice forces tool use.")
    last: list[dict[str, Any]] = next((turn["content"] for turn in reversed(turns) if turn["role"] == "assistant"), [])
    if any("toolUse" in block for block in last) and "reasoningContent" not in last[0]:
        raise Rejected("Expected `thinking` or `redacted_thinking`, but found `tool_use`.")
