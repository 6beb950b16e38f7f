"""Where Amazon Bedrock is called and with which proof: a Bedrock API key, or a signature of every call.

The model stands in the path, an ARN like an id, with what is special in a path written as ``%3A`` and ``%2F``.
"""

from collections.abc import Mapping

import msgspec

from gateway.providers.aws_credentials import SigV4Credentials, fixed_keys, keys_of_session
from gateway.providers.endpoint import MODEL_IN_URL, Endpoint

# AWS's own name for the variable.
KEY_ENV = "AWS_BEARER_TOKEN_BEDROCK"
_REGION_ENV = ("AWS_REGION", "AWS_DEFAULT_REGION")


class Aws(msgspec.Struct, frozen=True, kw_only=True):
    """How AWS is called. Without keys and ``profile``, keys are looked for where AWS's own tools do."""

    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None


class IncompleteAws(ValueError):
    """Something is missing; the message names it."""


def build_bedrock(
    name: str, vendor: str, settings: Aws, *, base_url: str | None, key: str | None, environment: Mapping[str, str]
) -> Endpoint:
    """An endpoint; ``base_url`` is for one inside a VPC. Raises ``IncompleteAws``. Nothing is looked up yet."""
    region = settings.region or next((environment[name] for name in _REGION_ENV if environment.get(name)), None)
    if region is None:
        raise IncompleteAws("aws.region is missing, and the environment has no AWS_REGION")
    if (settings.access_key_id is None) != (settings.secret_access_key is None):
        raise IncompleteAws("aws.access_key_id and aws.secret_access_key belong together")
    base = base_url or f"https://bedrock-runtime.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    has_own_keys = settings.access_key_id is not None or settings.profile is not None
    bearer = key or (None if has_own_keys else environment.get(KEY_ENV))
    return Endpoint(
        name=name,
        vendor=vendor,
        url=f"{base.rstrip('/')}/model/{MODEL_IN_URL}/converse-stream",
        headers={"authorization": f"Bearer {bearer}"} if bearer else {},
        credentials=None if bearer else _signing(settings, region),
    )


def _signing(settings: Aws, region: str) -> SigV4Credentials:
    if settings.access_key_id is not None and settings.secret_access_key is not None:
        source = fixed_keys(settings.access_key_id, settings.secret_access_key, settings.session_token)
    else:
        source = keys_of_session(settings.profile)
    return SigV4Credentials(source, service="bedrock", region=region)
