"""The configuration: one YAML file and a few environment variables, as frozen values.

Only the composition root (``app.py``, ``wiring.py``) and the command line import this room; everything else is handed
what it needs. Every key is documented here, and the reference in docs is made from it. ``config_file.py`` reads it.
"""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.catalogue.cards import Capability, Refusable
from gateway.config_clouds import AwsConfig as AwsConfig
from gateway.config_clouds import AzureConfig as AzureConfig
from gateway.config_clouds import GoogleConfig as GoogleConfig
from gateway.config_clouds import Section as _Section
from gateway.config_prices import PriceConfig as PriceConfig
from gateway.config_prices import Usd

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Share = Annotated[float, Field(gt=0, le=1)]


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and why."""


EndpointName = Literal[
    "openai_chat",
    "openai_responses",
    "openai_completions",
    "openai_embeddings",
    "anthropic_messages",
    "ai_sdk_4",
    "ai_sdk_ui",
]


class TimeoutsConfig(_Section):
    """How long a provider may take, in seconds."""

    connect_s: Seconds = Field(5, description="To accept a connection.")
    first_event_s: Seconds = Field(120, description="From the call to the first event.")
    idle_s: Seconds = Field(60, description="Between two events.")
    total_s: Seconds = Field(1800, description="For a whole answer.")


BuiltInType = Literal[
    "openai", "openai_responses", "anthropic", "gemini", "bedrock", "azure", "vertex", "vertex_anthropic"
]


class ProviderConfig(_Section):
    """A provider. The name decides the defaults where it is a well-known one."""

    type: BuiltInType | Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = Field(
        None,
        description="The wire format it speaks: `openai` is Chat Completions; unset, it is that of its name. Another "
        "name is a type that an installed package brings.",
    )
    settings: dict[str, Any] = Field({}, description="For a type that an installed package brings: whatever it takes.")
    base_url: str | None = Field(None, description="Its address, with `/v1` where it has one.", pattern=r"^https?://")
    api_key: str | None = Field(None, description="Its key, as `${ENV_NAME}`.")
    aws: AwsConfig = Field(AwsConfig(), description="For `type: bedrock`.")
    azure: AzureConfig = Field(AzureConfig(), description="For `type: azure`.")
    google: GoogleConfig = Field(GoogleConfig(), description="For `type: vertex` and `type: vertex_anthropic`.")
    models: tuple[str, ...] = Field((), description="Models to list in `/v1/models`; others work too.")
    price: PriceConfig | None = Field(None, description="The price of every model of this provider.")
    price_book: str | None = Field(None, description="The provider's name in the price book, where it differs.")
    timeouts: TimeoutsConfig = Field(TimeoutsConfig(), description="Its time limits.")
    on_disconnect: Literal["cancel", "drain", "free"] = Field(
        "cancel",
        description="What happens when a client leaves: `cancel` hangs up and charges what was sent; `drain` reads on, "
        "for a provider that bills the whole answer anyway, as for models that are held in full; `free` hangs up and "
        "charges nothing, nor where it fails within an answer.",
    )
    disconnect_charge: Literal["provider", "delivered"] = Field(
        "provider", description="With `drain`: charge what the provider bills, or what the client was sent."
    )
    drain_s: Seconds = Field(60, description="How long an answer is drained at most.")
    hold: Literal["slice", "full"] | None = Field(
        None,
        description="`full` holds the cost of the longest possible answer before the call; where unset, for models "
        "that reason unseen and for providers that are drained.",
    )


class CapacityConfig(_Section):
    """What all accounts together may ask of a model or of a target."""

    requests_per_minute: int | None = Field(None, ge=1, description="Requests per minute.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Tokens per minute.")
    streams: int | None = Field(None, ge=1, description="Requests that run at once.")


class TargetConfig(_Section):
    """One of an alias's targets; a bare `provider/model` is one of weight 1."""

    model: str = Field(description="`provider/model`.")
    weight: float = Field(1, ge=0, le=1000, description="Its share of requests; 0 for when all others fail.")
    capacity: CapacityConfig | None = Field(
        None, description="What all gateways together may ask of it, under this and any other name."
    )


class MirrorConfig(_Section):
    """A share of a model's requests that another model is asked as well, unseen by clients and at your expense."""

    to: str = Field(
        pattern=r"^[!-)+-~]{1,256}$",
        description="The other model, an alias or `provider/model`; one that has no mirror itself.",
    )
    share: Share = Field(description="Of the requests that were let in: 0.05 is one of twenty.")
    account: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="The account that pays, one of your own; its tier's limits hold for mirrors.",
    )
    streams: int = Field(
        20, ge=1, le=10_000, description="Mirrors that run at once in one process; beyond it, requests have none."
    )


