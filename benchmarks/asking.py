"""What the load generator is told to do, and the bytes of the requests it sends for it.

A request is made once and sent many times. Where each one must differ it comes from a list (one per API key) or has a
number of fixed width in the middle (one per chat), so that nothing is encoded while the load runs.
"""

import json
from pathlib import Path

import msgspec

PROMPT = (
    "You are on call for a small web shop. Read the following report of an incident and say in plain words "
    "what happened, who noticed it, and what should be done first to keep it from happening again. "
)
CHAT_NUMBER = "0123456789"  # stands in a chat's id until its number does


class Plan(msgspec.Struct):
    """One run of the load generator; kinds that do not know a field leave it alone."""

    kind: str
    port: int
    key: str
    model: str
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = {}
    stream: bool = True
    connections: int = 1
    warmup_s: float = 1.0
    window_s: float = 5.0
    repeats: int = 200
    request_model: str = ""  # what `latency` asks without streaming
    keys_file: str = ""  # one API key per line: each request uses the next
    prompt_bytes: int = 0  # the prompt is made as long as that
    is_chat: bool = False  # the page's request of AI SDK 5, each for a chat of its own
    leave_every: int = 0  # of this many streams, one goes away `wait_s` after its first word
    spread_s: float = 0.0  # over how long the first requests are spread
    opening_s: float = 20.0  # how long streams are opened at the most
    wait_s: float = 20.0  # how long `spend` waits for its streams' ends


class Requests:
    """The requests of one plan; `take` gives the next."""

    def __init__(self, plan: Plan, model: str, *, stream: bool) -> None:
        self.sent = 0
        self.parts: tuple[bytes, bytes] | None = None
        keys = Path(plan.keys_file).read_text().split() if plan.keys_file else [plan.key]
        body = chat_body(plan) if plan.is_chat else completion_body(plan, model, stream=stream)
        path = f"{plan.path}?model={model}" if plan.is_chat else plan.path
        self.whole = [encode(path, body, plan.headers | {"authorization": f"Bearer {key}"}) for key in keys]
        if plan.is_chat:
            before, after = self.whole[0].split(CHAT_NUMBER.encode())
            self.parts = before, after

    def take(self) -> bytes:
        self.sent += 1
        if self.parts is not None:
            return b"%b%010d%b" % (self.parts[0], self.sent, self.parts[1])
        return self.whole[self.sent % len(self.whole)]


def prompt_of(plan: Plan) -> str:
    times = max(1, -(-plan.prompt_bytes // len(PROMPT)))
    return (PROMPT * times)[: plan.prompt_bytes or len(PROMPT)]


def completion_body(plan: Plan, model: str, *, stream: bool) -> bytes:
    messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": prompt_of(plan)}]
    body: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 4096, "temperature": 0.5}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def chat_body(plan: Plan) -> bytes:
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": prompt_of(plan)}]}
    return json.dumps({"id": f"chat-{CHAT_NUMBER}", "trigger": "submit-message", "messages": [message]}).encode()


def encode(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    fixed = {"host": "127.0.0.1", "user-agent": "bench", "accept": "application/json"}
    fixed |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fixed | headers).items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
