"""Counting: exact where the tokenizer is known, a bound where it is not, and attachments by their size."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from gateway.metering import tokens
from gateway.metering.tokens import count_bytes, count_input, counter, survey, tokenizer_of
from gateway.protocols.openai_chat.server import OpenAiChatServer

O200K = counter()
words = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=20)


def asked(*parts: Part, **fields: Any) -> Request:
    return Request(format="openai_chat", model="m", messages=(Message("user", parts),), **fields)


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        ("o200k", "Hello, world!", 4),
        ("cl100k", "Hello, world!", 4),
        ("o200k", "antidisestablishmentarianism", 6),
        ("bytes", "Zürich", 7),
        ("o200k", "", 0),
        ("o200k", "<|endoftext|>", 7),
    ],
)
def test_known_tokenizers_are_exact(tokenizer: str, text: str, expected: int) -> None:
    assert counter(tokenizer)(text) == expected


@given(st.text())
def test_bytes_bound_every_tokenizer(text: str) -> None:
    assert O200K(text) <= count_bytes(text)
    assert counter("cl100k")(text) <= count_bytes(text)


@given(st.lists(st.text(), max_size=10))
def test_bytes_are_the_same_however_a_text_is_cut(pieces: list[str]) -> None:
    assert sum(map(count_bytes, pieces)) == count_bytes("".join(pieces))


@given(words, st.data())
def test_a_text_cut_between_its_words_never_counts_less_than_the_whole(pieces: list[str], data: st.DataObject) -> None:
    # Within a word it may, by a token: byte pair encoding is greedy, and two halves can merge better than the whole.
    spaced = [pieces[0], *(f" {word}" for word in pieces[1:])]
    cut = data.draw(st.integers(0, len(spaced)))
    whole = O200K("".join(spaced))
    assert O200K("".join(spaced[:cut])) + O200K("".join(spaced[cut:])) >= whole


def test_a_lone_surrogate_is_counted_and_not_raised() -> None:
    assert count_bytes("\ud800") == 3


def test_without_the_compiled_tokenizer_the_bound_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_bpe", None)
    assert counter("o200k") is count_bytes


async def test_everything_the_model_reads_is_counted() -> None:
    request = Request(
        format="openai_chat",
        model="m",
        messages=(
            Message("system", (Text("12345"),)),
            Message("assistant", (Refusal("12"), Reasoning("123"), Reasoning(redacted="1234"))),
            Message("assistant", (ToolCall("i", "n", "{}"),)),
            Message("tool", (ToolResult("i", (Text("1234567"), Image(url="https://x/y"))),)),
        ),
    )
    fixed = 3 + 4 * 4
    texts = 5 + 2 + 3 + 4 + len("n{}") + 7
    assert await count_input(request, count_bytes) == fixed + texts + 1600


async def test_tools_and_schemas_count_as_the_json_they_are_sent_as() -> None:
    bare = await count_input(asked(Text("x")), count_bytes)
    tool = Tool(name="weather", parameters={"type": "object"})
    with_tool = await count_input(asked(Text("x"), tools=(tool,)), count_bytes)
    assert with_tool - bare >= len('{"name":"weather","parameters":{"type":"object"}}')
    schema = JsonSchema(schema={"type": "object"})
    assert await count_input(asked(Text("x"), json_schema=schema), count_bytes) - bare == len('{"type":"object"}')
    assert await count_input(asked(Text("x"), json_schema=JsonSchema()), count_bytes) == bare


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Image(data="A" * 10_000, media_type="image/png"), 1600),
        (Document(data="A" * 4000, media_type="application/pdf"), 1000),
        (Audio(data="A" * 400, format="wav"), 100),
        (Document(file_id="file-1"), 0),
        (Opaque("video"), 0),
    ],
)
async def test_attachments_count_by_kind_and_size(part: Part, expected: int) -> None:
    assert await count_input(asked(part), count_bytes) == 3 + 4 + expected


async def test_a_long_text_is_counted_in_slices_and_almost_alike() -> None:
    short = "lorem ipsum " * 10
    long = short * 1000
    seams = len(long) // 65_536 + 1
    assert abs(await count_input(asked(Text(long)), O200K) - 7 - O200K(long)) <= 2 * seams
    assert await count_input(asked(Text(short)), O200K) == 7 + O200K(short)


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("gpt-4", "cl100k"),
        ("gpt-4-turbo-2024-04-09", "cl100k"),
        ("gpt-3.5-turbo", "cl100k"),
        ("gpt-35-turbo", "cl100k"),
        ("ft:gpt-3.5-turbo-0125:acme::1", "cl100k"),
        ("openai/gpt-4", "cl100k"),
        ("gpt-4o-mini", "o200k"),
        ("gpt-4.1", "o200k"),
        ("gpt-4.5-preview", "o200k"),
        ("gpt-5", "o200k"),
        ("o3", "o200k"),
        ("openai/gpt-4o", "o200k"),
        ("claude-opus-4-1", "o200k"),
        ("my-gpt-4", "o200k"),
    ],
)
def test_the_older_models_are_counted_with_their_own_tokenizer(model: str, tokenizer: str) -> None:
    assert tokenizer_of(model) == tokenizer


def test_the_tokenizers_differ_where_they_should() -> None:
    text = "こんにちは世界"
    assert [counter(name)(text) for name in ("o200k", "cl100k", "bytes")] == [2, 4, 21]


@pytest.mark.parametrize("unit", ["a", " ", "\n", "😀", "漢", "aA1_", "e\u0301", "1"])
async def test_a_long_run_of_one_thing_is_counted_like_any_text(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    assert 0 < await count_input(asked(Text(text)), O200K) - 7 <= count_bytes(text)


async def test_a_prompt_of_five_megabytes_lets_others_go_first() -> None:
    ended = []

    async def count(name: str, text: str) -> None:
        await count_input(asked(Text(text)), O200K)
        ended.append(name)

    async def turns() -> int:
        for turn in itertools.count():
            if "large" in ended:
                return turn
            await asyncio.sleep(0)
        raise AssertionError

    taken, *_ = await asyncio.gather(turns(), count("large", "lorem ipsum " * 420_000), count("small", "Hello"))
    assert ended == ["small", "large"]
    assert taken >= 5_000_000 // 65_536


async def test_after_the_deadline_the_rest_is_bounded_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_DEADLINE_S", 1.5)
    clock = itertools.count()
    monkeypatch.setattr(tokens.time, "monotonic", lambda: float(next(clock)))
    counted: list[int] = []

    def slow(text: str) -> int:
        counted.append(len(text))
        return 0

    text = "a" * 65_536 * 4
    assert await count_input(asked(Text(text)), slow) == 7 + 3 * 65_536
    assert counted == [65_536]


def test_pictures_are_found_in_tool_results_too() -> None:
    image = Image(url="https://x/y")
    assert survey(asked(Text("x"))).images == 0
    assert survey(asked(image, ToolResult("i", (image, Text("x"))), image)).images == 3


def test_a_mark_for_the_providers_cache_is_found_wherever_it_may_stand() -> None:
    mark = {"type": "ephemeral"}
    assert not survey(asked(Text("x"), tools=(Tool(name="t"),))).marks_cache
    assert survey(asked(Text("x", cache=mark))).marks_cache
    assert survey(asked(Text("x"), tools=(Tool(name="t", cache=mark),))).marks_cache


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f", "description": "word " * 500}]},
        {"plugins": ["word " * 500]},
        {"prediction": {"type": "content", "content": "word " * 500}},
        {"tools": [{"type": "custom", "custom": {"name": "f", "description": "word " * 500}}]},
        {"messages": [{"role": "user", "content": [{"type": "newest", "newest": "word " * 500}]}]},
    ],
)
async def test_what_only_the_provider_understands_is_counted_as_it_stands(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    request = OpenAiChatServer().decode_request(json.dumps(body).encode(), {})
    assert await count_input(request, counter()) > 500


async def test_a_text_that_was_counted_is_not_counted_again() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 7

    said = asked(Text("Hello, what do you know of tokens and of their number?"))
    assert await count_input(said, count) == await count_input(said, count)
    assert len(counted) == 1
    assert counter("o200k") is counter("o200k")


def test_short_texts_are_counted_once_and_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_KNOWN_MAX", 2)
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(text)

    known = tokens._Counts(count)
    long = "x" * 100
    assert [known[text] for text in ("a", "bb", "a", long, long, "ccc", "a")] == [1, 2, 1, 100, 100, 3, 1]
    assert asked == ["a", "bb", long, long, "ccc", "a"] and set(known) == {"ccc", "a"}
