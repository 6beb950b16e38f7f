"""Whatever a body holds, it is read or refused; nothing else is ever raised, and what was read can be sent on."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import ProviderError, RequestError
from gateway.protocols.anthropic_messages import AnthropicMessagesClient, AnthropicMessagesServer
from gateway.protocols.openai_chat.outgoing import encode

SERVER, CLIENT = AnthropicMessagesServer(), AnthropicMessagesClient()

_KINDS = "text image document search_result tool_use tool_result thinking redacted_thinking server_tool_use new".split()
_words = st.text(max_size=6)
_junk = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | _words
_anything = st.recursive(_junk, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3))
_source = st.fixed_dictionaries(
    {"type": st.sampled_from(("base64", "url", "text", "content", "file", "new"))},
    optional={
        "media_type": st.sampled_from(("image/png", "image/svg+xml", "application/pdf")) | _anything,
        "data": st.sampled_from(("aGk=", "*")) | _anything,
        "url": st.sampled_from(("https://example.com/a", "file:///x")) | _anything,
        "file_id": _anything,
        "content": _anything,
    },
)


def _blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.sampled_from(_KINDS) | _anything},
        optional={
            "text": _words | _anything,
            "source": _source | _anything,
            "content": st.lists(inner, max_size=2) | _words | _anything,
            "title": _words | _anything,
            "id": st.just("a") | _anything,
            "tool_use_id": st.just("a") | _anything,
            "name": st.just("f") | _anything,
            "input": st.dictionaries(_words, _anything, max_size=2) | _anything,
            "thinking": _words | _anything,
            "signature": _words | _anything,
            "data": _words | _anything,
            "cache_control": st.just({"type": "ephemeral"}) | _anything,
            "citations": _anything,
        },
    )


_block = st.recursive(_anything, _blocks, max_leaves=6)
_content = _words | st.lists(_block | _blocks(_anything), max_size=3) | _anything
_message = st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant", "system")), "content": _content})
_body = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.integers(0, 3000), "messages": st.lists(_message, min_size=1, max_size=3)},
    optional={
        "system": _content,
        "tools": st.lists(_anything | st.just({"name": "f", "input_schema": {}}), max_size=2),
        "tool_choice": st.sampled_from(({"type": "any"}, {"type": "tool", "name": "f"})) | _anything,
        "thinking": st.sampled_from(({"type": "enabled", "budget_tokens": 2000}, {"type": "disabled"})) | _anything,
        "output_config": _anything,
        "metadata": _anything,
        "temperature": _anything,
        "stop_sequences": _anything,
        "new": _anything,
    },
)


@given(_body, st.sampled_from((None, "2023-06-01", "2026-10-21")))
@settings(max_examples=400, deadline=None)
def test_a_body_is_read_or_refused(body: dict[str, Any], version: str | None) -> None:
    query = {} if version is None else {"anthropic-version": version}
    try:
        request = SERVER.decode_request(json.dumps(body).encode(), query)
    except RequestError as error:
        assert error.message and len(error.message) < 1000
        return
    sent = json.loads(CLIENT.encode_request(request, "claude-x"))
    assert sent["model"] == "claude-x" and sent.get("new") == body.get("new")
    if not request.untranslatable:
        try:
            json.loads(encode(request, "gpt-x"))
        except (RequestError, ProviderError) as error:
            assert error.message
