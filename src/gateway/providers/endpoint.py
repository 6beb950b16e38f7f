"""Where a provider is called, and with which credential, for each wire format.

Credentials stand in headers that are bound to the one URL of their provider.
"""

from collections.abc import Callable

import msgspec

from gateway.providers.credentials import Credentials
from gateway.providers.provider import Hangup, Timeouts

# The version whose parameters every Anthropic model still takes; the newer one refuses sampling parameters outright.
_ANTHROPIC_VERSION = "2023-06-01"

# Stands in the URL of an endpoint whose path names the model.
MODEL_IN_URL = "{model}"


class Unseen(msgspec.Struct, frozen=True, kw_only=True):
    """Which models bill tokens they do not send: those ``models`` matches, or all that are asked to reason.

    ``always`` is the operator's word on every model, ``None`` where nothing was said.
    """

    models: str | None = None
    always: bool | None = None
    if_asked: bool = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how one provider is called. ``headers`` hold its credential, ``vendor`` is the price book's name.

    ``url`` may hold ``{model}``. ``embeddings_url`` is ``None`` where its format has no embeddings. ``credentials`` is
    for a provider whose credential is not one fixed header.
    """

    name: str
    vendor: str
    url: str
    headers: dict[str, str]
    timeouts: Timeouts = Timeouts()
    models: tuple[str, ...] = ()
    hangup: Hangup = Hangup()
    unseen: Unseen = Unseen()
    embeddings_url: str | None = None
    credentials: Credentials | None = None


class _Style(msgspec.Struct, frozen=True):
    path: str
    headers: Callable[[str | None], dict[str, str]]
    embeddings: str | None = None


def _openai_headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _anthropic_headers(key: str | None) -> dict[str, str]:
    return {"anthropic-version": _ANTHROPIC_VERSION, **({"x-api-key": key} if key else {})}


def _gemini_headers(key: str | None) -> dict[str, str]:
    return {"x-goog-api-key": key} if key else {}


_STYLES = {
    "openai": _Style("/chat/completions", _openai_headers, "/embeddings"),
    "openai_responses": _Style("/responses", _openai_headers, "/embeddings"),
    "anthropic": _Style("/messages", _anthropic_headers),
    "gemini": _Style(f"/models/{MODEL_IN_URL}:streamGenerateContent?alt=sse", _gemini_headers),
}


def build_endpoint(name: str, style: str, *, base_url: str, key: str | None, vendor: str) -> Endpoint:
    """An endpoint of a style (``openai``, ``openai_responses``, ``anthropic``, ``gemini``), with usual time limits."""
    chosen = _STYLES[style]
    base = base_url.rstrip("/")
    return Endpoint(
        name=name,
        vendor=vendor,
        url=base + chosen.path,
        headers=chosen.headers(key),
        embeddings_url=base + chosen.embeddings if chosen.embeddings is not None else None,
    )
