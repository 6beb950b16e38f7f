"""The order in which events are legal, choice by choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.caller import Caller
from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    ProviderError,
    ProviderProtocolError,
    ProviderRejected,
    StreamTruncated,
)
from gateway.canonical.events import (
    TRANSITIONS,
    Event,
    Failure,
    Finish,
    FinishReason,
    MessageStart,
    Order,
    Phase,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage

STOP = FinishReason(Unified.STOP, "stop")
WHOLE_STREAM: list[Event] = [
    MessageStart("id", "model", 1),
    UsageReport(Usage()),
    Failure(ProviderError("broken", provider="up")),
]


def of_choice(choice: int) -> list[Event]:
    return [
        TextDelta("t", choice),
        RefusalDelta("r", choice),
        ReasoningDelta("x", choice),
        ReasoningEnd("s", choice),
        RedactedReasoning("d", choice),
        ToolCallStart(0, "id", "name", choice),
        ToolCallDelta(0, "{}", choice),
        ToolCallEnd(0, choice),
        Finish(STOP, choice),
    ]


def follow(*events: Event) -> Order:
    order = Order()
    for event in events:
        order.check(event, "up")
    return order


def test_an_ordinary_stream_is_legal_and_finished() -> None:
    order = follow(
        MessageStart("id", "m", 1),
        ReasoningDelta("x"),
        ReasoningEnd("s"),
        TextDelta("t"),
        ToolCallStart(0, "a", "f"),
        ToolCallDelta(0, "{}"),
        ToolCallStart(1, "b", "g"),
        ToolCallDelta(1, "{}"),
        ToolCallEnd(0),
        ToolCallEnd(1),
        Finish(STOP),
        UsageReport(Usage()),
    )
    assert order.is_finished


@pytest.mark.parametrize("event", of_choice(0), ids=lambda event: type(event).__name__)
def test_nothing_of_a_choice_follows_its_finish(event: Event) -> None:
    order = follow(Finish(STOP))
    with pytest.raises(ProviderProtocolError, match=f"{type(event).__name__} while choice 0 was finished") as caught:
        order.check(event, "up")
    assert caught.value.provider == "up"


def test_arguments_need_a_call_that_began() -> None:
    with pytest.raises(ProviderProtocolError):
        follow(TextDelta("t"), ToolCallDelta(0, "{}"))


@pytest.mark.parametrize("event", WHOLE_STREAM, ids=lambda event: type(event).__name__)
def test_what_belongs_to_the_whole_stream_is_legal_at_any_time(event: Event) -> None:
    assert not follow(event).is_finished
    assert follow(TextDelta("t"), event, Finish(STOP), event).is_finished


def test_choices_do_not_wait_for_each_other() -> None:
    order = follow(TextDelta("a", 0), TextDelta("b", 1), Finish(STOP, 1), ToolCallStart(0, "i", "f", 0))
    assert not order.is_finished
    order.check(Finish(STOP, 0), "up")
    assert order.is_finished


def test_a_stream_that_said_nothing_is_not_finished() -> None:
    assert not follow().is_finished
    assert not follow(*WHOLE_STREAM).is_finished


def test_every_event_of_a_choice_has_its_place_in_the_table() -> None:
    placed = {kind for row in TRANSITIONS.values() for kind in row}
    assert placed == {type(event) for event in of_choice(0)}
    assert set(TRANSITIONS) == set(Phase)


@given(st.lists(st.sampled_from([*of_choice(0), *of_choice(1), *WHOLE_STREAM]), max_size=30))
def test_what_the_order_lets_pass_ends_each_choice_once(events: list[Event]) -> None:
    order, passed = Order(), []
    for event in events:
        try:
            order.check(event, "up")
        except ProviderProtocolError:
            continue
        passed.append(event)
    finished = [event.choice for event in passed if isinstance(event, Finish)]
    assert len(finished) == len(set(finished))
    seen = {getattr(event, "choice", None) for event in passed} - {None}
    assert order.is_finished == (bool(seen) and seen == set(finished))


def test_every_error_code_has_a_status_and_belongs_to_an_error() -> None:
    for code in ErrorCode:
        error = GatewayError("m", code=code)
        assert 400 <= error.code.http_status < 600
        assert error.should_retry is None
    assert GatewayError("bug").code.http_status == 500


def test_errors_keep_what_clients_and_routers_ask_for() -> None:
    assert CreditsExhausted("m").should_retry is False
    limit = LimitExceeded("m", limit="requests", scope="account", retry_after_s=2.5)
    assert (limit.limit, limit.scope, limit.retry_after_s, limit.code.http_status) == ("requests", "account", 2.5, 429)
    assert not ProviderRejected("m", provider="up").retryable
    assert StreamTruncated("m", provider="up").retryable
    assert not ProviderError("m", provider="up", retryable=False).retryable


def test_a_caller_without_a_list_may_use_every_model() -> None:
    caller = Caller(account="acme", subject="s", method="api_key")
    assert caller.may_use("anything")
    assert not Caller(account="a", subject="s", method="m", models=frozenset(("x",))).may_use("y")
    assert not Caller(account="a", subject="s", method="m", models=frozenset()).may_use("x")


def test_the_total_is_input_and_output() -> None:
    assert Usage(input=3, output=4, cache_read=2, reasoning=1).total == 7
