"""Whose model stands behind a Bedrock id, since Converse leaves to each vendor what it takes beside the common fields.

Inference profiles put a region in front (``eu.anthropic.…``), ARNs put the id at their end. An application's own
profile tells nothing: it is asked as the client asks, and judged by the vendor.
"""

import re
from enum import StrEnum

_NOVA_THAT_REASONS = re.compile(r"amazon\.nova-(?:[2-9]|premier-[2-9])")
_NAMELESS = re.compile(
    r"arn:[^:]+:(?:bedrock|sagemaker):.*:"
    r"(?:application-inference-profile|provisioned-model|custom-model-deployment|imported-model|endpoint)/"
)


class Family(StrEnum):
    """A vendor whose models take something that others do not."""

    CLAUDE = "claude"
    NOVA = "nova"
    OPENAI = "openai"
    OTHER = "other"
    NAMELESS = "nameless"


def family_of(model: str) -> Family:
    """The family that an id, a profile or an ARN names."""
    name = model.lower()
    if _NAMELESS.match(name):
        return Family.NAMELESS
    if "anthropic." in name:
        return Family.CLAUDE
    if "amazon.nova" in name:
        return Family.NOVA
    return Family.OPENAI if "openai." in name else Family.OTHER


def reasons_as_nova(model: str) -> bool:
    """Whether a Nova takes a ``reasoningConfig``; its first generation does not."""
    return _NOVA_THAT_REASONS.search(model.lower()) is not None


# https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html: Nova caches messages, but no tools.
CACHES_MESSAGES = frozenset((Family.CLAUDE, Family.NOVA, Family.NAMELESS))
CACHES_TOOLS = frozenset((Family.CLAUDE, Family.NAMELESS))
# "This field is only supported by Amazon Nova and Anthropic Claude 3 and 4 models."
TAKES_RESULT_STATUS = frozenset((Family.CLAUDE, Family.NOVA, Family.NAMELESS))
# Claude's signatures are good wherever Claude is served; others sign nothing, and refuse a signature.
TAKES_REASONING = frozenset((Family.CLAUDE, Family.NAMELESS))
TAKES_TOP_K = frozenset((Family.CLAUDE, Family.NOVA, Family.NAMELESS))
