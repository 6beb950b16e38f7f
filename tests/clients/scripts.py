"""Scripts in ``node/`` as tests run them: where they are, whether their packages are there, and what they print."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "node"
INSTALL = "(cd tests/clients/node && npm install --no-package-lock --no-audit --no-fund)"


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where node or a package is missing, and say how to get it."""
    has_all = shutil.which("node") is not None and (FOLDER / "node_modules" / package).is_dir()
    return pytest.mark.skipif(not has_all, reason=f"needs node 20 and its packages: {INSTALL}, as .ci/run does")


async def run(script: str, **argument: Any) -> Any:
    """What a script prints."""
    command = ["node", str(FOLDER / script), json.dumps(argument)]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert not ended.stderr, ended.stderr.decode()
    return json.loads(ended.stdout)


async def appears(path: Path) -> None:
    """Wait for a file that a script makes."""
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)
