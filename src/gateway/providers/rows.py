"""Well-known providers, one row each: where they are, which key they take, what the price book calls them."""

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """``type`` names the wire format (``openai`` or ``anthropic``); ``key_env`` the variable that holds the key.

    A provider without ``key_env`` needs no key; it is only configured where the configuration names it. ``unseen``
    matches the models that bill reasoning they do not send; ``unseen_if_asked`` says so of every model that was asked
    to reason.
    """

    type: str = "openai"
    base_url: str
    key_env: str | None = None
    vendor: str
    unseen: str | None = None
    unseen_if_asked: bool = False


_OPENAI_UNSEEN = r"(?:ft:)?(?:o[1-9]|gpt-[5-9](?!.*-chat))"

ROWS: dict[str, Row] = {
    "openai": Row(
        base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY", vendor="openai", unseen=_OPENAI_UNSEEN
    ),
    "anthropic": Row(
        type="anthropic",
        base_url="https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        vendor="anthropic",
        unseen_if_asked=True,  # thinking is billed whole and sent as a summary
    ),
    "groq": Row(base_url="https://api.groq.com/openai/v1", key_env="GROQ_API_KEY", vendor="groq"),
    "deepinfra": Row(base_url="https://api.deepinfra.com/v1/openai", key_env="DEEPINFRA_API_KEY", vendor="deepinfra"),
    "together": Row(base_url="https://api.together.xyz/v1", key_env="TOGETHER_API_KEY", vendor="together"),
    "mistral": Row(base_url="https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY", vendor="mistral"),
    "deepseek": Row(base_url="https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY", vendor="deepseek"),
    "xai": Row(base_url="https://api.x.ai/v1", key_env="XAI_API_KEY", vendor="x-ai", unseen="grok-(3-mini|[4-9])"),
    "openrouter": Row(
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        vendor="openrouter",
        unseen=rf"openrouter/auto|openai/({_OPENAI_UNSEEN})|x-ai/grok-[4-9]|google/gemini-(2\.5|[3-9])",
        unseen_if_asked=True,
    ),
    "fireworks": Row(base_url="https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY", vendor="fireworks"),
    "ollama": Row(base_url="http://127.0.0.1:11434/v1", vendor="ollama"),
    "vllm": Row(base_url="http://127.0.0.1:8000/v1", vendor="vllm"),
}
