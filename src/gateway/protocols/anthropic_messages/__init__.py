"""The Anthropic Messages format: ``shapes`` and ``asked`` name its fields, ``client`` speaks it to providers.

``history`` repairs conversations that Anthropic would refuse; ``stream`` and ``content`` read what it answers,
``errors`` what it refuses with. ``server`` speaks it to clients: ``incoming`` and ``blocks`` read what they ask,
``collect`` makes whole answers, and ``forward`` sends their bodies on to a provider of the same format.
"""

from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.anthropic_messages.server import AnthropicMessagesServer

__all__ = ["AnthropicMessagesClient", "AnthropicMessagesServer"]
