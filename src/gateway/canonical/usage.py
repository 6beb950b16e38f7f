"""How many tokens a model read and wrote.

Vendors disagree on what their totals include; every decoder normalises to one reading before the meter sees it:
``input`` includes cached tokens, ``output`` includes reasoning tokens, and figures are totals, never increments.
"""

from typing import Any

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token totals of one exchange, in tokens.

    ``cache_read`` and ``cache_write`` are part of ``input``; ``reasoning`` is part of ``output``.
    ``raw`` is the vendor's own object, kept for clients that speak the same format and for audits.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    raw: dict[str, Any] | None = None

    @property
    def total(self) -> int:
        """Input and output together."""
        return self.input + self.output
