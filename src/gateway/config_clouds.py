"""The configuration's sections about clouds, where a key alone does not say who calls.

``config.py`` has the rest, and hands these on with it.
"""

from datetime import date

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A part of the configuration; keys it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AwsConfig(Section):
    """How Amazon Bedrock is called; without keys they are looked for where AWS's own tools look."""

    region: str | None = Field(None, pattern=r"^[a-z0-9-]{4,32}$", description="Unset, `AWS_REGION` says it.")
    profile: str | None = Field(None, description="A profile of AWS's configuration files, with the role it names.")
    access_key_id: str | None = Field(None, description="A key of your own, as `${ENV_NAME}`.")
    secret_access_key: str | None = Field(None, description="Its secret, as `${ENV_NAME}`.")
    session_token: str | None = Field(None, description="Where the key is a temporary one, as `${ENV_NAME}`.")


class AzureConfig(Section):
    """How Azure OpenAI is called: which surface, and the application that Microsoft Entra knows the gateway as."""

    api_version: str | None = Field(
        None, pattern=r"^[A-Za-z0-9.-]{1,40}$", description="Chooses the classic surface; unset, it is `/openai/v1`."
    )
    tenant_id: str | None = Field(None, pattern=r"^[A-Za-z0-9.-]{1,128}$", description="Unset, `AZURE_TENANT_ID`.")
    client_id: str | None = Field(None, description="Unset, `AZURE_CLIENT_ID`.")
    client_secret: str | None = Field(None, description="As `${ENV_NAME}`; unset, `AZURE_CLIENT_SECRET`.")
    token_file: str | None = Field(
        None,
        description="Instead of a secret: what a platform identifies the gateway with. `AZURE_FEDERATED_TOKEN_FILE`.",
    )
    authority: str | None = Field(None, pattern=r"^https?://", description="Entra's address in another cloud.")

    @field_validator("api_version", mode="before")
    @classmethod
    def _spell_version(cls, value: object) -> object:
        """YAML reads a version that looks like a date as one."""
        return value.isoformat() if isinstance(value, date) else value


class GoogleConfig(Section):
    """How Vertex AI is called; without a file the identity is looked for where Google's own tools look."""

    project: str | None = Field(
        None, pattern=r"^[a-z0-9.:-]{1,64}$", description="The project's id; unset, `GOOGLE_CLOUD_PROJECT`."
    )
    region: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]{2,32}$",
        description="A region, `us`, `eu` or `global`; unset, `GOOGLE_CLOUD_LOCATION`, else `global`.",
    )
    credentials_file: str | None = Field(None, description="The JSON key of a service account.")
