"""A ledger added up: its totals, its grants, and what it says twice.

Rows come oldest first and once each, so the memory it takes is that of the streams that finished within the retention
of their records (and of the grants), however long the ledger is.
"""

from typing import Any

import msgspec

from gateway.limits.scripts import Retention

# What `gateway credits restore` writes where the exported rows do not add up to the balance that was exported.
RESTORED = "restored"


class LedgerRow(msgspec.Struct, frozen=True):
    """One row as it is stored; ``amount`` and ``absorbed`` in µ$, ``record`` is JSON."""

    id: str
    op: str
    sid: str
    amount: int
    absorbed: int
    outcome: str
    record: str

    @property
    def time_ms(self) -> int:
        """When it was written, Unix time in ms by Redis's clock."""
        return int(self.id.partition("-")[0])

    @property
    def is_use(self) -> bool:
        """Whether it is about a stream."""
        return self.op in ("post", "reap", "trueup")

    @property
    def effect(self) -> tuple[int, int, int]:
        """What it adds to granted, spent and absorbed."""
        match self.op:
            case "grant":
                return self.amount, 0, 0
            case "post" | "reap" | "trueup":
                return 0, self.amount, self.absorbed
            case _ if self.outcome == RESTORED:
                carried = msgspec.json.decode(self.record, type=dict[str, int])
                return carried["granted"], carried["spent"], carried["absorbed"]
        return 0, 0, 0


def row_of(entry: Any) -> LedgerRow:
    """One entry of a stream as Redis returns it."""
    identity, flat = entry
    fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return LedgerRow(
        identity.decode(),
        fields.get("op", ""),
        fields.get("sid", ""),
        int(fields.get("d", 0)),
        int(fields.get("o", 0)),
        fields.get("out", ""),
        fields.get("rec", "{}"),
    )


class Charged(msgspec.Struct):
    """What one stream's rows come to. ``op`` is the last that moved money; ``at_ms`` the time of the last row."""

    amount: int
    absorbed: int
    op: str
    at_ms: int


class Tally:
    """Rows added up. ``recent`` are the streams whose records should still be there."""

    def __init__(self, retention: Retention) -> None:
        self.keep_ms = retention.ledger_ms
        self.rows = 0
        self.first_ms = 0
        self.granted = self.spent = self.absorbed = 0
        self.grants: dict[str, int] = {}
        self.carried = {"granted": 0, "spent": 0, "absorbed": 0}
        self.has_carried = False
        self.rollback_ms = 0
        self.recent: dict[str, Charged] = {}
        self.twice: list[tuple[str, str]] = []
        self._stream_ms = retention.stream_ms

    def add(self, row: LedgerRow) -> None:
        """Add the next row."""
        self.rows += 1
        self.first_ms = self.first_ms or row.time_ms
        granted, spent, absorbed = row.effect
        self.granted += granted
        self.spent += spent
        self.absorbed += absorbed
        if row.op == "grant":
            self._grant(row)
        elif row.op == "rollback":
            self._roll_back(row, granted, spent, absorbed)
        else:
            self._charge(row)

    def _grant(self, row: LedgerRow) -> None:
        if row.sid in self.grants:
            self.twice.append((row.sid, f"grant {row.sid} twice"))
        self.grants[row.sid] = row.amount

    def _roll_back(self, row: LedgerRow, granted: int, spent: int, absorbed: int) -> None:
        self.rollback_ms = row.time_ms
        if row.outcome == RESTORED:
            self.has_carried = True
            for name, amount in (("granted", granted), ("spent", spent), ("absorbed", absorbed)):
                self.carried[name] += amount

    def _charge(self, row: LedgerRow) -> None:
        self._forget(row.time_ms)
        known = self.recent.pop(row.sid, None) or Charged(0, 0, "", 0)
        self.recent[row.sid] = known  # the last row decides over the order
        known.at_ms = row.time_ms
        moves = row.amount != 0 or row.absorbed != 0
        # What ended at no cost may run again under its id; what was charged may not.
        if moves and row.op in ("post", "reap") and (known.amount or known.absorbed):
            self.twice.append((row.sid, f"{row.op} {row.amount} at {row.id}, after {known.op} {known.amount}"))
        elif moves and row.op == "trueup" and known.op in ("post", "trueup"):
            self.twice.append((row.sid, f"trueup {row.amount} at {row.id}, after {known.op} {known.amount}"))
        known.amount += row.amount
        known.absorbed += row.absorbed
        known.op = row.op if moves or row.op == "reap" else known.op

    def _forget(self, now_ms: int) -> None:
        while self.recent:
            sid = next(iter(self.recent))
            if self.recent[sid].at_ms > now_ms - self._stream_ms:
                return
            del self.recent[sid]
