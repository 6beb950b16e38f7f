"""Where Azure OpenAI is called: the v1 surface, or the classic one that names deployment and version in the URL.

The model is the deployment's name on both. A request goes out in OpenAI's own format; where it names the model in the
URL too, what the body says of it is of no account.
"""

from collections.abc import Mapping

import msgspec

from gateway.providers.azure_credentials import AUTHORITY, Entra, EntraCredentials
from gateway.providers.endpoint import MODEL_IN_URL, Endpoint

KEY_ENV = "AZURE_OPENAI_API_KEY"


class Azure(msgspec.Struct, frozen=True, kw_only=True):
    """How Azure is called. ``api_version`` chooses the classic surface; the other fields are for a token of Entra's.

    What is missing of the application is taken from the variables that Azure's own tools read.
    """

    api_version: str | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    token_file: str | None = None
    authority: str | None = None


class IncompleteAzure(ValueError):
    """Something is missing; the message names it."""


def build_azure(
    name: str, vendor: str, settings: Azure, *, base_url: str | None, key: str | None, environment: Mapping[str, str]
) -> Endpoint:
    """An endpoint; ``base_url`` is the resource's. Raises ``IncompleteAzure``."""
    if base_url is None:
        raise IncompleteAzure("base_url is missing: the resource's, e.g. https://<resource>.openai.azure.com")
    base = base_url.rstrip("/").removesuffix("/v1").removesuffix("/openai") + "/openai"
    if settings.api_version is not None:
        base += f"/deployments/{MODEL_IN_URL}"
        query = f"?api-version={settings.api_version}"
    else:
        base, query = f"{base}/v1", ""
    own_key = key or (environment.get(KEY_ENV) if settings.client_id is None else None)
    return Endpoint(
        name=name,
        vendor=vendor,
        url=f"{base}/chat/completions{query}",
        embeddings_url=f"{base}/embeddings{query}",
        headers={"api-key": own_key} if own_key else {},
        credentials=None if own_key else EntraCredentials(_entra(settings, environment)),
    )


def _entra(settings: Azure, environment: Mapping[str, str]) -> Entra:
    tenant_id = settings.tenant_id or environment.get("AZURE_TENANT_ID")
    client_id = settings.client_id or environment.get("AZURE_CLIENT_ID")
    secret = settings.client_secret or environment.get("AZURE_CLIENT_SECRET")
    token_file = settings.token_file or (None if secret else environment.get("AZURE_FEDERATED_TOKEN_FILE"))
    if not tenant_id or not client_id or not (secret or token_file):
        raise IncompleteAzure(
            f"a credential is missing: api_key or {KEY_ENV}, or azure.tenant_id, azure.client_id and "
            "azure.client_secret (or azure.token_file)"
        )
    return Entra(
        tenant_id=tenant_id,
        client_id=client_id,
        client_secret=secret,
        token_file=token_file,
        authority=settings.authority or environment.get("AZURE_AUTHORITY_HOST") or AUTHORITY,
    )
