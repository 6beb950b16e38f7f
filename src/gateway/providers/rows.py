"""Well-known providers, one row each: where they are, which key they take, what the price book calls them."""

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """``type`` names the wire format (``openai`` or ``anthropic``); ``key_env`` the variable that holds the key.

    A provider without ``key_env`` needs no key; it is only configured where the configuration names it.
    """

    type: str = "openai"
    base_url: str
    key_env: str | None = None
    vendor: str


ROWS: dict[str, Row] = {
    "openai": Row(base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY", vendor="openai"),
    "anthropic": Row(
        type="anthropic",
        base_url="https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        vendor="anthropic",
    ),
    "groq": Row(base_url="https://api.groq.com/openai/v1", key_env="GROQ_API_KEY", vendor="groq"),
    "deepinfra": Row(base_url="https://api.deepinfra.com/v1/openai", key_env="DEEPINFRA_API_KEY", vendor="deepinfra"),
    "together": Row(base_url="https://api.together.xyz/v1", key_env="TOGETHER_API_KEY", vendor="together"),
    "mistral": Row(base_url="https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY", vendor="mistral"),
    "deepseek": Row(base_url="https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY", vendor="deepseek"),
    "xai": Row(base_url="https://api.x.ai/v1", key_env="XAI_API_KEY", vendor="x-ai"),
    "openrouter": Row(base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY", vendor="openrouter"),
    "fireworks": Row(base_url="https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY", vendor="fireworks"),
    "ollama": Row(base_url="http://127.0.0.1:11434/v1", vendor="ollama"),
    "vllm": Row(base_url="http://127.0.0.1:8000/v1", vendor="vllm"),
}
