"""Notices in the data stream of AI SDK 4: data parts, within the message that is open."""

import json
from typing import Any

from gateway.canonical.errors import CreditsExhausted
from gateway.canonical.events import Finish, FinishReason, Frame, MessageStart, TextDelta, Unified
from gateway.canonical.usage import Usage
from gateway.protocols.ai_sdk_4 import AiSdk4Server, DataStreamEncoder
from gateway.protocols.wire import Cut, Notice, StreamMeta
from tests.protocols.chat_streams import FOREIGN

BUDGET = Notice("budget", "budget_threshold", "95 % of the budget is used up.", 0.95, "month")
DOWNGRADE = Notice("downgrade", "loop", "The next answer comes\nfrom a smaller model.")
BUDGET_PART = {
    "type": "gateway-budget",
    "event": "budget",
    "reason": "budget_threshold",
    "message": "95 % of the budget is used up.",
    "share": 0.95,
    "limit": "month",
}
USAGE = Usage(input=12, output=7)
FRAMES = [
    Frame((MessageStart("id", "m", 1),)),
    Frame((TextDelta("Hel"),)),
    Frame((TextDelta("lo"),)),
    Frame((Finish(FinishReason(Unified.STOP)),)),
]


def lines(output: bytes) -> list[tuple[str, Any]]:
    assert output.endswith(b"\n")
    parts = (line.partition(":") for line in output.decode().split("\n")[:-1])
    return [(code, json.loads(value)) for code, _, value in parts]


def test_a_notice_is_a_data_part_wherever_it_comes() -> None:
    for place in range(len(FRAMES) + 1):
        encoder = DataStreamEncoder(FOREIGN)
        output = [encoder.encode(frame) for frame in FRAMES[:place]]
        output.append(encoder.notice(BUDGET))
        output += [encoder.encode(frame) for frame in FRAMES[place:]]
        parts = lines(b"".join(output) + encoder.end(USAGE))
        assert [value for code, value in parts if code == "2"] == [[BUDGET_PART]]
        assert "".join(value for code, value in parts if code == "0") == "Hello"
        assert [code for code, _ in parts].count("f") == 1
        assert parts[0] == ("f", {"messageId": "msg-req1"}), "before it the message has no id that lasts"


def test_a_notice_is_one_line_and_leaves_out_what_is_not_set() -> None:
    encoder = DataStreamEncoder(StreamMeta("r", 1, None, wants_notices=False))
    (_, (code, value)) = lines(encoder.notice(DOWNGRADE))
    message = "The next answer comes\nfrom a smaller model."
    assert (code, value) == (
        "2",
        [{"type": "gateway-downgrade", "event": "downgrade", "reason": "loop", "message": message}],
    )


def test_an_error_and_a_cut_after_a_notice_are_the_last_line() -> None:
    for end in ("cut", "fail"):
        encoder = DataStreamEncoder(FOREIGN)
        output = encoder.notice(BUDGET)
        output += encoder.cut(Cut("loop", "Gone."), USAGE) if end == "cut" else encoder.fail(CreditsExhausted("Gone."))
        assert [code for code, _ in lines(output)] == ["f", "2", *(["2"] if end == "cut" else []), "3"]


def test_the_server_needs_no_asking() -> None:
    server = AiSdk4Server()
    request = server.decode_request(b'{"messages":[{"role":"user","content":"x"}]}', {"model": "m"})
    assert b'2:[{"type":"gateway-budget"' in server.encoder(request, FOREIGN).notice(BUDGET)
