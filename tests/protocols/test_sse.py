"""Server-sent events from bytes that are cut anywhere, with every line end there is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols import sse
from gateway.protocols.sse import EventTooLarge, ServerSentEvent, SseDecoder, encode_data, encode_event

STREAM = (
    b": a comment\n\n"
    b"data: plain\n\n"
    b"data:without a space\r\n\r\n"
    b"data: by carriage return\r\r"
    b"event: named\ndata: x\nid: 7\nretry: 10\n\n"
    b"event: nothing\n\n"
    b"data: two\ndata: lines\n\n"
    b"data\n\n"
    b"data:  a space of its own\n\n"
    b"\n\n: keep-alive\r\n\r\n"
    b"data: \xe2\x80\xa8 \xc2\x85 \x0b \x0c \xf0\x9f\x98\x80\n\n"
    b"datax: no\ndata: [DONE]\n\n"
    b"data: unfinished"
)
EVENTS = [
    ServerSentEvent(b"plain"),
    ServerSentEvent(b"without a space"),
    ServerSentEvent(b"by carriage return"),
    ServerSentEvent(b"x", "named"),
    ServerSentEvent(b"two\nlines"),
    ServerSentEvent(b""),
    ServerSentEvent(b" a space of its own"),
    ServerSentEvent("\u2028 \x85 \x0b \x0c 😀".encode()),
    ServerSentEvent(b"[DONE]"),
]


def read(*chunks: bytes) -> list[ServerSentEvent]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.flush()


def test_events_are_what_the_standard_says() -> None:
    assert read(STREAM) == [*EVENTS, ServerSentEvent(b"unfinished")]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_bytes_cut_at_every_offset_give_the_same_events(ending: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", ending)
    whole = read(stream)
    assert whole[:-1] == EVENTS
    for cut in range(len(stream) + 1):
        assert read(stream[:cut], stream[cut:]) == whole
    assert read(*(bytes((byte,)) for byte in stream)) == whole


@given(st.lists(st.integers(0, len(STREAM))))
def test_bytes_cut_into_any_pieces_give_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[a:b] for a, b in pairwise(edges))) == read(STREAM)


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\r", b"\n", b"data: ", b"\r\n", b":", b"event:"])))
def test_any_bytes_are_read_without_an_error_and_alike_in_any_pieces(chunks: list[bytes]) -> None:
    assert read(*chunks) == read(b"".join(chunks))


payloads = st.binary(max_size=60).filter(lambda payload: not {10, 13} & set(payload))


@given(st.lists(st.tuples(st.text("abc_.", max_size=8), payloads), max_size=8))
def test_what_is_encoded_is_decoded(events: list[tuple[str, bytes]]) -> None:
    frames = [encode_event(name, payload) if name else encode_data(payload) for name, payload in events]
    assert read(*frames) == [ServerSentEvent(payload, name) for name, payload in events]


def test_a_whole_event_in_one_read_takes_the_short_way_only_where_that_is_right() -> None:
    assert read(b"event: a\n", b"data: x\n\n") == [ServerSentEvent(b"x", "a")]
    assert read(b"data: 1\n", b"data: x\n\n") == [ServerSentEvent(b"1\nx")]
    assert read(b"data: 1", b"data: x\n\n") == [ServerSentEvent(b"1data: x")]
    assert read(b"data: 1\r", b"\ndata: x\n\n") == [ServerSentEvent(b"1\nx")]
    assert read(b"data: x\n\n", b"data: y\r\n\n") == [ServerSentEvent(b"x"), ServerSentEvent(b"y")]
    assert read(b"data: x\nevent: a\n\n") == [ServerSentEvent(b"x", "a")]


def test_an_event_without_data_does_not_lend_its_name_to_the_next() -> None:
    assert read(b"event: ping\n\ndata: x\n\n") == [ServerSentEvent(b"x")]


def test_a_name_that_is_not_utf8_is_replaced() -> None:
    assert read(b"event: \xff\ndata: x\n\n") == [ServerSentEvent(b"x", "\ufffd")]


@pytest.mark.parametrize("line", [b"data: " + b"x" * 50, b"data: 123456789\n" * 5])
def test_an_event_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 40)
    decoder = SseDecoder()
    with pytest.raises(EventTooLarge):
        for byte in line:
            decoder.feed(bytes((byte,)))


def test_many_small_events_in_one_read_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 40)
    assert len(SseDecoder().feed(b"data: 123456789\n\n" * 50)) == 50