class HedgeConfig(_Section):
    """When another target is asked as well, since the first is late to begin; whichever begins first answers."""

    percentile: float = Field(
        95, ge=50, lt=100, description="Later than this percentage of the target's own last requests."
    )
    at_least_ms: int = Field(200, ge=0, le=600_000, description="And not before so many milliseconds.")


class ModelConfig(_Section):
    """A model's own name, what stands behind it, and what it costs."""

    targets: tuple[TargetConfig, ...] = Field(
        (), description="`provider/model`, one or several. Left out for a name that is `provider/model` itself."
    )
    strategy: Literal["priority", "weighted", "least_in_flight", "lowest_latency", "cheapest"] = Field(
        "priority", description="Which target is asked first; `priority` is the order of the list."
    )
    sticky: Literal["account", "chat"] | None = Field(
        None, description="Whose requests all go to one target while it is well, for its prompt cache."
    )
    hedge: HedgeConfig | None = Field(None, description="Ask a second target where one is late; unset, never.")
    price: PriceConfig | None = Field(None, description="Overrides the price of its targets.")
    output_tokens_max: int | None = Field(
        None, ge=1, le=100_000_000, description="The most its targets can say; bounds what has to be held."
    )
    hold: Literal["slice", "full"] | None = Field(None, description="Overrides its providers' `hold`.")
    tokenizer: Literal["o200k", "cl100k", "bytes"] | None = Field(
        None, description="How its tokens are counted; guessed from its name where unset."
    )
    context_tokens: int | None = Field(
        None, ge=1, le=1_000_000_000, description="The longest prompt it takes, by the gateway's count."
    )
    capabilities: tuple[Capability, ...] | None = Field(
        None,
        description="All it can do: `tools`, `images`, `documents`, `audio`, `reasoning`, `json_schema`. Requests that "
        "need another one are refused, or go to another target; unset, what the catalogue knows.",
    )
    refuses: tuple[Refusable, ...] | None = Field(
        None, description="Parameters it is sent without, such as `temperature`; unset, what the catalogue knows."
    )
    capacity: CapacityConfig | None = Field(None, description="What all accounts together may ask of it.")
    mirror: MirrorConfig | None = Field(None, description="Another model that a share of its requests goes to as well.")

    @field_validator("targets", mode="before")
    @classmethod
    def _bare_names(cls, targets: object) -> object:
        if not isinstance(targets, list | tuple):
            return targets
        return [{"model": target} if isinstance(target, str) else target for target in targets]


class RoutingConfig(_Section):
    """When a target is asked again, and when it is left alone for a while in favour of others."""

    retries: int = Field(1, ge=0, le=5, description="How often all targets are asked once more, after a pause.")
    retry_share: float = Field(0.2, ge=0, le=1, description="At most this share of a target's requests is repeated.")
    failures_in_a_row: int = Field(5, ge=1, le=1000, description="So many, and it is left alone.")
    failures_share: Share = Field(0.5, description="Or this share of the last half minute's requests, of ten or more.")
    rest_s: Seconds = Field(5, description="For how long; doubled while it goes on to fail, up to two minutes.")


class RequestsConfig(_Section):
    """A token bucket for requests."""

    limit: int = Field(ge=1, le=1_000_000_000, description="Requests per period.")
    period_s: Seconds = Field(60, description="The period, in seconds.")
    burst: int | None = Field(None, ge=1, le=1_000_000_000, description="At most at once; `limit` where unset.")


class TokensConfig(_Section):
    """A token bucket for tokens, input and output together."""

    limit: int = Field(ge=1, le=1_000_000_000, description="Tokens per period.")
    period_s: Seconds = Field(60, description="The period, in seconds.")
    burst: int | None = Field(None, ge=1, le=1_000_000_000, description="At most at once; `limit` where unset.")


