"""From a URL to the form of Redis it names: one server, the master that Sentinels name, or a cluster."""

from urllib.parse import urlsplit

from gateway.limits.cluster import RedisCluster
from gateway.limits.redis import Redis, RedisOwner
from gateway.limits.redis_url import SCHEMES, check_server_url, cluster_servers, sentinel_servers
from gateway.limits.sentinel import SentinelOwner


def open_redis(url: str, *, timeout_s: float = 0.5) -> Redis:
    """What the URL names; nothing is connected before ``start``. Raises ``ValueError`` that says what is wrong.

    ``timeout_s`` bounds one round trip, and each step of connecting.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ValueError(f"It has to begin with one of {', '.join(f'{known}://' for known in SCHEMES)}.")
    if scheme.endswith("+cluster"):
        return RedisCluster(cluster_servers(url), timeout_s=timeout_s)
    if scheme.endswith("+sentinel"):
        return SentinelOwner(sentinel_servers(url), timeout_s=timeout_s)
    check_server_url(url)
    return RedisOwner(url, timeout_s=timeout_s)
