"""The gateway's books, read from outside: what was charged, what is held, and whether it all adds up.

The sums are taken from the embedded Redis itself and not through the gateway's own audit, so that the two do not share
a mistake. Amounts are micro-USD. The shape of the keys is that of src/gateway/limits/keys.py.
"""

import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import uuid
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import redis

from benchmarks.driving import Figures
from benchmarks.plans import PRICE, ROOT
from benchmarks.targets import Target, call

SETTLING_S = 10
AT_ONCE = 1000  # accounts in one pipeline
MAKING_TIMEOUT_S = 120
POOR_USD, POOR_MICROUSD = "0.01", 10_000
RICH_USD = "1000000"
SHOWN_MAX = 5  # records that are off, printed for each start


class Posted(NamedTuple):
    """One charge of the ledger, beside what its usage record says."""

    charged: int
    absorbed: int
    cost: int
    priced: int  # the record's tokens at the price of the configuration


def price_of(input_tokens: int, output_tokens: int) -> int:
    return math.ceil(round(input_tokens * PRICE["input"] + output_tokens * PRICE["output"], 6))


class AdminClient:
    """One kept-alive connection to the admin API."""

    def __init__(self, target: Target) -> None:
        self.connection = HTTPConnection("127.0.0.1", target.port, timeout=30)
        self.key = target.launch.admin_key

    def ask(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        headers["idempotency-key"] = uuid.uuid4().hex
        self.connection.request(method, f"/admin/v1/{path}", json.dumps(body or {}), headers)
        response = self.connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise OSError(f"{method} {path}: {response.status} {text[:200]!r}")
        return json.loads(text)

    def open_account(self, name: str, amount_usd: str = RICH_USD) -> str:
        """A new account with credit; its API key."""
        self.ask("POST", "accounts", {"id": name})
        self.ask("POST", f"accounts/{name}/credits", {"amount_usd": amount_usd})
        return str(self.ask("POST", f"accounts/{name}/keys", {"name": name})["key"])


def redis_socket(target: Target) -> str:
    """Where the gateway's embedded Redis listens."""
    assert target.launch.data_folder is not None
    return str(target.launch.data_folder / "redis" / "redis.sock")


def spread_keys(target: Target, count: int) -> Path:
    """A file with the keys of `count` new accounts."""
    command = [sys.executable, "-m", "benchmarks.accounts", f"unix://{redis_socket(target)}", str(count)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=MAKING_TIMEOUT_S)
    path = target.folder / "keys.txt"
    path.write_bytes(made.stdout)
    return path


class Books:
    """The books of one running gateway; `check` compares them after each scenario."""

    def __init__(self, target: Target) -> None:
        self.redis = redis.Redis(unix_socket_path=redis_socket(target))
        self.charged: dict[str, int] = {}
        self.granted: dict[str, int] = {}
        self.seen: dict[str, str] = {}
        self.shown = 0

    def redis_version(self) -> str:
        return str(self.redis.info("server")["redis_version"])

    def held(self) -> tuple[int, int, int]:
        """Micro-USD held, open leases and slots in use, at this moment, of all accounts."""
        slots = sum(int(self.redis.zcard(key)) for key in self.redis.scan_iter("c*:c:*", count=5000))
        held = sum(int(wallet.get(b"h", 0)) for wallet in self.wallets().values())
        leases = sum(self.of_all(lambda pipe, name: pipe.zcard(f"cr:{{{name}}}:x")).values())
        return held, leases, slots

    def wait_until_settled(self) -> tuple[int, int, int]:
        """The same as `held`, once nothing is held or after some seconds."""
        deadline = time.monotonic() + SETTLING_S
        while any(held := self.held()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return held

    def of_all(self, ask: Callable[[Any, str], object]) -> dict[str, Any]:
        """One command for each account, and its answer."""
        found: Any = self.redis.zrange("gw:accounts", 0, -1)
        names = [name.decode() for name in found]
        answers: list[Any] = []
        for at in range(0, len(names), AT_ONCE):
            pipe = self.redis.pipeline(transaction=False)
            for name in names[at : at + AT_ONCE]:
                ask(pipe, name)
            answers += pipe.execute()
        return dict(zip(names, answers, strict=True))

    def wallets(self) -> dict[str, dict[bytes, bytes]]:
        return self.of_all(lambda pipe, name: pipe.hgetall(f"cr:{{{name}}}:w"))

    def read_ledgers(self) -> tuple[int, int]:
        """Adds the rows that are new; how many records say another amount, and what was absorbed."""
        new = self.of_all(lambda pipe, name: pipe.xrange(f"cr:{{{name}}}:led", min=self.seen.get(name, "-")))
        records_off = absorbed = 0
        for name, rows in new.items():
            for row_id, row in rows:
                self.seen[name] = f"({row_id.decode()}"
                if row[b"op"] == b"grant":
                    self.granted[name] = self.granted.get(name, 0) + int(row[b"d"])
                    continue
                posted = posted_of(row)
                absorbed += posted.absorbed
                self.charged[name] = self.charged.get(name, 0) + posted.charged
                is_off = {posted.cost, posted.priced} != {posted.charged + posted.absorbed}
                records_off += is_off and row[b"op"] == b"post"
                if is_off and self.shown < SHOWN_MAX:
                    self.shown += 1
                    print(f"  a record that does not say what was charged: {name} {row}", file=sys.stderr)
        return records_off, absorbed

    def check(self) -> Figures:
        """What is off after a scenario, all 0 where the books are right, once what ended is settled."""
        held, leases, slots = self.wait_until_settled()
        records_off, absorbed = self.read_ledgers()
        off = below_zero = 0
        for name, wallet in self.wallets().items():
            spent, granted = int(wallet.get(b"s", 0)), int(wallet.get(b"g", 0))
            off += abs(spent - self.charged.get(name, 0)) + abs(granted - self.granted.get(name, 0))
            below_zero += granted - spent - int(wallet.get(b"h", 0)) < 0
        return {
            "books_off_microusd": off,
            "books_records_off": records_off,
            "books_below_zero": below_zero,
            "books_absorbed_microusd": absorbed,
            "books_left_held_microusd": held,
            "books_left_leases": leases,
            "books_left_slots": slots,
        }


def posted_of(row: dict[bytes, bytes]) -> Posted:
    record = json.loads(row[b"rec"])
    priced = price_of(record.get("input_tokens", 0), record.get("output_tokens", 0))
    return Posted(int(row[b"d"]), int(row[b"o"]), int(record.get("cost", 0)), priced)


def in_flight(target: Target) -> int:
    """What the gateway's own metrics say is running."""
    text = call(f"http://127.0.0.1:{target.port}/metrics").decode()
    found = re.search(r"^gateway_streams_in_flight (\S+)$", text, re.MULTILINE)
    if found is None:
        raise urllib.error.URLError("there is no gateway_streams_in_flight in /metrics")
    return int(float(found[1]))
