"""An issuer on this machine: its private keys, their public JWKs, its clock, and the server it publishes them on."""

import asyncio
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk

from gateway.identity.jwks import SigningKey

RSA_PRIVATE = rsa.generate_private_key(65537, 2048)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EC_PRIVATE = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}


class Clock:
    """Time that moves only when told."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class JwksServer:
    """Answers every request with ``answer``, counts them, and can be slow or down."""

    def __init__(self) -> None:
        self.fetches = 0
        self.requests: list[bytes] = []
        self.answer = b""
        self.is_down = False
        self.is_trickling = False
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/jwks"

    async def stop(self) -> None:
        self.go_on.set()
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._tasks)

    def publish(self, *entries: dict[str, Any]) -> None:
        self.reply(json.dumps({"keys": entries}).encode())

    def reply(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.answer = head.encode() + body

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.fetches += 1
            self.asked.set()
            await self.go_on.wait()
            while self.is_trickling:
                writer.write(self.answer or b" ")
                self.answer = b""
                await writer.drain()
                await asyncio.sleep(0.01)
            if not self.is_down:
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass
            self._tasks.discard(task)


def public_jwk(private: Any, algorithm: str, **members: Any) -> dict[str, Any]:
    """The public JWK without ``alg``, plus members; a member that is ``None`` is left out."""
    entry = dict(jwk.construct(private.public_key(), algorithm).to_dict(), alg=None)
    return {name: value for name, value in (entry | members).items() if value is not None}


def rsa_jwk(**members: Any) -> dict[str, Any]:
    return public_jwk(RSA_PRIVATE, "RS256", **members)


def ec_jwk(algorithm: str = "ES256", **members: Any) -> dict[str, Any]:
    return public_jwk(EC_PRIVATE[algorithm], algorithm, **members)


def kids(keys: tuple[SigningKey, ...]) -> set[str | None]:
    return {key.kid for key in keys}
