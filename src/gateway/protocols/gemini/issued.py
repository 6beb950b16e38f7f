"""Thought signatures that Gemini issued, on their way through other formats.

Gemini puts a signature on a part (a call, or the words of an answer) and wants it back on the same one; from a call of
the current turn it demands it. No format has a place for that on a call, but all of them keep signed reasoning. So a
signature travels as reasoning of its own, marked with the part that it belongs to, and with no other provider's taken
for it. https://ai.google.dev/gemini-api/docs/thought-signatures
"""

import re
from collections.abc import Iterable

from gateway.canonical.request import Part, Reasoning

THOUGHT = "thought"
TEXT = "text"
"""On words of the answer."""
END = "end"
"""On an empty part of its own, after the words."""

# Neither mark nor colon is base64, of which signatures are made.
_ISSUED = re.compile(r"gemini:([^:]*):(.+)", re.DOTALL)


def of_call(call_id: str) -> str:
    """The place of a call's signature."""
    return f"call.{call_id.replace(':', '')}"


def mark(place: str, signature: str) -> str:
    """The signature, or redacted data, that stands for a ``thoughtSignature``."""
    return f"gemini:{place}:{signature}"


def unmark(part: Reasoning) -> tuple[str, str] | None:
    """Place and signature; ``None`` for what Gemini did not issue."""
    issued = _ISSUED.fullmatch(part.signature or part.redacted)
    return None if issued is None else (issued.group(1), issued.group(2))


def places(parts: Iterable[Part]) -> dict[str, str]:
    """The signatures of one turn, by place."""
    found = (unmark(part) for part in parts if isinstance(part, Reasoning))
    return dict(issued for issued in found if issued is not None)
