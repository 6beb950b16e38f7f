"""``python -m tests.upstream --port 9000 --plan '{"text": ["Hi"], "delay_s": 0.2}'``: the provider, to try by hand."""

import argparse
import asyncio
import contextlib
from functools import partial

import msgspec

from .plan import Plan
from .server import Upstream

FOREVER_S = 1e9


async def serve(port: int, plan: Plan) -> None:
    """Serves until interrupted, and says what came in."""
    async with Upstream(port=port) as upstream:
        upstream.plan = plan
        print(f"OpenAI at {upstream.openai_url}, Anthropic at {upstream.base_url}", flush=True)
        seen = 0
        while True:
            await upstream.until(partial(has_more, seen=seen), timeout_s=FOREVER_S)
            for received in upstream.requests[seen:]:
                said = received.refused or f"{len(received.delivered)} pieces"
                print(received.method, received.path, received.status, said, flush=True)
            seen = len(upstream.requests)


def has_more(upstream: Upstream, *, seen: int) -> bool:
    """Whether more than ``seen`` requests are answered."""
    return len(upstream.requests) > seen and upstream.open_streams == 0


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.upstream")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plan", default="{}", help="a Plan as JSON")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, msgspec.json.decode(options.plan, type=Plan)))


if __name__ == "__main__":
    main()
