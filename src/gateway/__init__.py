"""A streaming gateway for LLMs: meters tokens while they flow and ends a stream cleanly when the money does."""

__version__ = "0.1.0"
