"""Clients that cannot share the project's environment: `python -m tests.clients.python.install` (`make clients`).

Each `requirements-*.txt` beside this file names one set of packages, every transitive one pinned. A set goes into
`build/clients/<Python>/<set>` and is used by a process of its own, which sees nothing else. Where pip cannot install,
the reason stays beside the set, its tests are skipped with that reason, and only `--strict` makes it an error.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[2] / "build" / "clients" / str(sys.implementation.cache_tag)
SETS = sorted(path.stem.removeprefix("requirements-") for path in HERE.glob("requirements-*.txt"))
COMMAND = "python -m tests.clients.python.install"
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")


def pins(name: str) -> Path:
    """The file with the set's versions."""
    return HERE / f"requirements-{name}.txt"


def missing(name: str) -> str:
    """Why the set cannot be used, or an empty string."""
    stamp, failure = FOLDER / name / ".pins", FOLDER / f"{name}.failed"
    if stamp.is_file() and stamp.read_text() == _digest(name):
        return ""
    reason = failure.read_text().strip() if failure.is_file() else "it was not tried"
    return f"the set {name} is not installed ({reason}); run: {COMMAND}"


def install(name: str) -> bool:
    """Make the set's folder as its file wants it; returns whether it is there."""
    if not missing(name):
        return True
    target, failure = FOLDER / name, FOLDER / f"{name}.failed"
    shutil.rmtree(target, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"Installing the clients' set {name} …", file=sys.stderr, flush=True)
    pip = subprocess.run([*PIP, "--target", target, "-r", pins(name)], capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        said = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or [pip.stderr[-200:]]
        failure.write_text(said[-1])
        print(f"pip could not install it, so its tests will be skipped: {said[-1]}", file=sys.stderr)
        return False
    failure.unlink(missing_ok=True)
    (target / ".pins").write_text(_digest(name))
    return True


def _digest(name: str) -> str:
    return hashlib.sha256(pins(name).read_bytes()).hexdigest()


if __name__ == "__main__":
    # One that fails is enough: without the registry, each would wait in vain.
    is_complete = all(install(name) for name in SETS)
    sys.exit(0 if is_complete or "--strict" not in sys.argv else 1)
