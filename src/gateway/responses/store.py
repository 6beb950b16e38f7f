"""Where responses are kept: each for a while, an account's all together within bounds.

A response that is gone on from lives on with the one that followed. Where an account has no room left, its oldest go
first. Everything an account has kept is on the slot of its money, so that each step here is one script; the store has
a connection of its own, since what it carries is large and money must not wait behind it.
"""

from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import TypeVar

import msgspec
from redis.exceptions import RedisError

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, RequestError
from gateway.limits import keys
from gateway.limits.redis import LuaSource, Redis, StoreUnavailable

T = TypeVar("T")

_LUA = resources.files("gateway.responses") / "lua"
_MISSING, _TOO_MANY, _TOO_LARGE = 0, -1, -2


def _load(name: str, *, arg_names: str) -> LuaSource:
    text = (_LUA / f"{name}.lua").read_text()
    if f"-- KEYS: responses ends\n-- ARGV: {arg_names}\n" not in text:
        raise ImportError(f"{name}.lua and its stub have drifted apart")
    return LuaSource(text)


_KEEP = _load("keep", arg_names="id previous body ttl_ms account_bytes_max chain_max is_update")
_FIND = _load("find", arg_names="is_chain bytes_max chain_max id*")
_DROP = _load("drop", arg_names="id")


class KeptResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A response with its own input, and who asked for it. ``previous`` is the id of the one before it, if any."""

    id: str
    method: str
    subject: str
    previous: str = ""
    response: msgspec.Raw
    input: list[msgspec.Raw] = []

    def is_seen_by(self, caller: Caller) -> bool:
        """Of the responses of its account, a key sees all, and an issuer's token those of its own subject."""
        return caller.method != "jwt" or (self.method, self.subject) == (caller.method, caller.subject)


_DECODER = msgspec.json.Decoder(KeptResponse)


class StoreBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How long responses are kept, and how much of them: one, a conversation, all of an account, in bytes of JSON."""

    ttl_s: float = 259_200.0
    response_bytes_max: int = 4_194_304
    conversation_bytes_max: int = 16_777_216
    account_bytes_max: int = 67_108_864
    conversation_max: int = 1000


class ResponseStore:
    """Keeps responses and finds them again, for the account they belong to. Methods may raise ``StoreUnavailable``."""

    def __init__(self, redis: Redis, bounds: StoreBounds) -> None:
        self._redis = redis
        self.bounds = bounds

    async def put(self, account: str, kept: KeptResponse, *, is_update: bool = False) -> bool:
        """Keep a response, in place of one of its id; ``False`` where it is too large for that. Safe to repeat.

        With ``is_update`` nothing happens where there is none of its id: somebody has deleted it.
        """
        body, bounds = msgspec.json.encode(kept), self.bounds
        if len(body) > min(bounds.response_bytes_max, bounds.account_bytes_max):
            return False
        ttl_ms = int(bounds.ttl_s * 1000)
        most = (bounds.account_bytes_max, bounds.conversation_max)
        arguments = (kept.id, kept.previous, body, ttl_ms, *most, int(is_update))
        await _answer(self._redis.script(_KEEP, _keys(account), arguments, list))
        return True

    async def get(self, caller: Caller, response_id: str) -> KeptResponse | None:
        """One response that the caller may see."""
        return (await self.find(caller, [response_id])).get(response_id)

    async def find(self, caller: Caller, ids: Sequence[str]) -> dict[str, KeptResponse]:
        """Those of some responses that are there for the caller; raises ``RequestError`` where it is too much."""
        _, bodies = await self._find(caller.account, ids, is_chain=False)
        found = [_DECODER.decode(body) for body in bodies]
        return {kept.id: kept for kept in found if kept.is_seen_by(caller)}

    async def chain(self, caller: Caller, response_id: str) -> list[KeptResponse]:
        """A response after all that came before it, oldest first; raises ``RequestError`` where one is missing."""
        code, bodies = await self._find(caller.account, [response_id], is_chain=True)
        found = [_DECODER.decode(body) for body in reversed(bodies)]
        if code == _MISSING or not found or not all(kept.is_seen_by(caller) for kept in found):
            raise no_such_chain()
        return found

    async def delete(self, account: str, response_id: str) -> None:
        """Forget one response. What goes on from it cannot be gone on from any more."""
        await _answer(self._redis.script(_DROP, _keys(account), (response_id,), list))

    async def _find(self, account: str, ids: Sequence[str], *, is_chain: bool) -> tuple[int, list[bytes]]:
        bounds = self.bounds
        arguments = (int(is_chain), bounds.conversation_bytes_max, bounds.conversation_max, *ids)
        code, *bodies = await _answer(self._redis.script(_FIND, _keys(account), arguments, list))
        if code in (_TOO_MANY, _TOO_LARGE):
            is_long = code == _TOO_MANY
            most = f"{bounds.conversation_max} responses" if is_long else f"{bounds.conversation_bytes_max} bytes"
            raise RequestError(
                f"The stored conversation is larger than {most}; begin a new one.",
                code=ErrorCode.REQUEST_TOO_LARGE,
                param="previous_response_id" if is_chain else "input",
            )
        return code, [body for body in bodies if body is not None]


def no_such_chain() -> RequestError:
    """Something that a request goes on from is not there."""
    return RequestError(
        "There is no such response here, or one that it goes on from has been deleted or has expired; send the whole "
        "conversation as input.",
        code=ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND,
        param="previous_response_id",
    )


def _keys(account: str) -> tuple[str, str]:
    return keys.responses(account), keys.response_ends(account)


async def _answer(reply: Awaitable[T]) -> T:
    """What Redis refuses for good (a command its user may not use) is as bad as its absence, and no worse."""
    try:
        return await reply
    except RedisError as error:
        raise StoreUnavailable(str(error)) from None
