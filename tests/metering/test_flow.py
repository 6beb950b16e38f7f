"""How fast a stream may flow, and what counts as going round in circles."""

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.request import Message, Request, Text, Tool
from gateway.metering.flow import Finding, Flow, FlowRules, prompt_digest

START = 12_345.678
BURST_S = 5
LOOPS = FlowRules(loop_action="cut")


class Clock:
    """A clock that moves when somebody waits."""

    def __init__(self) -> None:
        self.now = START

    def wait_out(self, flow: Flow) -> list[float]:
        pauses = []
        while pause_s := flow.pause_s(self.now):
            pauses.append(pause_s)
            self.now += pause_s
        return pauses

    @property
    def passed_s(self) -> float:
        return self.now - START


def paced(tokens_per_minute: int) -> Flow:
    return Flow(FlowRules(tokens_per_minute, "pace"), START)


def words(text: str) -> Iterator[str]:
    """Text in pieces about as large as tokens."""
    return iter(re.findall(r"\s?\w{1,6}|\s?\W", text))


def found(text: str, rules: FlowRules = LOOPS) -> tuple[Finding, int] | None:
    """The first finding in a text, and how many characters it took."""
    flow, read = Flow(rules, START), 0
    for word in words(text):
        flow.forwarded(1, word, START)
        read += len(word)
        if (finding := flow.finding(START)) is not None:
            return finding, read
    return None


class TestPace:
    def test_a_stream_within_its_rate_is_never_held_up(self) -> None:
        flow, clock = paced(600), Clock()
        for _ in range(500):
            flow.forwarded(1, "x", clock.now)
            assert flow.pause_s(clock.now) == 0 and flow.finding(clock.now) is None
            clock.now += 0.1

    def test_a_few_seconds_worth_passes_at_once(self) -> None:
        flow = paced(600)
        flow.forwarded(10 * BURST_S, "x", START)
        assert flow.pause_s(START) == 0
        flow.forwarded(1, "x", START)
        assert flow.pause_s(START) == pytest.approx(0.1)

    def test_a_fast_stream_is_slowed_down_to_its_rate_in_short_even_pauses(self) -> None:
        flow, clock = paced(6_000), Clock()
        pauses = []
        for _ in range(10_000):
            flow.forwarded(1, "x", clock.now)
            pauses += clock.wait_out(flow)
        assert clock.passed_s == pytest.approx(100 - BURST_S, abs=0.01)
        assert max(pauses) < 0.02

    def test_a_large_lump_is_waited_for_in_pieces(self) -> None:
        flow, clock = paced(600), Clock()
        flow.forwarded(10 * BURST_S + 30, "x", START)
        pauses = clock.wait_out(flow)
        assert max(pauses) == 0.25 and clock.passed_s == pytest.approx(3, abs=0.01)

    @given(
        st.integers(1, 10_000_000),
        st.lists(st.tuples(st.integers(0, 500), st.floats(0, 20)), min_size=1, max_size=30),
    )
    def test_no_more_passes_than_the_rate_and_its_burst_allow(
        self, tokens_per_minute: int, reads: list[tuple[int, float]]
    ) -> None:
        flow, now, sent = paced(tokens_per_minute), START, 0
        for tokens, quiet_s in reads:
            now += quiet_s
            flow.forwarded(tokens, "x", now)
            now += owed_s(flow, now)
            sent += tokens
            assert sent <= (now - START + BURST_S + 0.01) * tokens_per_minute / 60

    def test_a_stream_that_has_to_be_slowed_down_is_found_once(self) -> None:
        flow = paced(600)
        flow.forwarded(51, "x", START)
        assert flow.finding(START) == Finding("token_rate", "pace", "faster than 600 tokens per minute")
        flow.forwarded(51, "x", START)
        assert flow.finding(START) is None

    def test_without_a_rule_nothing_is_slow_and_nothing_found(self) -> None:
        for rules in (FlowRules(), FlowRules(1), FlowRules(None, "pace"), FlowRules(None, "cut")):
            flow = Flow(rules, START)
            for _ in range(100):
                flow.forwarded(1_000, "all work and no play ", START)
            assert flow.pause_s(START) == 0 and flow.finding(START) is None


