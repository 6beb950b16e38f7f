"""The peers, each installed apart from our own packages: `python -m benchmarks.peers` (`make bench-peers`).

Their pinned dependencies would otherwise decide ours. What cannot be installed is left out, with the reason printed.
BENCH_LITELLM_PYTHON names the interpreter of a LiteLLM that is already installed and takes precedence.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LITELLM = HERE / ".venv-litellm"
TENSORZERO = HERE / ".venv-tensorzero"
PORTKEY = HERE / ".peers" / "portkey"
LITELLM_REQUIREMENT = "litellm[proxy]!=1.82.7,!=1.82.8"  # those two releases on PyPI carried malware
PORTKEY_PACKAGE = "@portkey-ai/gateway"
# With a much newer one, every stream is answered by a 500: https://github.com/Portkey-AI/gateway/issues/1389
PORTKEY_SERVER_PIN = {"@hono/node-server": "1.13.8"}
INSTALL_TIMEOUT_S = 900


class Peer(NamedTuple):
    """How to know whether a peer is there, which version it is, and how to install it."""

    title: str
    is_there: Callable[[], bool]
    version: Callable[[], str]
    install: Callable[[], None]


def litellm_python() -> Path:
    """The interpreter of LiteLLM's environment, whether it is there or not."""
    named = os.environ.get("BENCH_LITELLM_PYTHON")
    return Path(named) if named else LITELLM / "bin" / "python"


def tensorzero_python() -> Path:
    """The interpreter of TensorZero's environment, whether it is there or not."""
    return TENSORZERO / "bin" / "python"


def portkey_server() -> Path:
    """Portkey's script for Node, whether it is there or not."""
    return PORTKEY / "node_modules" / PORTKEY_PACKAGE / "build" / "start-server.js"


def package_version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def portkey_version() -> str:
    return str(json.loads((portkey_server().parent.parent / "package.json").read_text())["version"])


def nginx_version() -> str:
    return subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip().partition("/")[2]


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=INSTALL_TIMEOUT_S)


def install_python_package(folder: Path, requirement: str) -> None:
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement)


def install_portkey() -> None:
    PORTKEY.mkdir(parents=True, exist_ok=True)
    (PORTKEY / "package.json").write_text(json.dumps({"private": True, "overrides": PORTKEY_SERVER_PIN}))
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", PORTKEY, PORTKEY_PACKAGE)


def install_nothing() -> None:
    raise FileNotFoundError("nginx comes from the system's packages")


PEERS = {
    "litellm": Peer(
        "LiteLLM",
        lambda: litellm_python().with_name("litellm").exists(),
        lambda: package_version(litellm_python(), "litellm"),
        lambda: install_python_package(LITELLM, LITELLM_REQUIREMENT),
    ),
    "portkey": Peer(
        "Portkey",
        lambda: shutil.which("node") is not None and portkey_server().exists(),
        portkey_version,
        install_portkey,
    ),
    "tensorzero": Peer(
        "TensorZero",
        lambda: (TENSORZERO / "bin" / "pip").exists() and any(TENSORZERO.glob("lib/python*/site-packages/tensorzero")),
        lambda: package_version(tensorzero_python(), "tensorzero"),
        lambda: install_python_package(TENSORZERO, "tensorzero"),
    ),
    "nginx": Peer("nginx", lambda: shutil.which("nginx") is not None, nginx_version, install_nothing),
}


def main() -> None:
    """Installs what is missing; a peer that cannot be installed is no failure."""
    for peer in PEERS.values():
        try:
            if not peer.is_there():
                print(f"Installing {peer.title} …", file=sys.stderr, flush=True)
                peer.install()
            print(f"{peer.title} {peer.version()} is ready.")
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{peer.title} is left out: {error}")


if __name__ == "__main__":
    main()
