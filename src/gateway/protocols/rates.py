"""Rate limits as response headers, in the forms that OpenAI's and Anthropic's clients read.

Sources: platform.openai.com/docs/guides/rate-limits (durations such as ``6m0s``) and
docs.anthropic.com/en/api/rate-limits (RFC 3339 times).
"""

import time
from datetime import UTC, datetime

from gateway.protocols.wire import Allowance, Headers


def openai_headers(allowances: list[Allowance]) -> Headers:
    """``x-ratelimit-limit-requests`` and its kin."""
    headers: list[tuple[bytes, bytes]] = []
    for it in allowances:
        name = it.counts.encode()
        headers += (
            (b"x-ratelimit-limit-" + name, b"%d" % it.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % it.left),
            (b"x-ratelimit-reset-" + name, _duration(it.reset_s).encode()),
        )
    return tuple(headers)


def anthropic_headers(allowances: list[Allowance], now: float | None = None) -> Headers:
    """``anthropic-ratelimit-requests-limit`` and its kin; ``now`` is Unix time in seconds."""
    headers: list[tuple[bytes, bytes]] = []
    at = time.time() if now is None else now
    for it in allowances:
        name = b"anthropic-ratelimit-" + it.counts.encode()
        reset = datetime.fromtimestamp(int(at + it.reset_s + 0.999), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        headers += (
            (name + b"-limit", b"%d" % it.limit),
            (name + b"-remaining", b"%d" % it.left),
            (name + b"-reset", reset.encode()),
        )
    return tuple(headers)


def _duration(seconds: float) -> str:
    """A duration as Go prints it: ``12ms``, ``1.5s``, ``6m0s``, ``1h2m3s``."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1_000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
