"""The Anthropic Messages format: ``shapes`` names its fields, ``client`` speaks it to providers.

``history`` repairs conversations that Anthropic would refuse; ``stream`` and ``content`` read what it answers,
``errors`` what it refuses with.
"""

from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient

__all__ = ["AnthropicMessagesClient"]
