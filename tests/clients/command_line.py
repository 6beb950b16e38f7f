"""Coding agents from npm as tests run them: in a home of their own, able to reach the gateway and nothing else."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

BIN = Path(__file__).parent / "cli" / "node_modules" / ".bin"
INSTALL = "(cd tests/clients/cli && npm install --no-package-lock --no-audit --no-fund)"
NOTE = "blue heron"
# Whatever else a program wants to reach, it finds nobody there.
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}
RUN_S = 45


def needs(command: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed, and say how to get it."""
    return pytest.mark.skipif(not (BIN / command).exists(), reason=f"needs {command} from npm: {INSTALL}")


def folder_with_note(home: Path) -> Path:
    """A folder to work in, with a file to read."""
    folder = home / "work"
    folder.mkdir()
    (folder / "note.txt").write_text(f"{NOTE}\n")
    return folder


def _run(command: list[str], home: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **OFFLINE, **environment}
    with subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=home / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            # The program behind npm's script goes too.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


async def events(command: list[str], home: Path, **environment: str) -> tuple[int, list[Any]]:
    """Its exit code, and the JSON lines it prints."""
    code, out, err = await asyncio.to_thread(_run, command, home, environment)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert lines, err
    return code, lines