def owed_s(flow: Flow, now: float) -> float:
    """How long one would have to wait, by bisection: a rate of one token per minute takes too many pauses to play."""
    low, high = 0.0, 1e7
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if flow.pause_s(now + middle) else (low, middle)
    return high


class TestJudgement:
    @pytest.mark.parametrize("action", ["warn", "downgrade", "cut"])
    def test_a_stream_that_is_too_fast_is_found_once_and_not_slowed_down(self, action: str) -> None:
        flow = Flow(FlowRules(600, action), START)
        flow.forwarded(600, "x", START)
        assert flow.finding(START) is None
        flow.forwarded(1, "x", START)
        assert flow.finding(START) == Finding("token_rate", action, "faster than 600 tokens per minute")
        flow.forwarded(1_000, "x", START)
        assert flow.finding(START) is None and flow.pause_s(START) == 0

    def test_a_steady_stream_above_its_rate_is_found(self) -> None:
        flow, now = Flow(FlowRules(600, "warn"), START), START
        for _ in range(1_300):
            flow.forwarded(1, "x", now)
            now += 0.05
        assert flow.finding(now) is not None

    @given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 90)), max_size=80))
    def test_whoever_keeps_to_the_rate_in_every_minute_is_never_found(self, reads: list[tuple[int, int]]) -> None:
        flow, now = Flow(FlowRules(100, "cut"), START), 0
        sent: list[tuple[int, int]] = []
        for tokens, quiet_s in reads:
            now += quiet_s
            left = 100 - sum(earlier for at, earlier in sent if now - at < 60)
            sent.append((now, min(tokens, left)))
            flow.forwarded(min(tokens, left), "x", START + now)
            assert flow.finding(START + now) is None


LINES = [f'    self.assert_equal(parse("{n}"), {n})  # line {n}\n' for n in range(400)]
HONEST = {
    "prose": " ".join(f"The {n * 7919 % 1009}th fox jumps over dog number {n * 104729 % 997}." for n in range(300)),
    "a table": "| a | b |\n|---|---|\n" + "".join(f"| {n} | yes | no | maybe |\n" for n in range(400)),
    "similar lines of code": "".join(LINES),
    "a list of numbers": ", ".join(map(str, range(2_000))),
    "rulers": "".join(f"{'-' * 300}\nSection {n}\n{'=' * 300}\n" for n in range(20)),
    "one long ruler": "-" * 3_000,
    "a wide table's head": ("|" + "---|" * 200 + "\n") + "".join(f"| {n} |" for n in range(900)),
    "objects in an array": json.dumps([{"id": n, "kind": "point", "x": 0, "y": 0} for n in range(300)]),
    "equal objects in an array": json.dumps([{"x": 0, "y": 0, "kind": "point"}] * 90),
    "a picture of zeros": "\n".join(["[" + ", ".join(["0"] * 28) + "],"] * 28),
    "a thousand zeros": ", ".join(["0"] * 1_000),
    "a chorus": ("Row, row, row your boat,\ngently down the stream.\n" * 12) + "The end. " * 12,
    "a hexadecimal dump": "".join(f"{n:08x}  00 00 00 00 00 00 00 00  ........\n" for n in range(0, 6_400, 16)),
    "a unit too long to be sure of": "".join(f"{n} " for n in range(200)) * 11,
    "silence": "",
}
RUNAWAY = {
    "words": " one two",
    "a sentence": "I am sorry, I cannot help with that. ",
    "a paragraph": "".join(f"Step {n}: look at it once more. " for n in range(10)),
    "one character": "-",
    "line feeds": "\n",
    "Chinese": "我不知道,",
    "emoji": "😀🎉",
    "a unit with a ruler within": "-" * 200 + "|",
    "a call in a circle": '{"name":"search","arguments":{"q":"weather"}}\n',
}


