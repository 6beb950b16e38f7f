"""The page about translation says what the suites check."""

from tests.conformance.requests import BODIES, MODELS
from tests.conformance.table import DOC, render


def test_the_page_is_up_to_date() -> None:
    assert DOC.read_text() == render(), "run: python -m tests.conformance.table"


def test_the_page_has_a_row_for_every_ordered_pair() -> None:
    pairs, _, _ = render().partition("## Requests")
    assert pairs.count("\n| ") == len(BODIES) * len(MODELS) + 1
