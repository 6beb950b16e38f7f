"""Redis over TLS with a certificate of one's own, and URLs that are refused with a reason."""

import asyncio
import contextlib
import datetime
import shutil
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis as Client

from gateway.limits.checks import check_redis
from gateway.limits.cluster import RedisCluster
from gateway.limits.connect import open_redis
from gateway.limits.redis import Redis, RedisOwner, StoreUnavailable
from gateway.limits.sentinel import SentinelOwner
from tests.harness import RedisServer, free_port
from tests.redis_cluster import ClusterNode, wait_until

SYSTEM_REDIS = shutil.which("redis-server")
needs_tls = pytest.mark.skipif(SYSTEM_REDIS is None, reason="the redis-server that pip brings has no TLS")


class Certificates:
    """A certificate that signs itself, for 127.0.0.1, valid for a day."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "redis.crt", folder / "redis.key"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis of the tests")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def server_options(self, port: int) -> tuple[str, ...]:
        return (
            *("--tls-port", str(port), "--tls-auth-clients", "yes", "--tls-ca-cert-file", str(self.certificate)),
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
        )

    @property
    def client_options(self) -> str:
        return f"ssl_ca_certs={self.certificate}&ssl_certfile={self.certificate}&ssl_keyfile={self.key}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates) -> Iterator[int]:
    port = free_port()
    with RedisServer(SYSTEM_REDIS, *certificates.server_options(port)):
        yield port


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Redis]:
    before = open_sockets()
    redis = open_redis(url, timeout_s=2)
    redis.start()
    try:
        yield redis
    finally:
        await redis.aclose()
        async with asyncio.timeout(10):  # TLS says goodbye, and is closed when the server has said it too
            while open_sockets() > before:
                await asyncio.sleep(0.01)


def open_sockets() -> int:
    """How many this process has."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            count += descriptor.readlink().name.startswith("socket:")
    return count


@needs_tls
class TestTls:
    async def test_both_sides_prove_who_they_are(self, tls_port: int, certificates: Certificates) -> None:
        async with opened(f"rediss://127.0.0.1:{tls_port}/0?{certificates.client_options}") as redis:
            assert await redis.call("PING") == b"PONG"
            await check_redis(redis)
            assert isinstance(redis, RedisOwner) and not redis.is_exposed

    async def test_an_unknown_certificate_is_refused_and_the_reason_told(self, tls_port: int) -> None:
        async with opened(f"rediss://127.0.0.1:{tls_port}") as redis:
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await redis.call("PING")

    async def test_a_certificate_for_another_host_is_refused(self, tls_port: int, certificates: Certificates) -> None:
        url = f"rediss://localhost:{tls_port}?{certificates.client_options}"
        async with opened(url) as redis:
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await redis.call("PING")
        async with opened(f"{url}&ssl_check_hostname=false") as redis:
            assert await redis.call("PING") == b"PONG"

    async def test_a_server_that_wants_a_certificate_and_gets_none_is_unavailable(
        self, tls_port: int, certificates: Certificates
    ) -> None:
        async with opened(f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={certificates.certificate}") as redis:
            with pytest.raises(StoreUnavailable):
                await redis.call("PING")

    async def test_a_cluster_speaks_tls_as_well(self, certificates: Certificates) -> None:
        node = ClusterNode(SYSTEM_REDIS, "--tls-cluster", "yes")
        tls, plain = node.port, free_port()
        node.port = plain
        node._options += certificates.server_options(tls)
        with node:
            node.ask("CLUSTER", "ADDSLOTS", *range(16_384))
            wait_until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster is not whole")
            async with opened(f"rediss+cluster://127.0.0.1:{tls}?{certificates.client_options}") as redis:
                (master,) = await redis.masters()
                assert await redis.call("GET", "a") is None
                assert master.address == f"127.0.0.1:{tls}"
                assert not master.is_exposed


async def test_a_user_and_a_password_are_taken_from_the_url(redis_server: RedisServer) -> None:
    with Client.from_url(redis_server.url) as admin:
        admin.acl_setuser("gate:way", enabled=True, passwords=["+p/ss@word"], keys=["*"], commands=["+get", "+ping"])
        try:
            url = f"redis://gate%3Away:p%2Fss%40word@127.0.0.1:{redis_server.port}"
            async with opened(url) as redis:
                assert await redis.call("GET", "a") is None
            async with opened(url.replace("p%2Fss", "wrong")) as redis:
                with pytest.raises(StoreUnavailable, match="AuthenticationError"):
                    await redis.call("GET", "a")
        finally:
            admin.acl_deluser("gate:way")


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("redis://h", RedisOwner),
        ("redis://u:p@h:1/3?client_name=gateway", RedisOwner),
        ("rediss://h/0?ssl_cert_reqs=none", RedisOwner),
        ("unix:///run/redis.sock?db=2", RedisOwner),
        ("redis+sentinel://u:p@h:1,h2/money/2?sentinel_password=x", SentinelOwner),
        ("rediss+sentinel://[::1]:26379,[::2]/money", SentinelOwner),
        ("redis+cluster://h,h2:7001,[::1]:7002", RedisCluster),
        ("rediss+cluster://:p@h:7001/0?ssl_min_version=771", RedisCluster),
    ],
)
def test_the_scheme_decides_over_the_form(url: str, form: type) -> None:
    assert type(open_redis(url)) is form


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "has to begin with"),
        ("localhost:6379", "has to begin with"),
        ("http://h", "has to begin with"),
        ("redis://", "needs a host"),
        ("redis://h:port", "port"),
        ("redis://h:0", "needs a host"),
        ("redis://:hunter2/x@h:6379", "port"),
        ("redis+cluster://:hunter2/x@h:6379", "port"),
        ("redis://h/three", "database"),
        ("redis://h/0?sssl=1", "no option 'sssl'"),
        ("redis://h/0?protocol=3", "no option 'protocol'"),
        ("redis://h/0?db=x", "Invalid value for 'db'"),
        ("redis://h/0?ssl_ca_certs=x", "rediss"),
        ("rediss://h/0?ssl_ca_certs=/no/such/file", "TLS"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "TLS"),
        ("unix://", "path"),
        ("redis+sentinel://h:26379", "name"),
        ("redis+sentinel:///money", "at least one host"),
        ("redis+sentinel://h/money/x", "database"),
        ("redis+sentinel://h:0/money", "port 0"),
        ("redis+cluster://", "at least one host"),
        ("redis+cluster://h/1", "one database"),
        ("redis+cluster://h?sentinel_password=x", "no option 'sentinel_password'"),
        ("redis+cluster://h?ssl_keyfile=x", "rediss"),
        ("rediss+sentinel://h/money?ssl_keyfile=/no/such/file", "TLS"),
    ],
)
def test_a_url_that_cannot_be_followed_is_refused_with_a_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        open_redis(url)
    assert "hunter2" not in str(refused.value)
