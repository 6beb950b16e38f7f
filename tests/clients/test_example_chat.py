"""``examples/chat`` as its users have it: built, served from an origin of its own, and driven in Chromium.

Elements are found by role and name, as a screen reader finds them. Whatever the browser reports as an error fails the
test unless the test expects it.
"""

import asyncio
import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
import pytest_asyncio

from tests.clients.conftest import PRICE
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.async_api", reason="needs playwright: pip install -e '.[dev]'")
expect = playwright.expect

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat"
INSTALL = "(cd examples/chat && npm install --no-package-lock --no-audit --no-fund)"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 20_000

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),  # the first test waits for the build
    pytest.mark.skipif(not (EXAMPLE / "node_modules" / "vite").is_dir(), reason=f"needs node and {INSTALL}"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, as .ci/run does"),
]

MODEL = "up/gpt-upstream"
PARIS = ToolCall(name="get_weather", arguments=('{"ci', 'ty":"Par', 'is"}'))
STALLED = Plan(text=("Hello, ", "world", "!"), fault="stall", fault_at=1)
ENDLESS = Plan(text=(" one", " two"), endless=True, delay_s=0.01)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port where the built page is served."""
    folder = tmp_path_factory.mktemp("chat") / "dist"
    built = subprocess.run(
        ["npm", "run", "build", "--", "--outDir", str(folder)], cwd=EXAMPLE, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(provider: Upstream, site: int) -> AsyncIterator[GatewayProcess]:
    """Lets pages of one origin in, which is not its own."""
    config = {
        "providers": {
            "up": {
                "type": "openai",
                "base_url": provider.openai_url,
                "api_key": "sk-upstream",
                "models": ["gpt-upstream"],
                "price": PRICE,
            }
        },
        "tiers": {"default": {"requests": {"limit": 100_000}}},
        "server": {"commit_s": 0.2, "heartbeat_s": 0.2, "cors_origins": [f"http://127.0.0.1:{site}"]},
    }
    async with GatewayProcess(config) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator["Browser"]:
    async with playwright.async_playwright() as driver:
        # Chromium's own sandbox does not run as root in a container.
        running = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        await running.close()


class Chat:
    """The page, in the words of somebody who uses it."""

    def __init__(self, page: "Page", gateway: GatewayProcess, site: int) -> None:
        self.page = page
        self.expected_errors = ""
        self._gateway, self._address = gateway, f"http://127.0.0.1:{site}/"

    async def open(self, key: str, *, address: str | None = None, gateway: str | None = None) -> None:
        await self.page.goto(address or self._address)
        await self.page.get_by_label("Gateway").fill(gateway or self._gateway.base_url)
        await self.page.get_by_label("Key").fill(key)
        await self.page.get_by_label("Model").fill(MODEL)
        await self.press("Save")

    async def say(self, text: str) -> None:
        box = self.page.get_by_role("textbox", name="Message")
        await box.fill(text)
        await box.press("Enter")

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def shows(self, *texts: str | re.Pattern[str]) -> None:
        """Wait until the messages are these, the user's and the assistant's in turn."""
        await expect(self.page.get_by_role("article")).to_contain_text(list(texts))

    async def is_idle(self) -> None:
        await expect(self.page.get_by_role("button", name="Send")).to_be_visible()
        await expect(self.page.get_by_role("status")).to_have_text("")

    @property
    def answer(self) -> "Locator":
        return self.page.get_by_role("article", name="Assistant").last

    @property
    def problem(self) -> "Locator":
        return self.page.get_by_role("alert")


class Line:
    """A way to the gateway that can be cut: whoever talks over it is disconnected."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while self._writers:
                await asyncio.sleep(0.01)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        pair = {writer, back}
        self._writers |= pair
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._writers -= pair


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    writer.transport.abort()


@pytest_asyncio.fixture(loop_scope="module")
async def chat(browser: "Browser", gateway: GatewayProcess, site: int) -> AsyncIterator[Chat]:
    """A browser that was never here, on a phone's screen."""
    expect.set_options(timeout=PATIENCE_MS)
    context = await browser.new_context(viewport={"width": 360, "height": 640})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    running = Chat(page, gateway, site)
    yield running
    overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    await context.close()
    assert overflow == 0, "the page is wider than the screen"
    unexpected = [e for e in errors if not running.expected_errors or not re.search(running.expected_errors, e)]
    assert not unexpected


@pytest_asyncio.fixture(loop_scope="module")
async def account(gateway: GatewayProcess) -> str:
    """The name of an account that is not there yet."""
    return f"acme-{uuid.uuid4().hex[:12]}"


