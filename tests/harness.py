"""What tests run against: a real redis-server, real gateway processes, and an account with a key and money.

Nothing here is a stand-in but the providers (``tests.upstream``). Each server listens on a port of its own.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from gateway.embedded_redis import find_server

ADMIN_KEY = "admin-key-of-the-tests"
_START_S = 60.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server that keeps everything, on a port of its own."""

    def __init__(self, binary: str | None = None, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._binary = binary or find_server()
        self._options = options
        self._folder = tempfile.mkdtemp(prefix="gw-redis-")
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, or start it again with the data it had."""
        self.process = subprocess.Popen(
            [
                *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--logfile", "redis.log"),
                *("--maxmemory-policy", "noeviction", *self._options),
            ],
            env={**os.environ, **self.environment},
            # Like us, it gets an error and not a signal when a file may not grow any more.
            restore_signals=False,
        )
        for _ in range(2000):
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return self
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        raise RuntimeError(Path(self._folder, "redis.log").read_text())

    def kill(self) -> None:
        """``kill -9``; the data stays."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Callable[[], None]]:
        """Keep a copy of the data as they are now; the function puts it back, while the server is down."""
        with tempfile.TemporaryDirectory(prefix="gw-redis-copy-") as copy:
            shutil.copytree(self._folder, copy, dirs_exist_ok=True)

            def restore() -> None:
                shutil.rmtree(self._folder)
                shutil.copytree(copy, self._folder)

            yield restore

    def stop(self) -> None:
        """Stop it and throw its data away."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class GatewayProcess:
    """One ``gateway serve``. Its log is in ``log``; ``kill`` and ``start`` may follow each other.

    ``expected_errors`` are events that a test expects in the log as errors; any other error fails it.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        *,
        redis_url: str | None = None,
        data_dir: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._folder = Path(tempfile.mkdtemp(prefix="gw-"))
        self.data_dir = data_dir or self._folder / "data"
        self.log = self._folder / "log"
        config_path = self._folder / "gateway.yaml"
        config_path.write_text(yaml.safe_dump(config or {}))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")},
            "GATEWAY_CONFIG": str(config_path),
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_DATA_DIR": str(self.data_dir),
            "GATEWAY_ADMIN_KEY": ADMIN_KEY,
            **({"GATEWAY_REDIS_URL": redis_url} if redis_url else {}),
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.expected_errors: set[str] = set()
        self.admin = httpx.AsyncClient(
            base_url=f"{self.base_url}/admin/v1", headers={"Authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False
        )

    async def start(self) -> Self:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve"],
                env=self._environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(_START_S):
            async with httpx.AsyncClient(trust_env=False) as client:
                while True:
                    if self.process.poll() is not None:
                        raise RuntimeError(self.log.read_text())
                    try:
                        if (await client.get(f"{self.base_url}/readyz")).status_code == 200:
                            return self
                    except httpx.HTTPError:
                        pass
                    await asyncio.sleep(0.02)

    async def account(
        self, account: str = "acme", *, usd: str = "1", tier: str | None = None, models: list[str] | None = None
    ) -> str:
        """Make an account with credit; returns a key of it."""
        made = await self.admin.post("/accounts", json={"id": account, "tier": tier})
        assert made.status_code in (201, 409), made.text
        if usd != "0":
            granted = await self.admin.post(f"/accounts/{account}/credits", json={"amount_usd": usd})
            assert granted.status_code == 200, granted.text
        key = await self.admin.post(f"/accounts/{account}/keys", json={"name": "test", "models": models})
        assert key.status_code == 201, key.text
        token: str = key.json()["key"]
        return token

    async def balance(self, account: str = "acme") -> dict[str, int]:
        """granted, spent, held, available and absorbed in µ$."""
        answer = (await self.admin.get(f"/accounts/{account}")).json()
        names = ("granted", "spent", "held", "available", "absorbed")
        return {name: int(answer[name].replace(".", "")) for name in names}

    async def usage(self, account: str = "acme") -> list[dict[str, Any]]:
        """The account's usage records, newest first."""
        rows: list[dict[str, Any]] = (await self.admin.get("/usage", params={"account": account})).json()["data"]
        return rows

    async def settled(self, account: str = "acme", *, records: int | None = None) -> dict[str, int]:
        """Wait until nothing is held (and there are ``records`` usage records); returns the balance."""
        async with asyncio.timeout(15):
            while True:
                balance = await self.balance(account)
                if balance["held"] == 0 and (records is None or len(await self.usage(account)) >= records):
                    return balance
                await asyncio.sleep(0.02)

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{self.base_url}/metrics")).text
        lines = (line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """SIGTERM: the drain begins."""
        assert self.process is not None
        self.process.terminate()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def errors(self) -> set[str]:
        """The events it logged as errors."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return {json.loads(line)["event"] for line in lines if '"level":"error"' in line}

    async def exited(self, timeout_s: float = 30) -> int:
        """Wait until the process has gone; returns its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, timeout_s)

    async def stop(self) -> None:
        """Stop it, and fail where it logged a traceback."""
        await self.admin.aclose()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        log = self.log.read_text() if self.log.exists() else ""
        unexpected = self.errors() - self.expected_errors
        shutil.rmtree(self._folder, ignore_errors=True)
        assert "Traceback" not in log and not unexpected, log

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
