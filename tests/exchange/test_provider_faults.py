"""Every way in which a lone provider fails, over real sockets: what its client is told, exactly, and one bill.

Before the first word it is an HTTP error and costs nothing, after one round and after the further round that a lone
target gets by default; within the answer it is an error in the stream, and what came before it is charged.
"""

import email.utils
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.exchange.faulty import (
    INPUT_PRICE,
    INPUT_TOKENS,
    OUTPUT_PRICE,
    PATHS,
    TYPES,
    WORDS,
    Before,
    Bench,
    ClientFormat,
    Within,
    bench,
)
from tests.upstream import Plan

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

RESETS = {
    **{"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "17.4s"},
    **{"x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"},
}
HUGE = "x" * 20_000_000

GONE, GONE_A = (502, "server_error", "provider_unavailable"), (502, "api_error")
BROKEN, BROKEN_A = (502, "server_error", "provider_protocol_error"), (502, "api_error")
SHORT, SHORT_A = (502, "server_error", "stream_truncated"), (502, "api_error")
LATE, LATE_A = (504, "server_error", "provider_timeout"), (504, "timeout_error")
FULL, FULL_A = (503, "service_unavailable_error", "provider_overloaded"), (529, "overloaded_error")
LIMIT, LIMIT_A = (429, "rate_limit_error", "provider_rate_limited"), (429, "rate_limit_error")
WRONG, WRONG_A = (400, "invalid_request_error", "provider_rejected"), (400, "invalid_request_error")


def gone(name: str, plan: Plan | None = None, **more: object) -> Before:
    return Before(name=name, plan=plan, openai=GONE, anthropic=GONE_A, **more)  # type: ignore[arg-type]


def broken(name: str, plan: Plan) -> Before:
    return Before(name=name, plan=plan, openai=BROKEN, anthropic=BROKEN_A)


def short(name: str, plan: Plan) -> Before:
    return Before(name=name, plan=plan, openai=SHORT, anthropic=SHORT_A)


def late(name: str, plan: Plan | None = None, at: str = "up") -> Before:
    return Before(name=name, plan=plan, at=at, openai=LATE, anthropic=LATE_A, tries=1)


def limited(name: str, wait: str | None, *, tries: int = 1, is_hopeless: bool = False, **plan: object) -> Before:
    ordered = Plan(status=429, **plan)  # type: ignore[arg-type]
    return Before(
        name=name, plan=ordered, openai=LIMIT, anthropic=LIMIT_A, wait=wait, tries=tries, is_hopeless=is_hopeless
    )


def wrong(status: int) -> Before:
    return Before(
        name=f"status-{status}",
        plan=Plan(status=status),
        openai=WRONG,
        anthropic=WRONG_A,
        tries=1,
        fails_over=False,
    )


BEFORE = (
    *(wrong(status) for status in (400, 409, 413, 422)),
    Before(
        name="status-404",
        plan=Plan(status=404),
        openai=(404, "invalid_request_error", "model_not_found"),
        anthropic=(404, "not_found_error"),
        tries=1,
        fails_over=False,
    ),
    # The gateway's own credential was refused: no further round changes that.
    *(gone(f"status-{status}", Plan(status=status), tries=1) for status in (401, 402, 403)),
    *(gone(f"status-{status}", Plan(status=status)) for status in (500, 502)),
    *(late(f"status-{status}", Plan(status=status)) for status in (408, 504)),
    *(Before(name=f"status-{it}", plan=Plan(status=it), openai=FULL, anthropic=FULL_A) for it in (503, 529)),
    Before(
        name="status-503-seconds",
        plan=Plan(status=503, retry_after=4),
        openai=FULL,
        anthropic=FULL_A,
        wait="4",
        tries=1,
    ),
    broken("status-302", Plan(status=302, headers={"location": "http://127.0.0.1:1/"})),
    limited("limit-of-nothing", None),
    limited("limit-seconds", "7", retry_after=7),
    limited("limit-fraction", "2", retry_after=1.5, tries=2),
    limited("limit-nought", "1", retry_after=0, tries=2),
    limited("limit-long", "90", retry_after=90, is_hopeless=True),
    limited("limit-past", None, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    limited("limit-words", None, retry_after="soon"),
    limited("limit-ms", "7", retry_after=600, headers={"retry-after-ms": "6500"}),
    limited("limit-resets", "18", headers=RESETS),
    limited("limit-resets-later", "5", retry_after=5, headers=RESETS),
    gone("refused", at="closed"),
    gone("unknown-host", at="nowhere"),
    gone("untrusted", at="untrusted"),
    gone("reset", Plan(fault="reset", fault_at=-1)),
    gone("closed", Plan(fault="close", fault_at=-1)),
    gone("no-http", Plan(fault="garbage", fault_at=-1)),
    short("reset-after-head", Plan(fault="reset", fault_at=0)),
    short("closed-after-head", Plan(fault="close", fault_at=0)),
    short("empty", Plan(fault="truncate", fault_at=0)),
    broken("garbage-first", Plan(fault="garbage", fault_at=0)),
    late("stall", Plan(fault="stall", fault_at=-1), at="hasty"),
    late("stall-after-head", Plan(fault="stall", fault_at=0), at="hasty"),
    late("only-comments", at="murmuring"),
    Before(
        name="error-first",
        plan=Plan(fault="error_event", fault_at=0),
        openai=GONE,
        anthropic=FULL_A,
    ),
    gone("html-502", Plan(fault="html", fault_at=-1)),
    broken("html-200", Plan(headers={"content-type": "text/html"})),
    short("html-in-stream", Plan(fault="html", fault_at=0)),
    broken("compressed", Plan(headers={"content-encoding": "gzip"})),
    broken("huge-event", Plan(text=(HUGE,))),
    gone("json-reset", Plan(json_instead_of_stream=True, fault="reset")),
    gone("json-closed", Plan(json_instead_of_stream=True, fault="close")),
    broken("json-half", Plan(json_instead_of_stream=True, fault="garbage")),
)


def within(name: str, code: str, plan: Plan, outcome: str = "failed", **more: object) -> Within:
    types = {"openai_type": "server_error", "anthropic_type": "api_error"}
    return Within(name=name, code=code, plan=plan, outcome=outcome, **{**types, **more})  # type: ignore[arg-type]


WITHIN = (
    within("w-reset", "stream_truncated", Plan(text=WORDS, fault="reset", fault_at=2, delay_s=0.05), "truncated"),
    within("w-closed", "stream_truncated", Plan(text=WORDS, fault="close", fault_at=2), "truncated"),
    within("w-short", "stream_truncated", Plan(text=WORDS, fault="truncate", fault_at=2), "truncated"),
    within("w-no-terminal", "stream_truncated", Plan(text=WORDS, fault="truncate"), "truncated", words=4),
    within("w-html", "stream_truncated", Plan(text=WORDS, fault="html", fault_at=2), "truncated"),
    within("w-garbage", "provider_protocol_error", Plan(text=WORDS, fault="garbage", fault_at=2)),
    within("w-huge", "provider_protocol_error", Plan(text=(*WORDS[:2], HUGE))),
    within(
        "w-error",
        "provider_unavailable",
        Plan(text=WORDS, fault="error_event", fault_at=2),
        anthropic_type="overloaded_error",
        anthropic_code="provider_overloaded",
    ),
    within(
        "w-stall",
        "provider_timeout",
        Plan(text=WORDS, fault="stall", fault_at=2),
        at="hasty",
        anthropic_type="timeout_error",
    ),
)
# The operator's log has this, and no client.
CAUSES = {
    "refused": "refused",
    "unknown-host": "dns: ",
    "untrusted": "tls: self-signed certificate",
    "reset": "reset",
    "closed": "closed",
    "reset-after-head": "reset",
    "json-closed": "closed",
    "status-500": None,
    "w-reset": "reset",
}
ENDLESS = Plan(text=WORDS, endless=True, delay_s=0.02)

# What is wrong and not yet mended, by client and row.
ROWS: tuple[Before | Within, ...] = (*BEFORE, *WITHIN)

by_client = pytest.mark.parametrize("client", PATHS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with bench(tmp_path_factory.mktemp("faults"), []) as running:
        for row in ROWS:
            if row.plan is not None:
                running.upstream.for_model(row.name, row.plan)
        yield running


@by_client
@pytest.mark.parametrize("row", BEFORE, ids=lambda row: row.name)
async def test_a_failure_before_the_first_word_is_an_http_error_and_costs_nothing(
    stage: Bench, row: Before, client: ClientFormat
) -> None:
    target = f"{row.at}{TYPES[client]}/{row.name}"
    for gateway, tries in (("never", 1), ("once", row.tries)):
        told, billed = await stage.ask(gateway, client, target)
        error = told.error or {}
        if client == "openai":
            assert (told.status, error["type"], error["code"]) == row.openai
        else:
            assert (told.status, error["type"]) == row.anthropic
        assert told.headers.get("retry-after") == row.wait
        assert told.headers.get("x-should-retry") == ("false" if row.is_hopeless else None)
        assert "127.0.0.1" not in error["message"] and "sk-upstream" not in error["message"]
        record = billed.record
        assert (billed.spent, record.get("attempts", 1), len(record["failed"])) == (0, tries, tries)
        assert {attempt["target"] for attempt in record["failed"]} == {target}
        assert (record["outcome"], record["reason"]) == (
            "truncated" if row.openai == SHORT else "failed",
            record["failed"][-1]["code"],
        )


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in CAUSES], ids=lambda row: row.name)
async def test_the_log_tells_the_cause_and_the_client_is_not_told(stage: Bench, row: Before | Within) -> None:
    told, _ = await stage.ask("never", "openai", f"{row.at}/{row.name}")
    cause = CAUSES[row.name]
    (logged,) = stage.causes("never", f"{row.at}/{row.name}")
    assert logged == cause if cause is None else logged is not None and logged.startswith(cause), logged
    assert told.error is not None and (logged is None or logged not in told.error["message"])


@by_client
async def test_a_date_to_wait_for_is_told_in_seconds(stage: Bench, client: ClientFormat) -> None:
    at = email.utils.formatdate(time.time() + 30, usegmt=True)
    stage.upstream.for_model(f"date-{client}", Plan(status=429, retry_after=at))
    told, billed = await stage.ask("once", client, f"up{TYPES[client]}/date-{client}")
    assert told.status == 429 and 1 < int(told.headers["retry-after"]) <= 30
    assert (billed.spent, len(billed.record["failed"])) == (0, 1)


@by_client
@pytest.mark.parametrize("row", WITHIN, ids=lambda row: row.name)
async def test_a_failure_within_an_answer_is_told_in_the_stream_and_what_came_is_charged(
    stage: Bench, row: Within, client: ClientFormat
) -> None:
    target = f"{row.at}{TYPES[client]}/{row.name}"
    told, billed = await stage.ask("once", client, target)
    code = (row.anthropic_code if client == "anthropic" else None) or row.code
    error = told.error or {}
    assert (told.status, told.text, told.is_ended) == (200, "".join(WORDS[: row.words]), False)
    if client == "openai":
        assert (error["type"], error["code"]) == (row.openai_type, code)
    else:
        assert (error["type"], error["details"]) == (row.anthropic_type, {"error_code": code})
    record = billed.record
    assert (record["outcome"], record["reason"], record["target"]) == (row.outcome, code, target)
    assert (record.get("attempts", 1), record.get("failed", [])) == (1, []), "what was said is never asked for again"
    assert record["estimated"] and record["output_tokens"] == row.words
    assert billed.spent == record["input_tokens"] * INPUT_PRICE + row.words * OUTPUT_PRICE


@by_client
@pytest.mark.parametrize("row", [row for row in WITHIN if row.at == "up"], ids=lambda row: row.name)
async def test_a_failure_within_an_answer_is_an_http_error_where_nothing_was_shown(
    stage: Bench, row: Within, client: ClientFormat
) -> None:
    told, billed = await stage.ask("once", client, f"up{TYPES[client]}/{row.name}", stream=False)
    code = (row.anthropic_code if client == "anthropic" else None) or row.code
    assert told.status == (529 if code == "provider_overloaded" else 502) and told.text == ""
    assert (billed.record["reason"], billed.record.get("attempts", 1)) == (code, 1)
    assert billed.spent <= INPUT_TOKENS * INPUT_PRICE + row.words * OUTPUT_PRICE + 10


@by_client
async def test_an_endless_stream_ends_with_its_time(stage: Bench, client: ClientFormat) -> None:
    stage.upstream.for_model("endless", ENDLESS)
    told, billed = await stage.ask("once", client, f"hasty{TYPES[client]}/endless", usd="10")
    assert told.status == 200 and told.text.startswith("".join(WORDS * 2)) and told.error is not None
    assert (billed.record["outcome"], billed.record["reason"]) == ("failed", "provider_timeout")
    assert billed.spent == billed.record["input_tokens"] + billed.record["output_tokens"] * OUTPUT_PRICE
    await stage.upstream.until(lambda upstream: upstream.open_streams == 0)


@by_client
async def test_an_event_of_ten_megabytes_passes_whole(stage: Bench, client: ClientFormat) -> None:
    stage.upstream.for_model("ten", Plan(text=("x" * 10_000_000,)))
    told, billed = await stage.ask("once", client, f"up{TYPES[client]}/ten", usd="100")
    assert (len(told.text), told.is_ended, billed.record["outcome"]) == (10_000_000, True, "complete")


@by_client
async def test_a_stream_that_lacks_only_its_terminator_is_whole(stage: Bench, client: ClientFormat) -> None:
    stage.upstream.for_model("no-done", Plan(text=WORDS, done=False))
    told, billed = await stage.ask("once", client, f"up{TYPES[client]}/no-done")
    assert (told.text, told.is_ended, billed.record["outcome"]) == ("".join(WORDS), True, "complete")


async def test_a_redirect_is_not_followed_and_no_key_goes_elsewhere(stage: Bench) -> None:
    stage.upstream.for_model("elsewhere", Plan(status=307, headers={"location": f"{stage.upstream.base_url}/v1/leak"}))
    told, _ = await stage.ask("never", "openai", "up/elsewhere")
    assert told.status == 502
    assert not any(request.path == "/v1/leak" for request in stage.upstream.requests)
