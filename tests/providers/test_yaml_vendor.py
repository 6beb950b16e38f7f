"""A vendor nobody here has heard of, added by configuration alone.

That is all an OpenAI-compatible vendor needs. To have it known by its name, so that its key in the environment is
enough, it takes one row in ``src/gateway/providers/rows.py`` and no more.
"""

import httpx
import pytest
import yaml

from gateway.config_file import parse
from gateway.providers.rows import ROWS, Row
from gateway.wiring import configured_providers, validate
from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream
from tests.upstream.plan import ToolCall

YAML = """
providers:
  newcomer:
    base_url: {base_url}
    api_key: ${{NEWCOMER_KEY}}
    models: [large-1]
    price: {{input: 1, output: 10}}
models:
  clever: {{targets: [newcomer/large-1]}}
"""
# A vendor with habits: another name for reasoning, whole calls without an index, usage beside the last choice.
HABITS = Plan(
    text=("It", " depends."),
    reasoning=("Hm.",),
    reasoning_field="reasoning",
    tool_calls=(ToolCall(name="now", id="call_a"),),
    no_tool_index=True,
    whole_tool_call=True,
    finish_stop_with_tools=True,
    usage_in_choices_chunk=True,
    comments=True,
    done=False,
)


@pytest.mark.asyncio
async def test_a_vendor_from_yaml_alone_is_streamed_priced_and_listed() -> None:
    async with Upstream(api_key="sk-new") as upstream:
        upstream.plan = HABITS
        environment = {"NEWCOMER_KEY": "sk-new"}
        config = yaml.safe_load(YAML.format(base_url=upstream.openai_url))
        async with GatewayProcess(config, environment=environment) as gateway:
            headers = {"Authorization": f"Bearer {await gateway.account(usd='1')}"}
            async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, trust_env=False) as client:
                body = {"model": "clever", "messages": [{"role": "user", "content": "Hello"}]}
                answer = (await client.post("/v1/chat/completions", json=body)).json()
                choice = answer["choices"][0]
                assert (choice["message"]["content"], choice["finish_reason"]) == ("It depends.", "tool_calls")
                assert [it["function"]["name"] for it in choice["message"]["tool_calls"]] == ["now"]
                listed = {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
                assert {"clever", "newcomer/large-1"} <= listed
            balance = await gateway.settled(records=1)
            record = (await gateway.usage())[0]["record"]
            assert record["target"] == "newcomer/large-1" and "estimated" not in record
            assert balance["spent"] == record["input_tokens"] + 10 * record["output_tokens"] > 0


def test_a_row_is_all_that_a_name_of_its_own_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        ROWS, "newcomer", Row(base_url="https://api.newcomer.example/v1", key_env="NEWCOMER_KEY", vendor="newcomer")
    )
    monkeypatch.setenv("NEWCOMER_KEY", "sk-new")
    config = parse("models: {clever: {targets: [newcomer/large-1]}}")
    assert "newcomer" in configured_providers(config, {"NEWCOMER_KEY": "sk-new"})
    validate(config)
