"""A client in a process of its own, with its own packages: what a test asks it, and what it answers."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.clients.documented import shown
from tests.clients.python.install import FOLDER, HERE, missing
from tests.harness import GatewayProcess

CURRENT = "current"
LINE_BYTES_MAX = 2**24
ANSWER_S = 40.0


class Raised(Exception):
    """What the client raised: ``told`` holds its class and its fields."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(json.dumps(told))
        self.told = told


class Client:
    """One way after the other, each with the gateway's address and a key."""

    def __init__(self, process: asyncio.subprocess.Process, gateway: GatewayProcess, key: str, packages: str) -> None:
        self.packages = packages
        self._process = process
        self._target = {"base_url": gateway.base_url, "api_key": key}

    async def __call__(self, way: str, **arguments: Any) -> Any:
        """What the way returns. Raises ``Raised``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"way": way, "arguments": {**self._target, **arguments}}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S):
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        assert line, "the client's process broke; its traceback is on stderr"
        answer = json.loads(line)
        if "error" in answer:
            raise Raised(answer["error"])
        return answer["result"]

    async def documented(self, section: str, model: str) -> str:
        """What the code of a section of docs/clients.md prints, with this gateway, this key and this model."""
        [code] = shown(section, "python")
        code = code.replace("http://127.0.0.1:8080", self._target["base_url"]).replace("gw-…", self._target["api_key"])
        printed: str = await self("snippet", code=re.sub(r"(demo/fast|openai/gpt-4o-mini)", model, code))
        return printed


@asynccontextmanager
async def running(module: str, packages: str, gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    """The client while the context lasts; ``packages`` names a set, or the project's own environment."""
    if packages != CURRENT and (reason := missing(packages)):
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    options: tuple[str, ...] = ()
    if packages != CURRENT:
        # Without site-packages: whatever the set lacks is missed.
        environment["PYTHONPATH"], options = str(FOLDER / packages), ("-S",)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, str(HERE / "serve.py"), module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        limit=LINE_BYTES_MAX,
    )
    try:
        yield Client(process, gateway, key, packages)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