class LimitConfig(_Section):
    """One more limit: exactly one of `requests`, `tokens`, `streams` and `budget_usd` says what it counts."""

    per: Literal["account", "key", "user", "model", "tier"] = Field(
        "account",
        description="Whose share it is: each account's, each of its keys', each of its users', each model's within an "
        "account, or all accounts of the tier together.",
    )
    requests: int | None = Field(None, ge=1, le=1_000_000_000, description="Requests per period or window.")
    tokens: int | None = Field(None, ge=1, le=1_000_000_000_000, description="Tokens per period or window.")
    streams: int | None = Field(None, ge=1, le=1_000_000, description="Requests that run at once.")
    budget_usd: Usd | None = Field(None, description="Money per window.")
    period_s: Seconds = Field(60, description="The period of a token bucket, in seconds.")
    burst: int | None = Field(None, ge=1, description="What the bucket holds; one period's worth where unset.")
    window: str | None = Field(
        None,
        pattern=r"^([1-9][0-9]{0,4}[smhd]|day|week|month)$",
        description="Count over a window instead of a bucket: a rolling one (`24h`, `30d`, `90m`) or a calendar one "
        "(`day`, `week`, `month`). A budget needs one.",
    )
    timezone: str = Field("UTC", description="Where a calendar window begins, e.g. `Europe/Berlin`.")
    models: tuple[str, ...] = Field((), description="Only for these models (`*` matches anything); all where empty.")
    mode: Literal["enforce", "shadow"] = Field("enforce", description="`shadow` only counts what it would refuse.")


class FlowConfig(_Section):
    """What a running stream may look like, and what happens where it does not."""

    tokens_per_minute: int | None = Field(None, ge=60, description="Output rate of one stream; any where unset.")
    rate_action: Literal["pace", "warn", "downgrade", "cut"] = Field(
        "pace", description="What happens to a stream above `tokens_per_minute`."
    )
    loop_action: Literal["off", "pace", "warn", "downgrade", "cut"] = Field(
        "off", description="What happens to a stream that repeats itself without end."
    )
    identical_prompts: int | None = Field(
        None, ge=1, le=1_000_000, description="How often an account may send the same prompt in ten minutes."
    )
    identical_action: Literal["pace", "warn", "downgrade", "cut"] = Field(
        "cut", description="What happens to one more: `cut` refuses it."
    )
    downgrade_to: str | None = Field(None, description="The cheaper model that `downgrade` uses for the next turns.")
    downgrade_s: Seconds = Field(600, description="How long a downgrade lasts.")


class TierConfig(_Section):
    """What the accounts of a tier may do."""

    requests: RequestsConfig = Field(RequestsConfig(limit=600), description="How many requests per period.")
    tokens: TokensConfig | None = Field(None, description="How many tokens per period; any where unset.")
    concurrent_streams: int = Field(100, ge=1, le=1_000_000, description="How many may run at once.")
    tokens_per_request: int | None = Field(
        None, ge=1, le=100_000_000, description="Input and output of one request together; any where unset."
    )
    limits: tuple[LimitConfig, ...] = Field((), max_length=12, description="Further limits.")
    models: tuple[str, ...] | None = Field(
        None, description="Models the tier may use (`*` matches anything); all where unset."
    )
    features: tuple[str, ...] | None = Field(
        None,
        description="What the tier may do: `stream`, `tools`, `images`, `documents`, `audio`, `reasoning`, "
        "`structured_output`, `choices`; all where unset.",
    )
    endpoints: tuple[EndpointName, ...] | None = Field(
        None, description="Which endpoints the tier may use, by protocol; all where unset."
    )
    strategy: Literal["fixed", "load", "trust", "adaptive"] = Field(
        "fixed", description="How rates follow the load of the gateways and the account's history."
    )
    flow: FlowConfig = Field(FlowConfig(), description="Rules for running streams.")


class VariantConfig(_Section):
    """One arm of an experiment; what is unset is as in the tier."""

    share: int = Field(ge=1, le=100, description="Per cent of the tier's accounts.")
    requests: RequestsConfig | None = Field(None, description="How many requests per period.")
    tokens: TokensConfig | None = Field(None, description="How many tokens per period.")
    concurrent_streams: int | None = Field(None, ge=1, le=1_000_000, description="How many may run at once.")
    tokens_per_request: int | None = Field(None, ge=1, le=100_000_000, description="Tokens of one request.")


class ExperimentConfig(_Section):
    """A comparison of limits: each account of the tier is assigned to one variant for as long as it runs."""

    tier: str = Field(description="The tier whose accounts take part.")
    start: AwareDatetime = Field(description="When it begins, e.g. `2026-12-01T00:00:00Z`.")
    end: AwareDatetime = Field(description="When it ends.")
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")], VariantConfig] = Field(
        min_length=2, max_length=8, description="The arms; their shares add up to at most 100, the rest take no part."
    )


