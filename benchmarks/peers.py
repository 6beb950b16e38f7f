"""LiteLLM in a virtual environment of its own: `python -m benchmarks.peers` (`make bench-peers`) installs it.

It is kept apart because its pinned dependencies would otherwise decide ours. BENCH_LITELLM_PYTHON names the interpreter
of an existing installation and takes precedence.
"""

import os
import subprocess
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parent / ".venv-litellm"
REQUIREMENT = "litellm[proxy]!=1.82.7,!=1.82.8"  # those two releases on PyPI carried malware
VERSION_CODE = "from importlib.metadata import version; print(version('litellm'))"


def litellm_python() -> Path | None:
    """The interpreter that has LiteLLM, or None."""
    named = os.environ.get("BENCH_LITELLM_PYTHON")
    python = Path(named) if named else VENV / "bin" / "python"
    return python if python.with_name("litellm").exists() else None


def litellm_command() -> list[str]:
    """The `litellm` command as installed; installs it first when it is not there."""
    python = litellm_python() or install()
    return [str(python.with_name("litellm"))]


def litellm_version() -> str | None:
    python = litellm_python()
    if python is None:
        return None
    return subprocess.run([python, "-c", VERSION_CODE], capture_output=True, text=True, check=True).stdout.strip()


def install() -> Path:
    print(f"Installing {REQUIREMENT} …", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    python = VENV / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
    return python


if __name__ == "__main__":
    if litellm_python() is None:
        install()
    print(f"LiteLLM {litellm_version()} is ready.")
