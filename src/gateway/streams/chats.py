"""Which answer a chat is at: how a page that comes back finds the stream it lost, and stops the one it sees.

A chat belongs to its account, and with an issuer's tokens to one user of it: its id is a page's choice and no secret.
"""

import msgspec

from gateway.canonical.caller import Caller
from gateway.limits import keys
from gateway.limits.redis import Redis, forget_result

_KEPT_MS = 86_400_000


class ChatStream(msgspec.Struct, frozen=True):
    """The newest answer of a chat. ``is_delivered``: somebody read it to its end."""

    sid: str
    is_delivered: bool


def owner_of(caller: Caller) -> str:
    """Whose chats a caller sees: with an issuer's token the user's own, with a key all of the account's."""
    return caller.subject if caller.method == "jwt" else ""


class Chats:
    """Remembers the newest answer of each chat."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def begin(self, caller: Caller, chat_id: str, sid: str) -> None:
        """A chat has a new answer. Not waited for: without Redis, it cannot be resumed and is no worse for it."""
        key = _key(caller, chat_id)
        forget_result(self._redis.call("HSET", key, "s", sid))
        forget_result(self._redis.call("PEXPIRE", key, _KEPT_MS))

    def deliver(self, caller: Caller, chat_id: str, sid: str) -> None:
        """An answer was read to its end; nobody who comes later needs it again."""
        forget_result(self._redis.call("HSET", _key(caller, chat_id), "d", sid))

    async def find(self, caller: Caller, chat_id: str) -> ChatStream | None:
        """The newest answer of one of the caller's chats; may raise ``StoreUnavailable``."""
        sid, delivered = await self._redis.call("HMGET", _key(caller, chat_id), "s", "d")
        return None if sid is None else ChatStream(sid.decode(), delivered == sid)


def _key(caller: Caller, chat_id: str) -> str:
    return keys.chat(caller.account, owner_of(caller), chat_id)
