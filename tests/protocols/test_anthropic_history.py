"""Any history becomes turns that alternate, with every call answered in the next."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import ErrorCode
from gateway.canonical.request import Image, Message, Part, Reasoning, Request, Text, ToolResult
from tests.protocols.anthropic_shapes import (
    CACHE,
    CLIENT,
    UNANSWERED,
    assistant,
    call,
    refused,
    result,
    system,
    text,
    tool_result,
    tool_use,
    turns,
    user,
)


class TestRepairingAHistory:
    def test_turns_of_one_role_are_merged(self) -> None:
        assert turns(user("a"), user("b"), assistant("c"), assistant("d"), user("e")) == [
            ("user", [text("a"), text("b")]),
            ("assistant", [text("c"), text("d")]),
            ("user", [text("e")]),
        ]

    def test_results_of_parallel_calls_come_first_in_the_next_turn_in_the_order_of_the_calls(self) -> None:
        history = (user("?"), assistant("Wait.", call("a"), call("b")), result("b"), user("And?"), result("a", "rain"))
        assert turns(*history)[1:] == [
            ("assistant", [text("Wait."), tool_use("a"), tool_use("b")]),
            ("user", [tool_result("a", text("rain")), tool_result("b"), text("And?")]),
        ]

    def test_calls_spread_over_several_messages_are_answered_together(self) -> None:
        history = (user("?"), assistant(call("a")), assistant(call("b")), result("a"), result("b"))
        assert turns(*history)[1:] == [
            ("assistant", [tool_use("a"), tool_use("b")]),
            ("user", [tool_result("a"), tool_result("b")]),
        ]

    def test_calls_in_sequence_stay_apart(self) -> None:
        history = (user("?"), assistant(call("a")), result("a"), assistant(call("b")), result("b"), assistant("Done."))
        assert [role for role, _ in turns(*history)] == ["user", "assistant", "user", "assistant", "user", "assistant"]

    def test_an_id_used_in_two_turns_keeps_its_pairs_apart(self) -> None:
        history = (
            *(user("?"), assistant(call("a")), user("never mind"), assistant("Well.")),
            *(user("?"), assistant(call("a")), result("a", "rain")),
        )
        content = [blocks for role, blocks in turns(*history) if role == "user"]
        assert content[1] == [tool_result("a", UNANSWERED, is_error=True), text("never mind")]
        assert content[3] == [tool_result("a", text("rain"))]

    @pytest.mark.parametrize("following", [(), (user("Stop."),), (assistant("Stop."),)])
    def test_a_call_that_was_never_answered_gets_an_error_as_its_answer(self, following: tuple[Message, ...]) -> None:
        sent = turns(user("?"), assistant(call("a")), *following)
        assert sent[2][0] == "user"
        assert sent[2][1][0] == tool_result("a", UNANSWERED, is_error=True)

    def test_a_result_that_comes_late_is_moved_to_where_it_belongs(self) -> None:
        sent = turns(user("?"), assistant(call("a")), user("Hm."), assistant("Hm."), result("a"), user("So?"))
        assert sent[2] == ("user", [tool_result("a"), text("Hm.")])
        assert sent[4] == ("user", [text("So?")])

    def test_a_result_without_its_call_is_dropped_and_leaves_no_empty_turn(self) -> None:
        assert turns(user("a"), assistant("b"), result("gone"), assistant("c"), result("gone"), user("d")) == [
            ("user", [text("a")]),
            ("assistant", [text("b"), text("c")]),
            ("user", [text("d")]),
        ]

    def test_a_result_before_its_call_is_dropped(self) -> None:
        sent = turns(user("?"), result("a", "early"), assistant(call("a")), result("a", "right"))
        assert sent == [
            ("user", [text("?")]),
            ("assistant", [tool_use("a")]),
            ("user", [tool_result("a", text("right"))]),
        ]

    def test_a_second_result_of_one_call_is_dropped(self) -> None:
        assert turns(user("?"), assistant(call("a")), result("a", "first"), result("a", "second"))[2] == (
            "user",
            [tool_result("a", text("first"))],
        )

    def test_results_may_stand_in_a_user_message_and_hold_pictures_errors_and_markers(self) -> None:
        content = (Text("see"), Image(data="aGk=", media_type="image/png"), Text(""))
        answer = user("Now?", ToolResult("a", content, is_error=True, cache=CACHE))
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
        assert turns(user("?"), assistant(call("a")), answer)[2] == (
            "user",
            [tool_result("a", text("see"), picture, is_error=True, cache_control=CACHE), text("Now?")],
        )

    def test_an_empty_result_stays_an_answer(self) -> None:
        sent = turns(user("?"), assistant(call("a")), result("a", ""))
        assert sent[2] == ("user", [{"type": "tool_result", "tool_use_id": "a"}])

    def test_empty_texts_are_dropped_and_so_are_turns_of_nothing_else(self) -> None:
        assert turns(user("a", "", " \n"), assistant(""), user("b"), assistant("c", "")) == [
            ("user", [text("a"), text("b")]),
            ("assistant", [text("c")]),
        ]

    def test_a_prefill_loses_its_trailing_whitespace(self) -> None:
        assert turns(user("a"), assistant("Sure: \n"))[1] == ("assistant", [text("Sure:")])
        assert turns(user("a"), assistant(" \n")) == [("user", [text("a")])]
        assert turns(user("a"), assistant("b "), user("c"))[1] == ("assistant", [text("b ")])

    def test_ids_in_another_alphabet_are_mapped_alike_in_call_result_and_next_request(self) -> None:
        history = (user("?"), assistant(call("functions.f:0"), call("")), result("functions.f:0"), result(""))
        first, second = turns(*history), turns(*history, user("more"))
        ids = [block["id"] for block in first[1][1]]
        assert [block["tool_use_id"] for block in first[2][1]] == ids == [block["id"] for block in second[1][1]]
        assert all(len(mapped) == 29 and mapped.startswith("call_") for mapped in ids)
        assert len(set(ids)) == 2

    def test_an_id_with_a_line_end_is_mapped_too(self) -> None:
        assert turns(user("?"), assistant(call("a\n")))[1][1][0]["id"] != "a\n"

    def test_signed_reasoning_is_replayed_as_it_was_and_unsigned_is_dropped(self) -> None:
        thought = (Reasoning("Hm. \n", "EqQB+/=="), Reasoning(redacted="c2Vj"), Reasoning("unsigned"))
        assert turns(user("?"), assistant(*thought, call("a")), result("a"))[1][1] == [
            {"type": "thinking", "thinking": "Hm. \n", "signature": "EqQB+/=="},
            {"type": "redacted_thinking", "data": "c2Vj"},
            tool_use("a"),
        ]

    def test_reasoning_that_nothing_follows_is_dropped(self) -> None:
        assert turns(user("a"), assistant(Reasoning("Hm.", "sig")), user("b")) == [("user", [text("a"), text("b")])]
        assert turns(user("a"), assistant(Reasoning("Hm.", "sig")), assistant("c"))[1][1][0]["type"] == "thinking"

    @pytest.mark.parametrize(
        ("arguments", "given"),
        [
            ("", {}),
            (" ", {}),
            ('{"city": "Bern"}', {"city": "Bern"}),
            ('{"city": "Be', {"_raw": '{"city": "Be'}),
            ("[1]", {"_raw": "[1]"}),
            ("[" * 100_000, {"_raw": "[" * 100_000}),
        ],
    )
    def test_arguments_are_always_an_object(self, arguments: str, given: dict[str, Any]) -> None:
        assert turns(user("?"), assistant(call("a", arguments)))[1][1][0]["input"] == given

    def test_numbers_in_arguments_keep_their_digits(self) -> None:
        request = Request(
            format="x", model="m", messages=(user("?"), assistant(call("a", '{"n":1.00000000000000000009}')))
        )
        assert b'{"n":1.00000000000000000009}' in CLIENT.encode_request(request, "m")

    def test_a_history_without_content_is_refused(self) -> None:
        for history in [(system("You are."),), (user(""),), (result("gone"),)]:
            error = refused(*history)
            assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "messages")

    @given(
        st.lists(
            st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.lists(st.sampled_from("ab "), max_size=3)),
            max_size=12,
        )
    )
    @settings(deadline=None)
    def test_whatever_the_history_turns_alternate_and_every_call_is_answered_in_the_next(self, script: Any) -> None:
        history = [user("Hi")]
        for role, letters in script:
            made: list[Part] = [Text(letter) for letter in letters]
            if role == "assistant":
                made += [call(letter) for letter in dict.fromkeys(letters)]
            elif role == "tool":
                made = [ToolResult(letter, (Text(letter),)) for letter in letters]
            history.append(Message(role, tuple(made)))
        sent = turns(*history)
        assert [role for role, _ in sent] == ["user" if i % 2 == 0 else "assistant" for i in range(len(sent))]
        for (_, blocks), (_, after) in zip(sent, [*sent[1:], ("user", [])], strict=True):
            asked = list(dict.fromkeys(block["id"] for block in blocks if block["type"] == "tool_use"))
            answered = [block["tool_use_id"] for block in after if block["type"] == "tool_result"]
            assert sorted(set(answered)) == sorted(asked)
            assert all(block["type"] == "tool_result" for block in after[: len(answered)])
            assert blocks
