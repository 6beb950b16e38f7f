"""Wrong credentials by the address they came from: a bucket each that fills with failures and drains with time.

Kept in this process and nowhere else: its purpose is that Redis is not asked. The number of addresses is bounded; the
one that failed least lately is forgotten first. An IPv6 client owns a whole /64, so that is one address here.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

_FAILURES_MAX = 60
_PERIOD_S = 60.0
_ADDRESSES_MAX = 10_000
_IPV6_PREFIX = 64


class FailedAttempts:
    """``failures_max`` failures in ``period_s`` are let pass from each address, and after that one now and then."""

    def __init__(
        self,
        *,
        failures_max: int = _FAILURES_MAX,
        period_s: float = _PERIOD_S,
        addresses_max: int = _ADDRESSES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_max = failures_max
        self._drain_s = period_s / failures_max
        self._addresses_max = addresses_max
        self._clock = clock
        # When each address's bucket will be empty.
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def retry_after_s(self, address: str) -> float | None:
        """How long the address has to wait, or ``None`` where it may try."""
        if not self._empty_at:
            return None
        empty_at = self._empty_at.get(_network(address))
        if empty_at is None:
            return None
        excess_s = empty_at - self._clock() - (self._failures_max - 1) * self._drain_s
        return excess_s if excess_s > 0 else None

    def note(self, address: str) -> None:
        """Remember a failure."""
        network = _network(address)
        now = self._clock()
        self._empty_at[network] = max(now, self._empty_at.get(network, now)) + self._drain_s
        self._empty_at.move_to_end(network)
        if len(self._empty_at) > self._addresses_max:
            self._empty_at.popitem(last=False)


def _network(address: str) -> str:
    """The address, or the network of an IPv6 address; what is neither (a socket's path) stays as it is."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_PREFIX), strict=False))
