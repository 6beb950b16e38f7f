"""What the server says of one account, compared with ``reference``, and the invariants that tie it together."""

from collections import Counter
from typing import Any

from tests.limits import reference

# Everything of one account in one moment; of the ledger only the rows after a given one.
AUDIT = """
local read = {
  s = function(k) return redis.call('HMGET', k, 'st', 'rq', 'no', 'h', 'u', 'c', 'o', 'n', 'out') end,
  r = function(k) return redis.call('GET', k) end,
  q = function(k) return redis.call('GET', k) end,
  x = function(k) return redis.call('ZRANGE', k, 0, -1, 'WITHSCORES') end,
  c = function(k) return redis.call('ZRANGE', k, 0, -1, 'WITHSCORES') end,
  l = function(k) return redis.call('XRANGE', k, ARGV[2], '+') end,
}
local rows = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local name = string.sub(key, #ARGV[1] + 1)
  local how = read[string.sub(name, 1, 1)] or function(k) return redis.call('HGETALL', k) end
  rows[#rows + 1] = {name, how(key)}
end
return rows
"""

# Windows of the calendar, by the length of their periods.
CALENDAR_MS = {"period": 20_000, "watched": 20_000}


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _ends(flat: list[bytes]) -> dict[str, int]:
    return {sid: int(float(end)) for sid, end in _pairs(flat).items()}


class State:
    """One account as the server has it."""

    def __init__(self) -> None:
        self.read([])

    def read(self, rows: list[Any]) -> None:
        """Take in what ``AUDIT`` returned."""
        self.wallet: dict[str, str] = {}
        self.leases: dict[str, int] = {}
        self.records: dict[str, list[str]] = {}
        self.windows: dict[str, dict[str, str]] = {}
        self.buckets: dict[str, tuple[int, int]] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self.revisions: dict[str, int] = {}
        self.rows: list[tuple[str, str, int, int, str]] = []
        self.last_row = ""
        for name, content in rows:
            kind, _, rest = name.decode().partition(":")
            self._read_one(kind, rest, content)

    def _read_one(self, kind: str, rest: str, content: Any) -> None:
        match kind:
            case "w":
                self.wallet = _pairs(content)
            case "x":
                self.leases = _ends(content)
            case "s":
                self.records[rest] = [(field or b"").decode() for field in content]
            case "b":
                self.windows[rest] = _pairs(content)
            case "r":
                level, last = content.split()
                self.buckets[rest] = (int(level), int(last))
            case "c":
                self.slots[rest] = _ends(content)
            case "q":
                self.revisions[rest] = int(content)
            case "led":
                for row_id, flat in content:
                    row = _pairs(flat)
                    self.rows.append((row["op"], row["sid"], int(row["d"]), int(row["o"]), row["out"]))
                    self.last_row = row_id.decode()

    def amount(self, name: str) -> int:
        """A field of the wallet."""
        return int(self.wallet.get(name, 0))


def compare(state: State, books: reference.Account, now: int) -> None:
    """Everything the server says is what the books say. Slots and parts that have ended may or may not be there."""
    wallet = {name: state.amount(name) for name in ("g", "s", "h", "o", "rec")}
    assert wallet == {
        **{"g": books.granted, "s": books.spent, "h": books.held, "o": books.absorbed},
        "rec": books.recovering,
    }
    assert ("x" in state.wallet) == books.suspended
    assert state.leases == books.leases
    assert state.revisions == {name: number for name, number in books.revisions.items() if number}
    assert state.records.keys() == books.records.keys()
    for sid, (st, request, nonce, *amounts, outcome) in state.records.items():
        it = books.records[sid]
        assert (st, request, nonce) == (it.state, it.request, it.nonce), sid
        got = [int(amount or 0) for amount in amounts]
        expected = [it.held, it.used, it.charged, it.absorbed, it.tokens]
        assert got[0::2] == expected[0::2] and got[3] == expected[3], sid
        # What was used, and the tokens that were estimated, are of no interest of a stream whose record was lost.
        assert got[1] == expected[1] or st == "done", sid
        assert outcome == it.outcome or st != "done", sid
    assert state.buckets == books.buckets
    for name in state.slots.keys() | books.slots.keys():
        got_ends, ends = state.slots.get(name, {}), books.slots.get(name, {})
        assert {s: e for s, e in got_ends.items() if e > now} == {s: e for s, e in ends.items() if e > now}, name
    compare_windows(state, books, now)
    new = len(state.rows)
    assert state.rows == (books.ledger[-new:] if new else [])


def compare_windows(state: State, books: reference.Account, now: int) -> None:
    """What is held, what counts now, and that the sum is that of the parts it stands for."""
    for name in state.windows.keys() | books.windows.keys():
        fields, it = state.windows.get(name, {}), books.windows.get(name, reference.Posted())
        parts = {int(field[1:]): int(value) for field, value in fields.items() if field.startswith("b")}
        assert int(fields.get("h", 0)) == it.held, name
        low, total = int(fields.get("lo", 0)), int(fields.get("sum", 0))
        if name in CALENDAR_MS:
            # Streams that ran over several periods post into one that is over; it counts for nobody else.
            period = CALENDAR_MS[name]
            assert total == parts.get(low, 0), f"I7: the sum of {name} is that of its period"
            assert parts.get(now // period * period, 0) == it.parts[now // period * period], name
        else:
            assert total == sum(parts.values()), f"I7: the sum of {name} is that of its parts"
            assert {part: n for part, n in parts.items() if n} == {p: n for p, n in it.parts.items() if n and p >= low}


def invariants(state: State, books: reference.Account) -> None:
    """What has to hold whatever happened, from the server's state alone, and the ledger's rows as they were read."""
    granted, spent, held = state.amount("g"), state.amount("s"), state.amount("h")
    records = state.records.values()
    assert granted - spent - held >= 0 and held >= 0 and spent >= 0, f"I1: {state.wallet}"
    assert held == sum(int(it[3]) for it in records if it[0] == "open"), "I2: held is what open streams hold"
    assert not any(int(it[3]) for it in records if it[0] != "open"), "I2: what has ended holds nothing"
    posted = [row for row in books.ledger if row[0] in ("post", "reap", "trueup")]
    assert spent == sum(int(it[5]) for it in records), "I3: spent is what records were charged"
    assert spent == sum(row[2] for row in posted), "I3: spent is what the ledger says"
    assert granted == sum(row[2] for row in books.ledger if row[0] == "grant"), "I4: granted is what the ledger says"
    rows = Counter((row[1], row[0]) for row in posted)
    for (sid, op), count in rows.items():
        most = rows[sid, "reap"] if op == "trueup" else books.runs[sid]
        assert count <= most, f"I5: {sid} was posted more often than it ran"
    assert state.leases.keys() == {sid for sid, it in state.records.items() if it[0] == "open"}, "I6: leases"
    beyond = sum(books.beyond.values())
    for name, limit in (("rolling", 6000), ("period", 5000)):
        fields = state.windows.get(name, {})
        assert int(fields.get("sum", 0)) + int(fields.get("h", 0)) <= limit + beyond, f"I7: {name} was passed"
    assert state.amount("o") == sum(int(it[6] or 0) for it in records), "I12: losses are on the records"
    assert state.amount("o") == sum(row[3] for row in posted), "I12: losses are in the ledger"
