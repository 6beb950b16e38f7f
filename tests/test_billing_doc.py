"""The billing page keeps its word: each row of the matrix names tests that exist, and no test of it is forgotten."""

import ast
import json
import re
from pathlib import Path

import pytest

from gateway.ledger import UsageRecord

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "billing.md").read_text()
MATRIX, _, TESTED = PAGE.partition("## How each row is tested")

ROW = re.compile(r"^\| (\d+) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::((?:\w+::)?\w+)`")
OVER_SOCKETS = "tests/exchange/test_billing_matrix.py"
# What says how the rows are counted, and belongs to none of them.
NO_ENDING = {
    "TestTheAnswerIsWhole::test_each_kind_of_token_is_charged_at_its_price",
    "TestTheAnswerIsWhole::test_a_picture_costs_what_a_picture_costs",
    "test_a_piece_is_a_token_and_the_prompt_is_eight",
}


def written_in(path: str) -> set[str]:
    """Every test in a file, as pytest names it."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_"):
                found.add(prefix + function.name)
    return found


def test_the_rows_of_the_matrix_are_numbered_without_a_gap() -> None:
    numbers = [int(number) for number, _ in ROW.findall(MATRIX)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 25


def test_each_row_of_the_matrix_has_a_test() -> None:
    tested = dict(ROW.findall(TESTED))
    assert list(tested) == [number for number, _ in ROW.findall(MATRIX)]
    for number, cell in tested.items():
        assert TEST.findall(cell), number


@pytest.mark.parametrize("path", sorted({path for path, _ in TEST.findall(TESTED)}))
def test_the_tests_that_are_named_exist(path: str) -> None:
    named = {name for found, name in TEST.findall(TESTED) if found == path}
    assert named <= written_in(path)


def test_every_test_of_an_ending_is_named() -> None:
    named = {name for path, name in TEST.findall(TESTED) if path == OVER_SOCKETS}
    assert written_in(OVER_SOCKETS) - named == NO_ENDING


def test_the_files_that_are_named_exist() -> None:
    for path in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / path).exists(), path


def test_the_entry_that_is_explained_is_one_and_its_sums_are_right() -> None:
    shown = re.search(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    assert shown is not None
    entry = json.loads(shown.group(1))
    record = entry["record"]
    assert set(record) <= set(UsageRecord.__struct_fields__)
    charged, absorbed = (int(entry[name].replace(".", "")) for name in ("charged_usd", "absorbed_usd"))
    assert charged + absorbed == record["cost"] == record["input_tokens"] * 2 + record["output_tokens"] * 8
    assert record["counted_output"] == record["reported_output"] - record["reasoning_tokens"]
    for field in record:
        assert f"`{field}`" in PAGE or field.endswith("_tokens") or field in ("protocol", "stream", "request_id"), field
