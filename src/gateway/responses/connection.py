"""What one connection remembers of its own responses, above the store of all: also those that are not to be stored.

A conversation over a WebSocket goes on from what was said on it, whether or not it is kept elsewhere. What no longer
fits goes, the oldest first; a client that goes on from that is told so, and sends the whole conversation.
"""

from collections.abc import Callable, Sequence

from gateway.canonical.caller import Caller
from gateway.responses.store import KeptResponse, ResponseStore, StoreBounds, no_such_chain

_BYTES_MAX = 4_194_304


class ConnectionStore(ResponseStore):
    """The responses of one connection, and below them the store of all, if there is one."""

    def __init__(
        self, below: ResponseStore | None, is_stored: Callable[[KeptResponse], bool], *, bytes_max: int = _BYTES_MAX
    ) -> None:
        """``is_stored`` tells which responses the store below is to keep as well."""
        self.bounds = below.bounds if below is not None else StoreBounds()
        self._below = below
        self._is_stored = is_stored
        self._bytes_max = bytes_max
        self._bytes = 0
        self._own: dict[tuple[str, str], KeptResponse] = {}

    async def put(self, account: str, kept: KeptResponse, *, is_update: bool = False) -> bool:
        """Remember a response, and store it where it is to be."""
        self._forget(account, kept.id)
        self._own[account, kept.id] = kept
        self._bytes += _size(kept)
        while self._bytes > self._bytes_max:
            self._forget(*next(iter(self._own)))
        if self._below is None or not self._is_stored(kept):
            return True
        return await self._below.put(account, kept, is_update=is_update)

    async def find(self, caller: Caller, ids: Sequence[str]) -> dict[str, KeptResponse]:
        """Those of some responses that are there for the caller."""
        own = {name: kept for name in ids if (kept := self._own.get((caller.account, name))) is not None}
        missing = [name for name in ids if name not in own]
        return own | (await self._below.find(caller, missing) if self._below is not None and missing else {})

    async def chain(self, caller: Caller, response_id: str) -> list[KeptResponse]:
        """A response after all that came before it, oldest first; raises ``RequestError`` where one is missing."""
        own: list[KeptResponse] = []
        wanted = response_id
        while wanted and (kept := self._own.get((caller.account, wanted))) is not None:
            own.insert(0, kept)
            wanted = kept.previous
        if wanted and self._below is None:
            raise no_such_chain()
        earlier = await self._below.chain(caller, wanted) if wanted and self._below is not None else []
        return [*earlier, *own]

    async def delete(self, account: str, response_id: str) -> None:
        """Forget one response, here and below."""
        self._forget(account, response_id)
        if self._below is not None:
            await self._below.delete(account, response_id)

    def _forget(self, account: str, response_id: str) -> None:
        gone = self._own.pop((account, response_id), None)
        if gone is not None:
            self._bytes -= _size(gone)


def _size(kept: KeptResponse) -> int:
    return memoryview(kept.response).nbytes + sum(memoryview(item).nbytes for item in kept.input)
