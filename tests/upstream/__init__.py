"""The simulated provider: a real HTTP server that answers as the vendors do, and the only simulated thing in our tests.

It imports nothing of the gateway, so that a mistake cannot be made on both sides at once. Tests order what it says
with a ``Plan`` and read what it got from ``Upstream.requests``.
"""

from .exchange import Received
from .plan import Piece, Plan, ToolCall, Usage
from .server import Upstream

__all__ = ["Piece", "Plan", "Received", "ToolCall", "Upstream", "Usage"]
