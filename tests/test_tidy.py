"""The house style that a machine can hold: sizes, names, one-way imports. Exceptions are listed with their reason."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted((ROOT / "src").rglob("*.lua"))

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 6
LUA_LINES_MAX = 120

JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
VAGUE_NAMES = re.compile(r"^(process|handle)_|_(data|info|manager)$")
# uvicorn's method, which we override, and the field of server-sent events that is called data.
VAGUE_BUT_NOT_OURS = {"handle_exit", "encode_data"}
# The exchange, the roots of tasks that must go on whatever happens, and a callback that tells its reader of it.
BROAD = {"connection.py", "exchange.py", "inference.py", "live.py", "jwks.py", "redis.py", "reload.py"}
LONG_TESTS: dict[str, str] = {}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=relative)
def test_no_file_is_too_long(path: Path) -> None:
    if relative(path) not in LONG_TESTS:
        assert len(path.read_text().splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_no_script_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LUA_LINES_MAX


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for function in functions(path):
        assert (function.end_lineno or 0) - function.lineno + 1 <= FUNCTION_LINES_MAX, function.name
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        is_command = path.name == "cli.py" or "http" in path.parts
        assert len(named) <= PARAMETERS_MAX or is_command, function.name


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_names_say_something(path: Path) -> None:
    assert path.stem not in JUNK_DRAWERS
    for function in functions(path):
        assert not VAGUE_NAMES.search(function.name) or function.name in VAGUE_BUT_NOT_OURS, function.name


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_and_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "a module begins with what it holds"
    if "shapes" in path.stem:
        return  # the vendor's documentation says what its fields are
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or _is_wire_shape(node, path), node.name


def _is_wire_shape(node: ast.AST, path: Path) -> bool:
    return (
        path.name == "ai_sdk_4.py" and isinstance(node, ast.ClassDef) and not node.name.endswith(("Server", "Encoder"))
    )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_exceptions_are_caught_broadly_at_roots_only(path: Path) -> None:
    broad = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception"
    ]
    assert not broad or path.name in BROAD


def test_nothing_names_a_download_address_or_a_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    here = b"|".join(re.escape(str(folder).encode()) for folder in (ROOT, Path.home()) if len(str(folder)) > 1)
    suspicious = re.compile(here + rb'|/home/[a-z]+/|"resolved": *"http|https?://[^\s"]+\.(?:whl|tgz|tar\.gz)')
    for name in tracked:
        path = ROOT / name
        if path.is_file():
            assert not suspicious.search(path.read_bytes()), name


def test_imports_go_one_way() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
