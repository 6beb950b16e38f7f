"""Azure OpenAI on both of its surfaces, and Entra's token endpoint, on one address.

Sources: https://learn.microsoft.com/azure/ai-foundry/openai/reference and recorded streams. The answer is OpenAI's
own, with the content filter's verdicts that Azure puts before and into it.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from .exchange import Received, Rejected, Step, Vendor, Whole, frame
from .openai_chat import OpenAIChat
from .openai_rules import check
from .plan import Plan
from .server import Upstream

SAFE = {"hate": {"filtered": False, "severity": "safe"}}
TOKEN = "entra-token-{}"
_CLASSIC = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|embeddings)")
_TOKEN_PATH = re.compile(r"/([^/]+)/oauth2/v2\.0/token")


class AzureChat(OpenAIChat):
    """Azure's side of Chat Completions, and Entra's side of a token."""

    def __init__(self, key: str, secret: str, deployments: tuple[str, ...]) -> None:
        super().__init__(strict_fields=True)
        self.is_filtered_late = False
        self.tokens = 0
        self.expires_in = 3599
        self._key = key
        self._secret = secret
        self._deployments = deployments

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as Azure would."""
        if _TOKEN_PATH.fullmatch(received.path):
            return
        token = received.headers.get("authorization", "").removeprefix("Bearer ")
        if received.headers.get("api-key") != self._key and (not self.tokens or token != TOKEN.format(self.tokens)):
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise Rejected(text, status=401, code="401")
        if self._deployment(received) not in self._deployments:
            text = "The API deployment for this resource does not exist."
            raise Rejected(text, status=404, code="DeploymentNotFound")
        if not received.path.endswith("/embeddings"):
            check(received.body, True)

    def _deployment(self, received: Received) -> str:
        classic = _CLASSIC.fullmatch(received.path)
        if classic is not None:
            if not parse_qs(received.query).get("api-version"):
                raise Rejected("Resource not found", status=404, code="404")
            return unquote(classic.group(1))
        if received.path not in ("/openai/v1/chat/completions", "/openai/v1/embeddings"):
            raise Rejected("Resource not found", status=404, code="404")
        return str(received.body["model"])

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """Azure's envelope; a filtered prompt says what was wrong with it."""
        error: dict[str, Any] = {"code": rejected.code, "message": rejected.message}
        if rejected.code == "content_filter":
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": SAFE}
            error |= {"param": "prompt", "type": None, "status": rejected.status, "innererror": inner}
        return msgspec.json.encode({"error": error})

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """OpenAI's, after the verdict on the prompt and with those on the answer."""
        opening = {
            "choices": [],
            "created": 0,
            "id": "",
            "model": "",
            "object": "",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}],
        }
        yield Step(frame(plan, msgspec.json.encode(opening)))
        offsets = {"check_offset": 0, "start_offset": 0, "end_offset": 9}
        verdict = {"index": 0, "finish_reason": None, "content_filter_results": SAFE, "content_filter_offsets": offsets}
        for step in super().stream(received, plan):
            if step.is_closing and self.is_filtered_late:
                yield Step(frame(plan, msgspec.json.encode({**opening, "choices": [verdict]})))
            yield step

    def whole(self, received: Received, plan: Plan) -> Whole:
        """A token for the right application, vectors, or an answer."""
        if received.path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return Whole(msgspec.json.encode({"object": "list", "data": [vector], "model": "m", "usage": usage}), [])
        if not _TOKEN_PATH.fullmatch(received.path):
            return super().whole(received, plan)
        form = {name: values[0] for name, values in parse_qs(received.raw.decode()).items()}
        if self._secret not in (form.get("client_secret"), form.get("client_assertion")):
            raise AssertionError(f"the form has no secret: {sorted(form)}")
        self.tokens += 1
        granted = {"token_type": "Bearer", "expires_in": self.expires_in, "access_token": TOKEN.format(self.tokens)}
        return Whole(msgspec.json.encode(granted), [])


class AzureUpstream(Upstream):
    """Azure and Entra on 127.0.0.1. ``key`` is the only API key accepted, ``secret`` the application's."""

    def __init__(self, *, key: str = "azure-key", secret: str = "s3cr3t", deployments: tuple[str, ...]) -> None:
        super().__init__()
        self.azure = AzureChat(key, secret, deployments)

    def _vendor(self, received: Received) -> Vendor:
        return self.azure

    def _accept(self, received: Received, vendor: Vendor) -> Plan:
        vendor.check(received)
        if _TOKEN_PATH.fullmatch(received.path):
            return Plan()
        return self._queue.popleft() if self._queue else self.plan
