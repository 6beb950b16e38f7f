"""OpenAI Responses: the format of ``/v1/responses``.

Reference: https://platform.openai.com/docs/api-reference/responses. ``shapes.py`` holds the format's objects,
``incoming.py`` reads requests, ``items.py`` turns their items into a conversation, ``collect.py`` holds the response
as it grows, ``server.py`` tells of it, and ``history.py`` knows items that were stored; ``background.py`` is about
those that are still made, ``frames.py`` about WebSockets, ``namespaces.py`` about grouped tools. Storing is not done
here. ``client.py``, ``outgoing.py``, ``said.py``, ``stream.py`` and ``content.py`` talk to providers, ``issued.py``
carries their reasoning through the formats of clients.
"""

NAME = "openai_responses"
