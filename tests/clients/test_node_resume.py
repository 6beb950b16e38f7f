"""``useChat`` of AI SDK 5, 6 and 7: a page that is closed in mid-answer, and the next one that resumes elsewhere."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.clients.scripts import needs, run
from tests.harness import GatewayProcess, RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("ai7-react")]

VERSIONS = pytest.mark.parametrize("version", ["5", "6", "7"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def replicas() -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    with RedisServer() as redis:
        async with GatewayProcess(redis_url=redis.url) as one, GatewayProcess(redis_url=redis.url) as two:
            yield one, two


async def reload(replicas: tuple[GatewayProcess, GatewayProcess], account: str, **asked: Any) -> Any:
    headers = {"authorization": f"Bearer {await replicas[0].account(account)}", "x-gateway-resumable": "true"}
    query = f"model={asked.pop('model')}"
    api, elsewhere = (f"{gateway.base_url}/api/chat?{query}" for gateway in replicas)
    return await run("ui_resume.mjs", api=api, elsewhere=elsewhere, headers=headers, **asked)


def text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


@VERSIONS
async def test_the_answer_of_a_closed_page_goes_on_in_the_next_one(
    replicas: tuple[GatewayProcess, GatewayProcess], version: str
) -> None:
    seen = await reload(replicas, f"resumes-{version}", version=version, model="demo/reasoning", leaveAfter=25)
    assert (seen["status"], seen["error"]) == ("ready", None)
    question, answer = seen["screen"]
    assert question["parts"] == [{"type": "text", "text": "Hi"}]
    assert [part["type"] for part in answer["parts"]] == ["step-start", "reasoning", "text"]
    assert text(answer).endswith("calls tools or fails.")
    assert answer["metadata"]["finishReason"] == "stop"
    left = seen["left"][1]
    assert left["id"] == answer["id"] and len(text(left)) < len(text(answer))
    await replicas[0].settled(f"resumes-{version}", records=1)
    assert len(await replicas[0].usage(f"resumes-{version}")) == 1


@VERSIONS
async def test_a_resumed_answer_is_stopped_for_good(
    replicas: tuple[GatewayProcess, GatewayProcess], version: str
) -> None:
    seen = await reload(replicas, f"stops-{version}", version=version, model="demo/endless", leaveAfter=5, stopAfter=15)
    assert (seen["status"], seen["error"]) == ("ready", None)
    answer = seen["screen"][1]
    assert "data-gateway-cut" in [part["type"] for part in answer["parts"]]
    await replicas[0].settled(f"stops-{version}", records=1)
    (row,) = await replicas[0].usage(f"stops-{version}")
    assert row["record"]["reason"] == "stopped"
