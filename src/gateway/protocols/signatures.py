"""Whose a reasoning signature is. Each vendor answers a foreign one with an error, so none may reach another vendor.

Anthropic's are base64 and travel as they are. Formats whose vendors issue something else mark what they pass on with
their name and a colon, which base64 does not have.
"""

from gateway.canonical.request import Part, Reasoning


def is_marked(signature: str) -> bool:
    """Whether it was issued by a vendor other than Anthropic."""
    return ":" in signature


def is_signed_by_anthropic(part: Part) -> bool:
    """Whether a part is reasoning that Anthropic takes back: it refuses unsigned blocks and foreign signatures."""
    if not isinstance(part, Reasoning):
        return False
    signature = part.redacted or part.signature
    return bool(signature) and not is_marked(signature)
