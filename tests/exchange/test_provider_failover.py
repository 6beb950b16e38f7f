"""Every way in which the first of two targets fails: what fails over to the healthy one, and what must not."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.exchange.faulty import (
    INPUT_PRICE,
    INPUT_TOKENS,
    PATHS,
    TYPES,
    WELL,
    WORDS,
    Before,
    Bench,
    ClientFormat,
    Within,
    bench,
)
from tests.exchange.test_provider_faults import BEFORE, ROWS, WITHIN
from tests.upstream import Plan

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

# In these rows a provider says that it did nothing, or was never reached; in all others it may have read the prompt.
REFUSALS = re.compile(r"status-(?!408|504).*|limit-.*|refused|untrusted|unknown-host|error-first|html-502")

by_client = pytest.mark.parametrize("client", PATHS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with bench(tmp_path_factory.mktemp("faults"), [(row.at, row.name) for row in ROWS]) as running:
        for row in ROWS:
            if row.plan is not None:
                running.upstream.for_model(row.name, row.plan)
        yield running


@by_client
@pytest.mark.parametrize("row", [row for row in BEFORE if row.fails_over], ids=lambda row: row.name)
async def test_a_failure_before_the_first_word_is_answered_by_the_next_target(
    stage: Bench, row: Before, client: ClientFormat
) -> None:
    suffix = TYPES[client]
    told, billed = await stage.ask("once", client, f"pair{suffix}-{row.name}")
    assert (told.status, told.text, told.error, told.is_ended) == (200, " well", None, True)
    record = billed.record
    assert (record["outcome"], record["target"], record["attempts"]) == ("complete", f"up{suffix}/{WELL}", 2)
    (attempt,) = record["failed"]
    assert attempt["target"] == f"{row.at}{suffix}/{row.name}"
    tokens = 0 if REFUSALS.fullmatch(row.name) else INPUT_TOKENS
    assert (attempt["input_tokens"], attempt["output_tokens"], attempt["cost"]) == (tokens, 0, tokens * INPUT_PRICE)
    assert billed.spent == record["input_tokens"] + 10 * record["output_tokens"] and record["output_tokens"] == 1


@by_client
@pytest.mark.parametrize("row", [row for row in BEFORE if not row.fails_over], ids=lambda row: row.name)
async def test_a_judgement_of_the_request_is_asked_of_nobody_else(
    stage: Bench, row: Before, client: ClientFormat
) -> None:
    asked = stage.asked(WELL)
    told, billed = await stage.ask("once", client, f"pair{TYPES[client]}-{row.name}")
    assert 400 <= told.status < 500 and told.error is not None
    assert (stage.asked(WELL), billed.spent, billed.record.get("attempts", 1)) == (asked, 0, 1)


@by_client
@pytest.mark.parametrize("row", WITHIN, ids=lambda row: row.name)
async def test_nothing_is_asked_again_once_a_word_was_shown(stage: Bench, row: Within, client: ClientFormat) -> None:
    suffix, asked = TYPES[client], stage.asked(WELL)
    told, billed = await stage.ask("once", client, f"pair{suffix}-{row.name}")
    assert (told.text, told.error is not None) == ("".join(WORDS[: row.words]), True)
    record = billed.record
    assert (record["target"], record.get("failed", [])) == (f"{row.at}{suffix}/{row.name}", [])
    assert (stage.asked(WELL), stage.asked(row.name) > 0) == (asked, True)


@by_client
async def test_a_greeting_without_words_holds_nobody_to_a_target(stage: Bench, client: ClientFormat) -> None:
    suffix = TYPES[client]
    stage.upstream.for_model("reset", Plan(text=(), fault="truncate", fault_at=None))
    told, billed = await stage.ask("once", client, f"pair{suffix}-reset")
    stage.upstream.for_model("reset", Plan(fault="reset", fault_at=-1))
    assert (told.text, billed.record["attempts"], billed.record["target"]) == (" well", 2, f"up{suffix}/{WELL}")


@by_client
async def test_when_both_fail_the_client_is_told_of_the_last(stage: Bench, client: ClientFormat) -> None:
    suffix = TYPES[client]
    stage.upstream.for_model(WELL, Plan(status=503))
    try:
        told, billed = await stage.ask("never", client, f"pair{suffix}-status-500")
    finally:
        stage.upstream.for_model(WELL, Plan(text=(" well",)))
    assert told.status == (503 if client == "openai" else 529)
    assert [attempt["status"] for attempt in billed.record["failed"]] == [500, 503]
    assert billed.spent == 0
