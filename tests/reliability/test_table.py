"""The page has all rows, and every row names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.reliability.results import Results
from tests.reliability.rows import ROWS, Row
from tests.reliability.table import DOC, render

ROOT = Path(__file__).parent.parent.parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NIGHTLY = {3, 21, 32, 33, 34}


def test_the_matrix_has_fifty_rows() -> None:
    assert [row.number for row in ROWS] == list(range(1, 51))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_has_evidence_that_exists_or_says_why_not(row: Row) -> None:
    assert row.evidence or row.not_run
    for name in row.evidence:
        path, _, test = name.partition("::")
        assert test in names_in(ROOT / path), name


def names_in(path: Path) -> set[str]:
    """The names of a file's tests, with their class where they have one."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, FUNCTIONS)}
        elif isinstance(node, FUNCTIONS):
            found.add(node.name)
    return found


def test_the_page_tells_of_every_row() -> None:
    page = DOC.read_text()
    for row in ROWS:
        assert f"| {row.number} | {row.fault} | {row.expected} | " in page, "run: make reliability"
        assert f"| {row.number} | {row.injected} | " in page, "run: make reliability"


def test_what_was_not_run_says_so() -> None:
    page = render(Results())
    assert page.count("not run: ") == len(ROWS)


def test_at_least_thirty_rows_run_in_every_suite() -> None:
    assert len([row for row in ROWS if row.evidence and row.number not in NIGHTLY]) >= 30
