"""A connection whose answer was stopped carries the next request while the provider's answer is still read on."""

import asyncio
import json

from tests.exchange.billing import UNENDING, Shop, selling
from tests.http.raw import post

CHAT = "/v1/chat/completions"


async def asked(shop: Shop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str) -> str:
    """Ask for a stream and wait for its first word; returns its id."""
    writer.write(post(CHAT, shop.key, json.dumps(shop.body(model=model)).encode()))
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    await reader.readuntil(b" hello")
    return next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("x-gateway-stream-id"))


async def test_who_leaves_the_second_request_of_a_connection_is_noticed_though_the_first_is_read_on() -> None:
    providers = {"drained": {"type": "openai", "on_disconnect": "drain", "drain_s": 0.5}}
    async with selling(providers=providers) as shop, asyncio.timeout(30):
        shop.upstream.plan = UNENDING
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.gateway.port)
        stream_id = await asked(shop, reader, writer, "drained/any")
        assert (await shop.client.post(f"/v1/streams/{stream_id}/stop")).status_code == 200
        await reader.readuntil(b"\r\n0\r\n\r\n")
        await asked(shop, reader, writer, "up/any")
        while await shop.gateway.metric("gateway_streams_in_flight") > 1:  # until the first one's time is over
            await asyncio.sleep(0.02)
        writer.close()
        await shop.gateway.settled(records=2)
        await shop.upstream.until(lambda upstream: upstream.open_streams == 0)
        assert [row["record"]["reason"] for row in await shop.gateway.usage()] == ["client_left", "client_left"]
