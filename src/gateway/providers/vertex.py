"""Where Vertex AI is called: Gemini, and Claude in Anthropic's own format, in one project and region.

The two are providers of their own, since their formats differ; they share the project and the proof of who calls.
Reference: https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference and
https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.canonical.errors import ProviderError
from gateway.canonical.request import Request
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.gemini.errors import decode_error as decode_google_error
from gateway.protocols.wire import NO_HEADERS
from gateway.providers.credentials import Credentials
from gateway.providers.endpoint import MODEL_IN_URL, Endpoint

GEMINI, CLAUDE = "vertex", "vertex_anthropic"
KINDS = (GEMINI, CLAUDE)

_ANTHROPIC_VERSION = "vertex-2023-10-16"
_PROJECT_ENV = ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT")
_REGION_ENV = ("GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION", "CLOUD_ML_REGION")
_GLOBAL = "global"
_MULTI_REGIONS = ("us", "eu")
# Per kind: the API's version, and the publisher with what is called of its models.
_PATHS = {
    GEMINI: ("v1beta1", f"publishers/google/models/{MODEL_IN_URL}:streamGenerateContent?alt=sse"),
    CLAUDE: ("v1", f"publishers/anthropic/models/{MODEL_IN_URL}:streamRawPredict"),
}

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANSWER = msgspec.json.Decoder()


class Google(msgspec.Struct, frozen=True, kw_only=True):
    """How Google Cloud is called; without ``credentials_file`` the identity is looked for where Google's tools do."""

    project: str | None = None
    region: str | None = None
    credentials_file: str | None = None


class IncompleteGoogle(ValueError):
    """Something is missing; the message names it."""


def build_vertex(
    name: str, vendor: str, settings: Google, *, kind: str, base_url: str | None, environment: Mapping[str, str]
) -> Endpoint:
    """An endpoint; ``base_url`` is for a private one, with its version. Raises ``IncompleteGoogle``."""
    project = settings.project or _first(environment, _PROJECT_ENV)
    if project is None:
        raise IncompleteGoogle("google.project is missing, and the environment has no GOOGLE_CLOUD_PROJECT")
    region = settings.region or _first(environment, _REGION_ENV) or _GLOBAL
    version, path = _PATHS[kind]
    base = (base_url or f"https://{host_of(region)}/{version}").rstrip("/")
    return Endpoint(
        name=name,
        vendor=vendor,
        url=f"{base}/projects/{project}/locations/{region}/{path}",
        headers={},
        credentials=_credentials(settings.credentials_file),
    )


def host_of(region: str) -> str:
    """Vertex's host: one per region, and others for the world and for whole continents."""
    if region == _GLOBAL:
        return "aiplatform.googleapis.com"
    if region in _MULTI_REGIONS:
        return f"aiplatform.{region}.rep.googleapis.com"
    return f"{region}-aiplatform.googleapis.com"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _credentials(file: str | None) -> Credentials:
    try:
        auth: Any = importlib.import_module("gateway.providers.google_auth")
    except ImportError as error:
        raise IncompleteGoogle(f"Vertex AI needs the extra 'vertex' ({error.name} is not installed)") from None
    source = auth.machine_identity if file is None else auth.service_account_of(file)
    credentials: Credentials = auth.GoogleCredentials(source)
    return credentials


class VertexAnthropicClient(AnthropicMessagesClient):
    """Anthropic Messages as Vertex takes it: the model stands in the URL and the version in the body."""

    def encode_request(self, request: Request, model: str) -> bytes:
        """The body of a streaming call. Raises ``RequestError`` for what the format cannot carry."""
        fields: dict[str, Any] = dict(_FIELDS.decode(super().encode_request(request, model)))
        del fields["model"]
        fields["anthropic_version"] = _ANTHROPIC_VERSION
        return msgspec.json.encode(fields)

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """Google's own error where the call did not get as far as the model, else Anthropic's."""
        if _is_googles(body):
            return decode_google_error(status, body, provider)
        return super().decode_error(status, body, provider, headers)


def _is_googles(body: bytes) -> bool:
    try:
        answer = _ANSWER.decode(body)
    except (ValueError, RecursionError):
        return False
    if isinstance(answer, list):
        return True
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and "code" in error
