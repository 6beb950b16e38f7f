"""OpenAI Chat Completions: ``POST /v1/chat/completions``.

Reference: https://platform.openai.com/docs/api-reference/chat. ``shapes.py`` holds the format's objects, ``server.py``
talks to clients, ``client.py`` to OpenAI and to the many vendors that speak its format with quirks of their own.
"""

NAME = "openai_chat"