class WebhookConfig(_Section):
    """Where alerts go."""

    url: str = Field(pattern=r"^https?://", description="An address that takes a POST of JSON.")
    secret: str | None = Field(None, description="Signs each alert (HMAC-SHA256), as `${ENV_NAME}`.")


class AlertsConfig(_Section):
    """What is worth waking someone up; each compares the last hour of all gateways."""

    cost_usd_per_hour: Usd | None = Field(Decimal(100), description="Cost per hour; null for none.")
    error_share: Share | None = Field(0.05, description="Requests that failed, of those that ran.")
    refused_share: Share | None = Field(0.5, description="Requests that were refused, of all.")
    abuse_share: Share | None = Field(0.10, description="Requests in which abuse was found, of all.")
    drift_share: Share | None = Field(0.10, description="Our token count against the provider's, of its.")
    absorbed_usd: Usd | None = Field(Decimal(0), description="Cost that no account could cover: more than this.")
    requests_min: int = Field(20, ge=1, description="Shares are not looked at below this many requests.")
    repeat_s: Seconds = Field(3600, description="How soon the same alert is sent again.")
    webhook: WebhookConfig | None = Field(None, description="Where alerts go beside the log.")


class JwtConfig(_Section):
    """Bearer tokens of an issuer to trust."""

    issuer: str = Field(description="The `iss` claim.")
    audience: tuple[str, ...] = Field(min_length=1, description="Accepted `aud` values.")
    jwks_url: str | None = Field(None, description="Where the issuer publishes its keys.")
    secret: str | None = Field(None, description="A shared HS256 secret, instead of `jwks_url`.")
    algorithms: tuple[str, ...] = Field(("RS256", "ES256"), description="Accepted signature algorithms.")
    leeway_s: int = Field(30, ge=0, le=300, description="Tolerated clock difference.")
    account_claim: str = Field("account", description="The claim that names the account; a dotted path works.")
    tier_claim: str | None = Field("tier", description="The claim that names the tier.")
    scopes_claim: str = Field("scope", description="The claim that lists scopes.")
    models_claim: str | None = Field(None, description="The claim that lists allowed models.")


class HoldConfig(_Section):
    """How credit is held for running streams."""

    slice_s: Seconds = Field(4, description="A hold covers this much of a stream's own rate.")
    lease_s: Annotated[float, Field(ge=3, le=300)] = Field(
        9, description="How long a hold outlives a gateway that crashed."
    )
    reap_charge: Literal["used", "held"] = Field(
        "used", description="What a stream pays whose gateway and journal are lost: what Redis knew, or its hold."
    )


class ServerConfig(_Section):
    """The HTTP side."""

    body_bytes_max: int = Field(32 * 1024 * 1024, ge=1024, description="Largest request body.")
    streams_max: int = Field(
        1000, ge=1, le=30_000, description="How many streams one process is meant for; what load is measured against."
    )
    drain_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        30, description="How long running streams may finish after SIGTERM."
    )
    commit_s: Seconds = Field(5, description="When to send the status line although the provider has not answered.")
    heartbeat_s: Seconds = Field(10, description="How often a quiet stream gets a heartbeat.")
    send_timeout_s: Seconds = Field(30, description="When a client that takes nothing is cut.")
    cors_origins: tuple[str, ...] = Field(("*",), description="Browser origins that may call; empty for none.")


class ChatConfig(_Section):
    """The AI SDK's routes, `/api/chat` and `/api/completion`."""

    default_model: str | None = Field(
        None, pattern=r"^[!-~]{1,256}$", description="The model of a request that names none."
    )
    ui_stream_compat: Literal["5-strict", "5", "6", "7"] = Field(
        "5-strict", description="What the stream may hold: `5-strict` is what AI SDK 5.0.0 already takes."
    )
    resumable: bool = Field(
        False,
        description="Whether an answer goes on when its page goes away, to be read on from any gateway; "
        "a request says otherwise with `x-gateway-resumable`.",
    )


class ResumeConfig(_Section):
    """Answers that outlive their client's connection, and the log in Redis from which they are read again."""

    orphan_s: Seconds = Field(60, description="How long an answer goes on that nobody reads.")
    kept_s: Seconds = Field(300, description="How long an answer that ended unread can still be read.")
    bytes_max: int = Field(
        4_194_304, ge=1024, description="The most that is kept of one answer; a longer one cannot be resumed."
    )
    readers_max: int = Field(
        100, ge=1, description="How many answers one account may read again at once, from each process."
    )