async def test_an_answer_grows_on_the_page_and_shows_what_it_cost(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    upstream.queue(Plan(text=("Hello, ", "world!"), usage=Usage(input=20, output=9), fault="stall", fault_at=1))
    await chat.open(await gateway.account(account))
    await chat.say("Hi")
    await chat.shows("Hi", "Hello,")
    await expect(chat.page.get_by_role("status")).to_have_text("Answering…")
    await expect(chat.answer).not_to_contain_text("tokens")
    upstream.release()
    await chat.shows("Hi", "Hello, world!")
    await chat.is_idle()
    spent = (await gateway.settled(account, records=1))["spent"]
    await expect(chat.answer).to_contain_text(f"20 tokens in, 9 out · $0.{spent:06}")


async def test_reasoning_is_open_while_it_comes_and_folded_afterwards(upstream: Upstream, chat: Chat, key: str) -> None:
    upstream.queue(Plan(reasoning=("Let me ", "think."), text=("So.",), fault="stall", fault_at=2))
    await chat.open(key)
    await chat.say("Why?")
    thought = chat.answer.get_by_text("Let me think.")
    await expect(thought).to_be_visible()
    upstream.release()
    await expect(chat.answer.get_by_text("So.")).to_be_visible()
    await expect(thought).to_be_hidden()
    await chat.answer.get_by_text("Reasoning", exact=True).click()
    await expect(thought).to_be_visible()


async def test_the_user_answers_a_tools_call_and_the_model_goes_on(upstream: Upstream, chat: Chat, key: str) -> None:
    upstream.queue(Plan(text=("I look it up.",), tool_calls=(PARIS,)), Plan(text=("It is ", "warm.")))
    await chat.open(key)
    await chat.say("How is Paris?")
    call = chat.answer.get_by_role("region", name="Tool call get_weather")
    await expect(call.get_by_label("Input")).to_contain_text('"city": "Paris"')
    await call.get_by_label("Result").fill('{"celsius": 21}')
    await chat.press("Answer")
    await chat.shows("How is Paris?", re.compile("I look it up.*21.*It is warm", re.DOTALL))
    await chat.is_idle()
    asked, answered = (received.body for received in upstream.requests)
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["get_weather"]
    assert [message["role"] for message in answered["messages"]] == ["user", "assistant", "tool"]
    assert answered["messages"][2]["content"] == '{"celsius":21}'


async def test_the_user_may_decline_a_call(upstream: Upstream, chat: Chat, key: str) -> None:
    upstream.queue(Plan(tool_calls=(PARIS,)), Plan(text=("Never mind.",)))
    await chat.open(key)
    await chat.say("How is Paris?")
    await chat.press("Decline")
    await chat.shows("How is Paris?", re.compile("The user declined.*Never mind", re.DOTALL))
    assert "The user declined this call." in upstream.requests[1].body["messages"][2]["content"]


async def test_a_refusal_is_shown_in_the_gateways_words_and_may_be_tried_again(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    chat.expected_errors = "status of 402"
    await chat.open(await gateway.account(account, usd="0"))
    await chat.say("Hi")
    await expect(chat.problem).to_contain_text("$0.000000 available")
    await expect(chat.problem).to_contain_text("credits_exhausted")
    await gateway.admin.post(f"/accounts/{account}/credits", json={"amount_usd": "1"})
    await chat.press("Try again")
    await chat.shows("Hi", "Hello, world!")
    await expect(chat.problem).to_be_hidden()


async def test_a_wrong_key_is_told_before_anything_is_asked(chat: Chat) -> None:
    chat.expected_errors = "status of 401"
    await chat.open("gw-nobody-0000")
    await expect(chat.problem).to_contain_text("invalid_api_key")


async def test_an_error_in_the_middle_keeps_what_was_said_until_it_is_tried_again(
    upstream: Upstream, chat: Chat, key: str
) -> None:
    upstream.queue(Plan(fault="truncate", fault_at=2), Plan(text=("Better.",)))
    await chat.open(key)
    await chat.say("Hi")
    await expect(chat.problem).to_contain_text("ended before")
    await chat.shows("Hi", "Hello,")
    await chat.press("Try again")
    await chat.shows("Hi", "Better.")
    assert len(upstream.requests) == 2


async def test_an_answer_that_the_credit_does_not_cover_says_so(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    upstream.queue(ENDLESS)
    await chat.open(await gateway.account(account, usd="0.0005"))
    await chat.say("Count")
    await expect(chat.answer.get_by_role("note")).to_contain_text("credit is used up")
    await chat.is_idle()
    await chat.shows("Count", re.compile(r"one two one two.*\$0\.000", re.DOTALL))


async def test_stop_ends_the_answer_at_the_provider_and_the_chat_goes_on(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    upstream.queue(ENDLESS, Plan(text=("Done.",)))
    await chat.open(await gateway.account(account))
    await chat.say("Count")
    await chat.shows("Count", "one two one")
    await chat.press("Stop")
    await upstream.until(lambda it: it.open_streams == 0, PATIENCE_MS / 1000)
    stopped = re.compile(r"one two one.*The answer was stopped.*\$0\.000", re.DOTALL)
    await chat.shows("Count", stopped)
    await chat.is_idle()
    await chat.say("And on")
    await chat.shows("Count", stopped, "And on", "Done.")
    await gateway.settled(account, records=2)
    assert [row["outcome"] for row in await gateway.usage(account)] == ["complete", "cancelled"]


async def test_a_page_that_is_loaded_again_takes_up_the_answer_where_it_is(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    upstream.queue(STALLED)
    await chat.open(await gateway.account(account))
    await chat.say("Hi")
    await chat.shows("Hi", "Hello,")
    await chat.page.reload()
    await chat.shows("Hi", "Hello,")
    await expect(chat.page.get_by_role("button", name="Stop")).to_be_visible()
    upstream.release()
    await chat.shows("Hi", "Hello, world!")
    await chat.is_idle()
    await gateway.settled(account, records=1)
    assert [received.is_complete for received in upstream.requests] == [True]
    await chat.page.reload()
    await chat.shows("Hi", "Hello, world!")


async def test_an_answer_that_was_taken_up_again_can_be_stopped(upstream: Upstream, chat: Chat, key: str) -> None:
    upstream.queue(ENDLESS)
    await chat.open(key)
    await chat.say("Count")
    await chat.shows("Count", "one two one")
    await chat.page.reload()
    await chat.shows("Count", "one two one")
    await chat.press("Stop")
    await upstream.until(lambda it: it.open_streams == 0, PATIENCE_MS / 1000)
    await chat.is_idle()


async def test_an_answer_whose_connection_broke_is_read_on_at_the_users_word(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, key: str
) -> None:
    chat.expected_errors = "net::ERR_"
    upstream.queue(STALLED)
    async with Line(gateway.port) as line:
        await chat.open(key, gateway=line.base_url)
        await chat.say("Hi")
        await chat.shows("Hi", "Hello,")
        line.cut()
        await expect(chat.problem).to_contain_text(f"The connection to {line.base_url} failed")
        await chat.press("Try again")
        await expect(chat.problem).to_be_hidden()
        upstream.release()
        await chat.shows("Hi", "Hello, world!")
    assert len(upstream.requests) == 1


async def test_an_answer_that_is_taken_up_after_a_tools_result_is_a_message_of_its_own(
    upstream: Upstream, chat: Chat, key: str
) -> None:
    upstream.queue(Plan(tool_calls=(PARIS,)), STALLED, Plan(text=("Goodbye.",)))
    await chat.open(key)
    await chat.say("How is Paris?")
    await chat.page.get_by_label("Result").fill("warm")
    await chat.press("Answer")
    await chat.shows("How is Paris?", re.compile("warm.*Hello,", re.DOTALL))
    await chat.page.reload()
    await chat.shows("How is Paris?", "warm", "Hello,")
    upstream.release()
    await chat.shows("How is Paris?", "warm", "Hello, world!")
    await chat.is_idle()
    await chat.say("Bye")
    await chat.shows("How is Paris?", "warm", "Hello, world!", "Bye", "Goodbye.")
    roles = [message["role"] for message in upstream.requests[2].body["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


async def test_an_answer_goes_on_while_the_user_looks_at_another_chat(upstream: Upstream, chat: Chat, key: str) -> None:
    upstream.queue(STALLED, Plan(text=("Other.",)))
    await chat.open(key)
    await chat.say("First")
    await chat.shows("First", "Hello,")
    await chat.press("New chat")
    await chat.say("Second")
    await chat.shows("Second", "Other.")
    await chat.page.go_back()
    await chat.shows("First", "Hello,")
    upstream.release()
    await chat.shows("First", "Hello, world!")
    assert len(upstream.requests) == 2


async def test_an_answer_that_ended_while_the_page_was_closed_is_there_afterwards(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, account: str
) -> None:
    upstream.queue(STALLED)
    await chat.open(await gateway.account(account))
    await chat.say("Hi")
    await chat.shows("Hi", "Hello,")
    address = chat.page.url
    await chat.page.goto("about:blank")
    upstream.release()
    await gateway.settled(account, records=1)
    await chat.page.goto(address)
    await chat.shows("Hi", "Hello, world!")
    await chat.is_idle()


async def test_a_question_that_never_arrived_can_be_asked_again(upstream: Upstream, chat: Chat, key: str) -> None:
    chat.expected_errors = "net::ERR_FAILED"
    await chat.open(key)
    await chat.page.route("**/api/chat", lambda route: route.abort())
    await chat.say("Hi")
    await expect(chat.problem).to_contain_text("The connection to http://127.0.0.1")
    await chat.page.unroute_all()
    await chat.page.reload()
    await expect(chat.page.get_by_text("This question has no answer.")).to_be_visible()
    await chat.press("Try again")
    await chat.shows("Hi", "Hello, world!")
    assert len(upstream.requests) == 1


async def test_the_settings_stay_in_the_browser_and_out_of_the_address(chat: Chat, key: str) -> None:
    await chat.open(key)
    await chat.page.reload()
    await chat.say("Hi")
    await chat.shows("Hi", "Hello, world!")
    assert key not in chat.page.url
    await chat.press("Settings")
    await expect(chat.page.get_by_label("Key")).to_have_value(key)
    await expect(chat.page.get_by_label("Model")).to_have_value(MODEL)


async def test_a_page_of_an_origin_that_is_not_let_in_says_what_to_look_at(chat: Chat, key: str, site: int) -> None:
    chat.expected_errors = "CORS policy|net::ERR_FAILED"
    await chat.open(key, address=f"http://localhost:{site}/")
    await expect(chat.problem).to_contain_text(f"server.cors_origins name http://localhost:{site}?")
