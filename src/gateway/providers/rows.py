"""Well-known providers, one row each: where they are, which key they take, what the price book calls them."""

from collections.abc import Mapping

import msgspec

from gateway.providers.quirky_chat import Quirk


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """``type`` names the wire format as the configuration does; ``key_env`` the variable that holds the key
    (or ``other_key_env``, where the vendor's own tools know two).

    A provider without ``key_env`` needs no key, or more than a key (the clouds): it is only configured where the
    configuration names it. ``base_url`` is ``None`` where it depends on a region or a resource. ``unseen``
    matches the models that bill reasoning they do not send; ``unseen_if_asked`` says so of every model that was asked
    to reason. ``quirks`` are those of its Chat Completions.
    """

    type: str = "openai"
    base_url: str | None = None
    key_env: str | None = None
    other_key_env: str | None = None
    vendor: str
    unseen: str | None = None
    unseen_if_asked: bool = False
    quirks: frozenset[Quirk] = frozenset()

    def key(self, environment: Mapping[str, str]) -> str | None:
        """The key, where the environment has one."""
        names = (name for name in (self.key_env, self.other_key_env) if name is not None)
        return next((environment[name] for name in names if environment.get(name)), None)


# Models that think, asked or not, and show a summary of it at most.
_GEMINI_UNSEEN = r"gemini-(?:2\.5-(?!flash-lite)|[3-9]|pro-latest|flash-latest)"
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
    "groq": Row(
        base_url="https://api.groq.com/openai/v1",
        key_env="GROQ_API_KEY",
        vendor="groq",
        quirks=frozenset((Quirk.PLAIN_HISTORY,)),
    ),
    "deepinfra": Row(base_url="https://api.deepinfra.com/v1/openai", key_env="DEEPINFRA_API_KEY", vendor="deepinfra"),
    "together": Row(base_url="https://api.together.xyz/v1", key_env="TOGETHER_API_KEY", vendor="together"),
    "mistral": Row(
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        vendor="mistral",
        quirks=frozenset(
            (Quirk.NO_STREAM_OPTIONS, Quirk.MAX_TOKENS_ONLY, Quirk.SHORT_TOOL_IDS, Quirk.PLAIN_HISTORY),
        ),
    ),
    "deepseek": Row(
        base_url="https://api.deepseek.com/v1",
        key_env="DEEPSEEK_API_KEY",
        vendor="deepseek",
        quirks=frozenset((Quirk.REASONING_BACK,)),
    ),
    "xai": Row(base_url="https://api.x.ai/v1", key_env="XAI_API_KEY", vendor="x-ai", unseen="grok-(3-mini|[4-9])"),
    "openrouter": Row(
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        vendor="openrouter",
        unseen=rf"openrouter/auto|openai/({_OPENAI_UNSEEN})|x-ai/grok-[4-9]|google/gemini-(2\.5|[3-9])",
        unseen_if_asked=True,
    ),
    "fireworks": Row(base_url="https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY", vendor="fireworks"),
    "cerebras": Row(base_url="https://api.cerebras.ai/v1", key_env="CEREBRAS_API_KEY", vendor="cerebras"),
    "perplexity": Row(
        base_url="https://api.perplexity.ai",
        key_env="PERPLEXITY_API_KEY",
        vendor="perplexity",
        unseen="sonar-deep-research",
    ),
    "moonshot": Row(
        base_url="https://api.moonshot.ai/v1",
        key_env="MOONSHOT_API_KEY",
        vendor="moonshotai",
        quirks=frozenset((Quirk.REASONING_BACK,)),
    ),
    "alibaba": Row(
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        key_env="DASHSCOPE_API_KEY",
        vendor="alibaba",
    ),
    "gemini": Row(
        type="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        key_env="GEMINI_API_KEY",
        other_key_env="GOOGLE_API_KEY",
        vendor="google",
        unseen=_GEMINI_UNSEEN,
        unseen_if_asked=True,
    ),
    "vertex": Row(type="vertex", vendor="google", unseen=_GEMINI_UNSEEN, unseen_if_asked=True),
    "vertex_anthropic": Row(type="vertex_anthropic", vendor="google", unseen_if_asked=True),  # as at Anthropic
    "bedrock": Row(
        type="bedrock",
        vendor="aws",
        unseen=r"(?:arn:.*/)?(?:[a-z-]+\.)?openai\.gpt-[5-9]",
        unseen_if_asked=True,  # as at Anthropic
    ),
    "azure": Row(type="azure", vendor="azure", unseen=_OPENAI_UNSEEN),
    "ollama": Row(base_url="http://127.0.0.1:11434/v1", vendor="ollama"),
    "vllm": Row(base_url="http://127.0.0.1:8000/v1", vendor="vllm"),
}
