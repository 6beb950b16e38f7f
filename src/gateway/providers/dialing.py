"""Making connections to providers: names to addresses, off the loop and remembered for a minute, then TCP, then TLS.

Where a name has several addresses, they are tried in parallel with a head start for the first ("happy eyeballs"), and
each connection begins with another one. Certificates are checked against the system's bundle, or the one that
``SSL_CERT_FILE`` names.
"""

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import aiohappyeyeballs
import msgspec

from gateway.providers.connection import Connection, TransportError, cause_of
from gateway.tasks import TaskOwner

_ADDRESSES_TTL_S = 60.0
_NEXT_ADDRESS_AFTER_S = 0.25

_AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]


class ConnectTimeout(Exception):
    """The connection was not made in time."""


class Origin(msgspec.Struct, frozen=True):
    """Where connections go: those of one origin are as good as each other."""

    host: str
    port: int
    is_tls: bool


class _Lookup(msgspec.Struct):
    """The addresses of a name, the one to begin with first; or why there are none."""

    addresses: list[_AddressInfo]
    expires_at: float
    error: OSError | None = None


@functools.cache
def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Makes connections. ``tls`` replaces the usual rules for certificates."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls or _default_tls()
        self._lookups: dict[tuple[str, int], asyncio.Task[_Lookup]] = {}
        self._tasks = TaskOwner()

    async def dial(self, origin: Origin, limit_s: float, on_lost: Callable[[Connection], None]) -> Connection:
        """A new connection, ready for a request. Raises ``ConnectTimeout`` or ``TransportError``."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._dial(origin, on_lost)
        except TimeoutError:
            raise ConnectTimeout from None
        except OSError as error:
            self._lookups.pop((origin.host, origin.port), None)  # perhaps the name moved
            raise TransportError(cause_of(error)) from error

    async def aclose(self) -> None:
        """End the lookups under way."""
        await self._tasks.aclose()

    async def _dial(self, origin: Origin, on_lost: Callable[[Connection], None]) -> Connection:
        sock = await aiohappyeyeballs.start_connection(
            await self._addresses(origin.host, origin.port), happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S
        )
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(sock, on_lost),
                sock=sock,
                ssl=self._tls if origin.is_tls else None,
                server_hostname=origin.host if origin.is_tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _addresses(self, host: str, port: int) -> Sequence[_AddressInfo]:
        key = (host, port)
        task = self._lookups.get(key)
        if task is None or (task.done() and _is_stale(task)):
            task = self._lookups[key] = self._tasks.start(_look_up(host, port), "provider-lookup")
        # Shielded: the others who wait for it must not lose it with the first.
        lookup = await asyncio.shield(task)
        if lookup.error is not None:
            raise lookup.error
        lookup.addresses.append(lookup.addresses.pop(0))
        return tuple(lookup.addresses)


def _is_stale(task: asyncio.Task[_Lookup]) -> bool:
    return task.cancelled() or asyncio.get_running_loop().time() >= task.result().expires_at


async def _look_up(host: str, port: int) -> _Lookup:
    """Failures are returned, for everybody who waits, and looked at by nobody who comes later."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return _Lookup([], 0.0, error)
    except UnicodeError:
        return _Lookup([], 0.0, socket.gaierror(socket.EAI_NONAME, "not a name"))
    if not found:
        return _Lookup([], 0.0, socket.gaierror(socket.EAI_NONAME, "the name has no address"))
    return _Lookup([*found[-1:], *found[:-1]], loop.time() + _ADDRESSES_TTL_S)
