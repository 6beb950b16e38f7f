"""Notices within chunks: where they may stand, what they are called, and that the official client reads over them."""

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx2
import pytest
from openai import APIError, OpenAI

from gateway.canonical.errors import CreditsExhausted
from gateway.canonical.events import Finish, FinishReason, Frame, MessageStart, TextDelta, Unified
from gateway.canonical.usage import Usage
from gateway.protocols.openai_chat import NAME
from gateway.protocols.openai_chat.server import AnswerEncoder, ChunkEncoder, OpenAiChatServer
from gateway.protocols.wire import Cut, Encoder, Notice, StreamMeta
from tests.protocols.chat_streams import CLIENT, DONE, ENDING, META, ROLE, SPOKEN, TEXT, chunk, heard, sse

ASKED, ASKED_FOREIGN = StreamMeta("req1", 1_700_000_000, NAME, True), StreamMeta("req1", 1_700_000_000, None, True)
BUDGET = Notice("budget", "budget_threshold", "80 % of the month's budget is used up.", 0.8, "month")
WARNING = Notice("warning", "token_rate", "The stream is fast.")
BUDGET_FIELDS = {
    "event": "budget",
    "reason": "budget_threshold",
    "message": "80 % of the month's budget is used up.",
    "share": 0.8,
    "limit": "month",
}
WARNING_FIELDS = {"event": "warning", "reason": "token_rate", "message": "The stream is fast."}
USAGE = Usage(input=12, output=7)
FRAMES = [ROLE, *TEXT, *ENDING]


def talk(encoder: Encoder, chunks: list[dict[str, Any]], notices: dict[int, list[Notice]]) -> bytes:
    """A stream with notices before the frames of these numbers, and after the last."""
    decoder, out = CLIENT.decoder("up"), []
    for number, one in enumerate(chunks):
        out += [encoder.notice(notice) for notice in notices.get(number, ())]
        out += [encoder.encode(frame) for frame in decoder.feed(sse(one))]
    out += [encoder.notice(notice) for notice in notices.get(len(chunks), ())]
    return b"".join(out) + encoder.end(USAGE)


def parsed(output: bytes) -> list[dict[str, Any]]:
    frames = output.removesuffix(DONE).split(b"\n\n")[:-1]
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def asked(include_usage: bool = True, meta: StreamMeta = ASKED) -> ChunkEncoder:
    return ChunkEncoder(meta, include_usage=include_usage)


