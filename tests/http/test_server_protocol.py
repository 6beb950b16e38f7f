"""The short way of an answer, without a server: what it leaves to uvicorn."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.server_protocol import GuardedProtocol


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\ny: z", b"a\rx: y"])
def test_a_header_with_a_line_end_in_it_does_not_take_the_short_way(value: bytes) -> None:
    written: list[bytes] = []
    wire: Any = object.__new__(GuardedProtocol)
    wire.cycle = SimpleNamespace(response_started=False, keep_alive=True, disconnected=False, default_headers=[])
    wire.pipeline, wire.flow = (), SimpleNamespace(write_paused=False)
    wire.transport = SimpleNamespace(write=written.append)
    assert not wire.answer(((b"x-a", value),), b"piece", more=True) and not written
    assert wire.answer(((b"x-a", b"fine"),), b"piece", more=True) and written
