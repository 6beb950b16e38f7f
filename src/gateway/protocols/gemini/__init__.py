"""Google's Gemini API and Vertex AI's: ``POST …/models/{model}:streamGenerateContent?alt=sse``, towards providers only.

Reference: https://ai.google.dev/api/generate-content. ``outgoing.py`` and ``history.py`` write the request,
``stream.py`` reads the answer, ``issued.py`` carries thought signatures through the formats of clients.
"""

NAME = "gemini"