def openai_client(body: bytes) -> OpenAI:
    head = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=head, content=body))
    return OpenAI(
        api_key="sk", base_url="http://gateway/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    )


ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("meta", [ASKED, ASKED_FOREIGN], ids=["same format", "encoded anew"])
@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("place", range(len(FRAMES)))
class TestEverywhere:
    def test_a_notice_is_a_chunk_like_the_others_but_without_choices(
        self, place: int, include_usage: bool, meta: StreamMeta
    ) -> None:
        output = talk(asked(include_usage, meta), FRAMES, {place: [BUDGET, WARNING]})
        assert heard(output, include_usage=include_usage)[0].text == SPOKEN
        chunks = parsed(output)
        noted = [one for one in chunks if "x_gateway" in one]
        assert [one["x_gateway"] for one in noted] == [BUDGET_FIELDS, WARNING_FIELDS]
        assert all(one["choices"] == [] and one["object"] == "chat.completion.chunk" for one in noted)
        assert {(one["id"], one["created"], one["model"]) for one in chunks} == {("c1", 1_700_000_001, "m")}

    def test_the_official_client_reads_over_it(self, place: int, include_usage: bool, meta: StreamMeta) -> None:
        output = talk(asked(include_usage, meta), FRAMES, {place: [BUDGET, WARNING]})
        with openai_client(output) as client:
            chunks = list(client.chat.completions.create(**ASK, stream=True))
            noted = [(one.model_extra or {})["x_gateway"] for one in chunks if "x_gateway" in (one.model_extra or {})]
            assert noted == [BUDGET_FIELDS, WARNING_FIELDS]
            with client.chat.completions.stream(**ASK) as stream:
                completion = stream.get_final_completion()
        (choice,) = completion.choices
        assert (completion.id, choice.message.role, choice.message.content) == ("c1", "assistant", SPOKEN)
        assert choice.finish_reason == "stop"
        assert (completion.usage.total_tokens if completion.usage else None) == (19 if include_usage else None)


class TestPlace:
    def test_nothing_is_said_to_those_who_did_not_ask(self) -> None:
        plain = talk(ChunkEncoder(META, include_usage=True), FRAMES, {})
        notices = {number: [BUDGET] for number in range(len(FRAMES) + 1)}
        assert talk(ChunkEncoder(META, include_usage=True), FRAMES, notices) == plain

    def test_nothing_comes_after_the_usage_that_the_client_would_lose_by_it(self) -> None:
        assert talk(asked(), FRAMES, {len(FRAMES): [BUDGET]}) == talk(asked(), FRAMES, {})

    def test_frames_of_the_provider_pass_untouched_beside_it(self) -> None:
        odd = {**TEXT[0], "x_vendor": [1]}
        output = talk(asked(), [ROLE, odd, *ENDING], {1: [BUDGET], 2: [WARNING]})
        assert sse(ROLE) in output and sse(odd) in output

    def test_the_id_of_azures_second_frame_is_waited_for(self) -> None:
        filters = {**chunk(), "id": "", "model": "", "created": 0, "prompt_filter_results": []}
        for place in (0, 1, 2):
            output = talk(asked(), [filters, *FRAMES], {place: [BUDGET]})
            (noted,) = [one for one in parsed(output) if "x_gateway" in one]
            assert (noted["id"], noted["model"], noted["created"]) == ("c1", "m", 1_700_000_001)

    def test_a_stream_that_never_has_an_id_gets_ours_for_its_notices(self) -> None:
        nameless = [{key: value for key, value in one.items() if key != "id"} for one in FRAMES]
        for place, meta in product(range(4), (ASKED, ASKED_FOREIGN)):
            output = talk(asked(meta=meta), nameless, {place: [BUDGET]})
            (noted,) = [number for number, one in enumerate(parsed(output)) if "x_gateway" in one]
            assert parsed(output)[noted]["id"] == "chatcmpl-req1" and noted <= place + 1

    @pytest.mark.parametrize("end", ["end", "cut", "fail"])
    def test_a_notice_before_a_first_frame_that_never_came_is_not_lost(self, end: str) -> None:
        encoder = asked()
        assert encoder.notice(BUDGET) == b""
        last_words: dict[str, Callable[[], bytes]] = {
            "end": lambda: encoder.end(USAGE),
            "cut": lambda: encoder.cut(Cut("credits_exhausted", "Gone."), USAGE),
            "fail": lambda: encoder.fail(CreditsExhausted("Gone.")),
        }
        first, *_ = parsed(last_words[end]())
        assert first["x_gateway"] == BUDGET_FIELDS and first["id"] == "chatcmpl-req1"

    def test_an_error_after_a_notice_is_still_raised(self) -> None:
        encoder = asked()
        encoder.notice(BUDGET)
        with (
            openai_client(encoder.fail(CreditsExhausted("No credit."))) as client,
            pytest.raises(APIError, match="No credit"),
        ):
            list(client.chat.completions.create(**ASK, stream=True))

    def test_a_cut_after_a_notice_keeps_its_own_reason(self) -> None:
        encoder, decoder = asked(), CLIENT.decoder("up")
        output = b"".join(encoder.encode(frame) for frame in decoder.feed(sse(ROLE) + sse(TEXT[0])))
        output += encoder.notice(BUDGET) + encoder.cut(Cut("token_rate", "Too fast."), USAGE)
        noted = [one["x_gateway"] for one in parsed(output) if "x_gateway" in one]
        assert noted == [BUDGET_FIELDS, {"outcome": "cut", "reason": "token_rate", "message": "Too fast."}]
        assert heard(output)[0].finish == "length"


class TestWholeAnswer:
    def test_the_notices_are_beside_the_answer(self) -> None:
        encoder = AnswerEncoder(asked())
        answer = json.loads(talk(encoder, FRAMES, {0: [BUDGET], len(FRAMES): [WARNING]}))
        assert answer["x_gateway"] == {"events": [BUDGET_FIELDS, WARNING_FIELDS]}
        assert (answer["id"], answer["choices"][0]["message"]["content"]) == ("c1", SPOKEN)
        assert answer["usage"]["total_tokens"] == 19

    def test_a_cut_has_its_reason_and_the_notices(self) -> None:
        encoder = AnswerEncoder(asked(meta=ASKED_FOREIGN))
        for frame in (Frame((MessageStart("c1", "m", 1),)), Frame((TextDelta("Hel"),))):
            assert encoder.encode(frame) == encoder.notice(BUDGET) == b""
        note = json.loads(encoder.cut(Cut("loop", "Round and round."), USAGE))["x_gateway"]
        assert note["outcome"] == "cut" and note["reason"] == "loop" and note["events"] == [BUDGET_FIELDS] * 2

    def test_nothing_is_said_to_those_who_did_not_ask(self) -> None:
        encoder = AnswerEncoder(ChunkEncoder(META, include_usage=True))
        assert "x_gateway" not in json.loads(talk(encoder, FRAMES, {1: [BUDGET]}))

    def test_both_ways_to_answer_know_who_asked(self) -> None:
        server = OpenAiChatServer()
        for stream in (True, False):
            request = server.decode_request(json.dumps({**ASK, "stream": stream}).encode(), {})
            encoder = server.encoder(request, ASKED_FOREIGN)
            start, finish = MessageStart("c1", "m", 1), Finish(FinishReason(Unified.STOP))
            output = encoder.encode(Frame((start,))) + encoder.notice(BUDGET) + encoder.encode(Frame((finish,)))
            assert b'"event":"budget"' in output + encoder.end(USAGE)
