"""Requests held against cards: refused with the reason, or sent without what the model would refuse."""

from typing import Any

import msgspec
import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Request
from gateway.catalogue.cards import NOTHING_KNOWN, ModelCard
from gateway.catalogue.fitting import check_capabilities, check_length, fitted, losses, words_of
from gateway.metering.tokens import count_input
from gateway.protocols.anthropic_messages import incoming as messages
from gateway.protocols.openai_chat import incoming as chat
from gateway.protocols.openai_responses import incoming as responses

TEXT_ONLY = ModelCard(capabilities=frozenset())
THINKS_NOT = ModelCard(capabilities=frozenset(("tools", "images", "documents", "audio", "json_schema")))
FIXED = ModelCard(
    refuses=frozenset(("temperature", "top_p", "logit_bias", "logprobs", "parallel_tool_calls", "presence_penalty"))
)
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "r", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def asked(**more: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more}
    return chat.decode(msgspec.json.encode(body))


def claude(**more: Any) -> Request:
    body = {"model": "m", "max_tokens": 4000, "messages": [{"role": "user", "content": "Hello"}], **more}
    return messages.decode(msgspec.json.encode(body))


def fields(request: Request) -> dict[str, Any]:
    """The body as a provider of the same format gets it."""
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(request.raw))
    return decoded


def named(request: Request, card: ModelCard) -> list[str]:
    return [f"{loss.fate}:{loss.field}" for loss in losses(request, card)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "param", "words"),
        [
            ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages", "images"),
            ({"tools": [TOOL]}, "tools", "tools"),
            ({"response_format": SCHEMA}, "response_format", "JSON schema"),
        ],
    )
    def test_what_a_model_lacks_is_refused_with_field_and_reason(
        self, more: dict[str, Any], param: str, words: str
    ) -> None:
        with pytest.raises(RequestError) as caught:
            check_capabilities(asked(**more), TEXT_ONLY)
        assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_VALUE, param)
        assert words in caught.value.message

    def test_what_nobody_knows_is_not_refused(self) -> None:
        check_capabilities(asked(tools=[TOOL], response_format=SCHEMA, stop=["."]), NOTHING_KNOWN)

    def test_any_object_is_no_schema(self) -> None:
        check_capabilities(asked(response_format={"type": "json_object"}), TEXT_ONLY)

    def test_the_field_is_spelled_as_the_clients_format_does(self) -> None:
        body = {
            "model": "m",
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/a"}]}],
        }
        with pytest.raises(RequestError) as caught:
            check_capabilities(responses.decode(msgspec.json.encode(body)), TEXT_ONLY)
        assert caught.value.param == "input"
        shaped = claude(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
        with pytest.raises(RequestError) as caught:
            check_capabilities(shaped, TEXT_ONLY)
        assert caught.value.param == "output_config.format"

    def test_stop_sequences_are_refused_and_not_dropped(self) -> None:
        card = ModelCard(refuses=frozenset(("stop",)))
        with pytest.raises(RequestError) as caught:
            check_capabilities(claude(stop_sequences=["."]), card)
        assert caught.value.param == "stop_sequences"
        assert fitted(claude(stop_sequences=["."]), card).sampling.stop == (".",)


class TestLosses:
    def test_parameters_that_a_model_refuses_are_left_out_of_the_clients_own_body(self) -> None:
        request = asked(temperature=0.2, logit_bias={"5": 1}, seed=3, parallel_tool_calls=False)
        assert named(request, FIXED) == ["dropped:temperature", "dropped:logit_bias", "dropped:parallel_tool_calls"]
        fit = fitted(request, FIXED)
        assert fields(fit) == {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "seed": 3}
        assert (fit.sampling.temperature, fit.sampling.seed, fit.parallel_tool_calls) == (None, 3, None)

    def test_values_that_ask_for_nothing_are_left_out_without_a_word(self) -> None:
        request = asked(temperature=1, presence_penalty=0, logprobs=False)
        assert named(request, FIXED) == []
        assert fields(fitted(request, FIXED)).keys() == {"model", "messages"}

    @pytest.mark.parametrize("card", [NOTHING_KNOWN, FIXED, THINKS_NOT, ModelCard(output_tokens_max=9)])
    def test_a_request_that_fits_stays_the_same_object(self, card: ModelCard) -> None:
        request = asked(seed=3)
        assert fitted(request, card) is request and named(request, card) == []

    def test_an_effort_is_not_sent_to_a_model_that_does_not_reason(self) -> None:
        request = asked(reasoning_effort="high")
        assert named(request, THINKS_NOT) == ["dropped:reasoning_effort"]
        assert fitted(request, THINKS_NOT).effort is None
        assert "reasoning_effort" not in fields(fitted(request, THINKS_NOT))
        assert named(asked(reasoning_effort="none"), THINKS_NOT) == []

    def test_an_effort_in_responses_goes_and_what_is_beside_it_stays(self) -> None:
        body = {"model": "m", "input": "Hello", "reasoning": {"effort": "low", "summary": "auto"}}
        request = responses.decode(msgspec.json.encode(body))
        assert named(request, THINKS_NOT) == ["dropped:reasoning.effort"]
        assert fields(fitted(request, THINKS_NOT))["reasoning"] == {"summary": "auto"}

    def test_thinking_is_named_once_where_an_effort_was_read_off_it(self) -> None:
        request = claude(thinking={"type": "enabled", "budget_tokens": 2000})
        assert request.effort is not None
        assert named(request, THINKS_NOT) == ["dropped:thinking"]
        fit = fitted(request, THINKS_NOT)
        assert (fit.effort, fit.thinking) == (None, None) and "thinking" not in fields(fit)

    def test_thinking_that_is_switched_off_is_no_loss(self) -> None:
        assert named(claude(thinking={"type": "disabled"}), THINKS_NOT) == []
        assert named(asked(thinking={"type": "disabled"}), THINKS_NOT) == []

    def test_a_bound_above_what_the_model_can_say_is_lowered(self) -> None:
        card = ModelCard(output_tokens_max=1000)
        assert named(claude(), card) == ["lowered:max_tokens"]
        assert fitted(claude(), card).output_tokens_max == 1000
        assert fitted(asked(), card).output_tokens_max is None


class TestLength:
    def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_look_for(self) -> None:
        check_length(asked(), 100, 100)
        check_length(asked(), 100, None)
        with pytest.raises(RequestError) as caught:
            check_length(asked(), 101, 100)
        assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and caught.value.code.http_status == 400
        assert "prompt is too long: 101 tokens > 100 maximum" in caught.value.message
        assert "maximum context length" in caught.value.message

    async def test_files_and_tools_count_for_nothing_where_words_alone_decide(self) -> None:
        said = {"type": "text", "text": "Hello"}
        plain = asked(messages=[{"role": "user", "content": [said]}])
        laden = asked(messages=[{"role": "user", "content": [said, PICTURE]}], tools=[TOOL], response_format=SCHEMA)
        assert await count_input(words_of(laden), len) == await count_input(words_of(plain), len)
        assert await count_input(laden, len) > await count_input(plain, len)