class TestLoops:
    @pytest.mark.parametrize("name", HONEST)
    def test_text_with_a_pattern_is_not_a_loop(self, name: str) -> None:
        assert found(HONEST[name]) is None

    @pytest.mark.parametrize("name", RUNAWAY)
    def test_a_stream_that_says_the_same_over_and_over_is_found(self, name: str) -> None:
        unit = RUNAWAY[name]
        prelude = HONEST["prose"][:5_000]
        result = found(prelude + unit * (8_000 // len(unit)))
        assert result is not None
        finding, read = result
        assert (finding.kind, finding.action) == ("loop", "cut")
        assert "times in a row" in finding.detail and len(finding.detail) < 300
        assert read - len(prelude) < 4_096 + 128 * 7

    def test_a_loop_is_found_once(self) -> None:
        flow = Flow(LOOPS, START)
        findings = []
        for _ in range(5_000):
            flow.forwarded(2, " one two", START)
            findings.append(flow.finding(START))
        assert len([finding for finding in findings if finding is not None]) == 1

    @given(st.text(min_size=1, max_size=300), st.integers(1, 400))
    def test_it_does_not_matter_how_a_loop_is_cut_into_pieces(self, unit: str, size: int) -> None:
        text = unit * (9_000 // len(unit) + 1)
        flow = Flow(LOOPS, START)
        for i in range(0, len(text), size):
            flow.forwarded(size, text[i : i + size], START)
        assert flow.finding(START) is not None

    @given(st.text("ab", min_size=20, max_size=400), st.integers(1, 4_000))
    def test_one_other_character_is_enough_to_be_no_loop(self, unit: str, place: int) -> None:
        text = (unit * 300)[:4_096]
        flow = Flow(LOOPS, START)
        flow.forwarded(1_000, text[:place] + "c" + text[place + 1 :], START)
        assert flow.finding(START) is None

    def test_a_loop_that_is_paced_flows_slowly_from_then_on(self) -> None:
        for rules, rate in ((FlowRules(loop_action="pace"), 600), (FlowRules(60, "warn", "pace"), 60)):
            flow, clock = Flow(rules, START), Clock()
            flow.forwarded(50, "Hello. " * 20, START)
            assert flow.pause_s(START) == 0
            flow.forwarded(1_000, " one two" * 600, START)
            finding = flow.finding(START)
            assert finding is not None and finding.action == "pace"
            for _ in range(rate // 60 * (BURST_S + 3)):
                flow.forwarded(1, " one", clock.now)
                clock.wait_out(flow)
            assert clock.passed_s == pytest.approx(3, abs=0.01)

    def test_both_kinds_are_found_one_after_the_other(self) -> None:
        flow = Flow(FlowRules(60, "warn", "downgrade"), START)
        flow.forwarded(1_000, " one two" * 600, START)
        first, second = flow.finding(START), flow.finding(START)
        assert first is not None and second is not None and flow.finding(START) is None
        assert {(each.kind, each.action) for each in (first, second)} == {("token_rate", "warn"), ("loop", "downgrade")}

    def test_what_is_remembered_of_a_stream_is_bounded(self) -> None:
        flow = Flow(LOOPS, START)
        for n in range(20_000):
            flow.forwarded(1 if n % 3 else 0, f" word{n}", START)
        assert len(flow._tail) == 4_096 and len(flow._pieces or ()) < 128


class TestDigest:
    def ask(self, text: str = "Hi", model: str = "m", *tools: Tool) -> Request:
        return Request(format="f", model=model, messages=(Message("user", (Text(text),)),), tools=tools)

    def test_the_same_prompt_has_the_same_name_whatever_the_model(self) -> None:
        digest = prompt_digest(self.ask())
        assert re.fullmatch("[0-9a-f]{16}", digest)
        assert prompt_digest(self.ask(model="other")) == digest

    def test_another_text_role_or_tool_has_another_name(self) -> None:
        tool = Tool(name="f", parameters={"maximum": 10**30})
        system = Request(format="f", model="m", messages=(Message("system", (Text("Hi"),)),))
        requests = [self.ask(), self.ask("Hi "), self.ask("Hi", "m", tool), system]
        assert len({prompt_digest(request) for request in requests}) == 4