class RedisConfig(_Section):
    """What is expected of Redis."""

    durability: Literal["aof", "none"] = Field(
        "aof", description="`none` accepts a Redis that keeps no append-only file: a restart of it loses balances."
    )


class ResponsesConfig(_Section):
    """Responses that can be asked for and gone on from later (`store`, `previous_response_id`)."""

    store: bool = Field(True, description="`false` stores none, whatever a client asks for.")
    ttl_s: float = Field(
        259_200, ge=1, le=31_536_000, description="How long one is kept after it was last gone on from, in seconds."
    )
    response_bytes_max: int = Field(
        4 * 1024 * 1024, ge=1024, description="The most that is kept of one: its own input and its answer, as JSON."
    )
    conversation_bytes_max: int = Field(
        16 * 1024 * 1024, ge=1024, description="The most that one request may go on from."
    )
    account_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1024, description="The most that is kept of one account; beyond it, its oldest go."
    )


class ReloadConfig(_Section):
    """How a change of this file is noticed, beside SIGHUP and `POST /admin/v1/config/reload`."""

    watch: bool = Field(True, description="Whether the file is looked at every second.")


class LogConfig(_Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level written.")


class Config(_Section):
    """The whole file."""

    providers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], ProviderConfig] = Field(
        {}, description="Providers beside the well-known ones whose key is in the environment."
    )
    models: dict[Annotated[str, Field(pattern=r"^[!-~]{1,256}$")], ModelConfig] = Field(
        {},
        description="Names of your own for models, and what is to be said of models: `provider/model`, or "
        "`provider/*` for what their own names leave unsaid.",
    )
    catalogue: Path | None = Field(
        None,
        description="A file of model cards that `gateway models refresh` writes; unset, `models.json` in the data "
        "directory, if it is there.",
    )
    routing: RoutingConfig = Field(RoutingConfig(), description="Further tries, and targets that fail.")
    tiers: dict[str, TierConfig] = Field({}, description="Named sets of limits; `default` is everybody else's.")
    unpriced: Literal["refuse", "free"] = Field("refuse", description="What happens to a model without a price.")
    jwt: JwtConfig | None = Field(None, description="Accept an issuer's tokens beside API keys.")
    experiments: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")], ExperimentConfig] = Field(
        {}, description="Comparisons of limits between accounts of a tier."
    )
    alerts: AlertsConfig = Field(AlertsConfig(), description="When to tell the operator.")
    credits: Literal["on", "off"] = Field(
        "on", description="`off` runs without money: limits hold, usage is recorded, nothing is charged."
    )
    redis_away: Literal["open", "closed"] = Field(
        "open",
        description="With `credits: off`, whether each gateway keeps its share of the rates alone while Redis is away, "
        "or requests are refused. Where money counts they always are.",
    )
    holds: HoldConfig = Field(HoldConfig(), description="How credit is held.")
    chat: ChatConfig = Field(ChatConfig(), description="The AI SDK's routes.")
    resume: ResumeConfig = Field(ResumeConfig(), description="Answers that outlive their client's connection.")
    responses: ResponsesConfig = Field(ResponsesConfig(), description="Stored responses.")
    redis: RedisConfig = Field(RedisConfig(), description="What is expected of Redis.")
    server: ServerConfig = Field(ServerConfig(), description="The HTTP side.")
    reload: ReloadConfig = Field(ReloadConfig(), description="How a change of this file is noticed.")
    log: LogConfig = Field(LogConfig(), description="Logging.")


class Environment(BaseSettings):
    """The environment variables the gateway reads; provider keys are read by name beside these."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_ignore_empty=True, frozen=True, extra="ignore")

    config: Path | None = Field(None, description="Path of the configuration file; `gateway.yaml` if that exists.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes that serve; more than one share the port, and nothing else but Redis."
    )
    redis_url: str | None = Field(
        None,
        description="`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://`, `rediss+sentinel://`, "
        "`redis+cluster://` or `rediss+cluster://`; unset, the gateway starts its own.",
    )
    redis_fsync: Literal["everysec", "always"] = Field(
        "everysec",
        description="When the gateway's own Redis has its file on the disk: once a second, which loses nothing where a "
        "process is killed and up to a second where the machine loses power; or `always` before it answers.",
    )
    data_dir: Path = Field(Path(".gateway"), description="Journal, generated keys, and the embedded Redis's data.")
    admin_key: str | None = Field(None, description="The admin API's key; unset, one is made and kept in `data_dir`.")
