"""Who calls: API keys and JWTs to a ``Caller``.

Identity is settled before a body is read, before anything is held and before a provider is called.
"""
