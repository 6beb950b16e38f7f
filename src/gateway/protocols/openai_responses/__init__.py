"""OpenAI Responses: ``POST /v1/responses``, as far as it needs no storage.

Reference: https://platform.openai.com/docs/api-reference/responses. ``shapes.py`` holds the format's objects,
``incoming.py`` reads requests, ``items.py`` turns their items into a conversation, ``collect.py`` holds the response
as it grows, and ``server.py`` tells of it. Nothing is stored: a conversation is sent whole every time.
"""

NAME = "openai_responses"
