"""Calls and results: after the repair each call is answered once, in the turn that follows it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.request import Message, Part, Text, ToolCall, ToolResult
from gateway.protocols.tool_results import UNANSWERED, answered

HI, CALL = Message("user", (Text("Hi"),)), ToolCall("a", "f", "{}")


def result(identity: str, text: str = "x") -> ToolResult:
    return ToolResult(identity, (Text(text),))


def test_a_conversation_without_gaps_stays_as_it_is() -> None:
    whole = (HI, Message("assistant", (Text("So"), CALL)), Message("tool", (result("a"),)), HI)
    assert answered(whole) == whole


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    missing = Message("tool", (ToolResult("a", (Text(UNANSWERED),), is_error=True),))
    assert answered((HI, Message("assistant", (CALL,)), HI)) == (HI, Message("assistant", (CALL,)), missing, HI)
    assert answered((Message("assistant", (CALL,)),))[1:] == (missing,)


def test_results_are_taken_out_of_the_turn_they_stand_in_and_put_after_their_calls() -> None:
    turn = Message("assistant", (CALL, ToolCall("b", "f", "{}")))
    mixed = Message("user", (result("b", "2"), Text("Go on."), result("a", "1"), result("nobody")))
    assert answered((turn, HI, mixed)) == (
        turn,
        Message("tool", (result("a", "1"), result("b", "2"))),
        HI,
        Message("user", (Text("Go on."),)),
    )


def test_an_id_used_twice_keeps_its_pairs_apart() -> None:
    turn = Message("assistant", (CALL,))
    twice = (turn, Message("tool", (result("a", "1"),)), turn, Message("tool", (result("a", "2"),)))
    assert answered(twice) == twice


parts: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, st.text()),
    st.builds(result, st.sampled_from("abc")),
    st.builds(ToolCall, st.sampled_from("abc"), st.just("f"), st.just("{}")),
)
messages = st.builds(
    lambda role, held: Message(role, tuple(held)), st.sampled_from(("user", "assistant", "tool")), st.lists(parts)
)


@given(st.lists(messages, max_size=8).map(tuple))
def test_whatever_comes_every_call_is_followed_by_its_results_and_by_no_others(said: tuple[Message, ...]) -> None:
    repaired = answered(said)
    assert answered(repaired) == repaired
    end = Message("user", ())
    for before, after in pairwise((end, *repaired, end)):
        calls = [part.id for part in before.parts if isinstance(part, ToolCall)] if before.role == "assistant" else []
        results = [part.tool_call_id for part in after.parts if isinstance(part, ToolResult)]
        if after.role != "assistant":
            assert results == list(dict.fromkeys(calls))
