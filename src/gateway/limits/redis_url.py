"""Redis URLs, read strictly: what a URL says is either done or refused with a reason, never ignored.

redis-py takes one host and drops what it does not understand (a database that is no number); here several hosts may
stand, and every option is known. No message repeats the URL, since it may hold a password.
"""

from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from gateway.limits.redis import connection_pool

SCHEMES = (
    *("redis", "rediss", "unix"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)

_OPTIONS = frozenset(
    {"client_name", "db", "socket_keepalive"}
    | {"ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"}
    | {"ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password"}
)
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """Several servers that share one way of connecting; ``credentials`` is empty or ends with @."""

    scheme: str
    credentials: str
    addresses: tuple[Address, ...]
    path: str
    options: str

    def url(self, address: Address, database: str = "0") -> str:
        """The URL of one server."""
        return f"{self.scheme}://{self.credentials}{address}/{database}?{self.options}"


class SentinelServers(msgspec.Struct, frozen=True, kw_only=True):
    """Who knows the master, what it is called there, and how to connect to it."""

    sentinels: Servers
    masters: Servers
    name: str
    database: str


def check_server_url(url: str) -> None:
    """Raises ``ValueError`` unless redis-py will take every part of a redis://, rediss:// or unix:// URL."""
    parts = urlsplit(url)
    _check_options(parts.query)
    try:
        port = parts.port
    except ValueError:
        raise ValueError(_BAD_PORT) from None
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("unix:// needs the path of a socket: unix:///run/redis.sock.")
    elif not parts.hostname or port == 0:
        raise ValueError(f"{parts.scheme}:// needs a host: {parts.scheme}://host:6379/0.")
    else:
        _check_database(parts.path.removeprefix("/"))
    _check_connection(url)


def cluster_servers(url: str) -> Servers:
    """The first servers to ask of a redis+cluster:// or rediss+cluster:// URL. Raises ``ValueError``."""
    servers = _servers(url, port=6379)
    if servers.path not in ("", "/", "/0"):
        raise ValueError("A cluster has one database, 0; leave out what stands behind the last host.")
    _check_connection(servers.url(servers.addresses[0]))
    return servers


def sentinel_servers(url: str) -> SentinelServers:
    """What a redis+sentinel:// or rediss+sentinel:// URL says. Raises ``ValueError``."""
    servers = _servers(url, port=26379)
    name, _, database = servers.path.removeprefix("/").partition("/")
    if not name:
        raise ValueError(
            "The URL lacks the name that the Sentinels know the master by: redis+sentinel://host:26379,host2:26379/name."
        )
    _check_database(database)
    options = dict(parse_qsl(servers.options))
    user, password = (quote(options.pop(option, ""), safe="") for option in _SENTINEL_OPTIONS)
    masters = msgspec.structs.replace(servers, options=urlencode(options))
    sentinels = msgspec.structs.replace(masters, credentials=f"{user}:{password}@" if user or password else "")
    _check_connection(masters.url(servers.addresses[0]))
    return SentinelServers(sentinels=sentinels, masters=masters, name=name, database=database or "0")


_BAD_PORT = "A port is not a number. In a user name or password, write / as %2F, @ as %40, # as %23 and ? as %3F."


def _servers(url: str, *, port: int) -> Servers:
    parts = urlsplit(url)
    scheme, _, form = parts.scheme.partition("+")
    credentials, at, hosts = parts.netloc.rpartition("@")
    _check_options(parts.query, _SENTINEL_OPTIONS if form == "sentinel" else ())
    addresses = tuple(_address(host, port) for host in hosts.split(",") if host)
    if not addresses:
        raise ValueError(f"{parts.scheme}:// needs at least one host: {parts.scheme}://host:{port},host2:{port}.")
    return Servers(
        scheme=scheme, credentials=credentials + at, addresses=addresses, path=parts.path, options=parts.query
    )


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        port = default_port if parts.port is None else parts.port
    except ValueError:
        raise ValueError(_BAD_PORT) from None
    if not parts.hostname or port == 0:
        raise ValueError("One of the hosts has no name, or port 0.")
    return Address(parts.hostname, port)


def _check_database(text: str) -> None:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("What stands behind the host is not the number of a database.")


def _check_options(query: str, others: tuple[str, ...] = ()) -> None:
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS and name not in others:
            raise ValueError(f"There is no option {name!r}. Options are {', '.join(sorted({*_OPTIONS, *others}))}.")


def _check_connection(url: str) -> None:
    """Make a connection, and do not connect: redis-py looks at values, and OpenSSL at files, as late as then."""
    try:
        connection = connection_pool(url, 1).make_connection()  # type: ignore[no-untyped-call]
    except TypeError:
        raise ValueError("Options that begin with ssl_ need a scheme that begins with rediss.") from None
    except RedisError as error:
        raise ValueError(f"The TLS options cannot be used: {error}") from None
    if isinstance(connection, SSLConnection):
        try:
            connection.ssl_context.get()
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"The TLS options cannot be used: {error}") from None
