"""The lines of any number of exports, put together: sorted, each row once, and what they come to.

They are kept in a temporary database on disk, so that memory does not grow with the files and their order does not
matter. Two exports that say different things about one row are refused.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import msgspec

from gateway.limits.audit_ledger import LedgerRow
from gateway.limits.export import AccountLine, BalanceLine, CursorLine, GrantLine, KeyLine, Line, RowLine

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE rows (account TEXT, ms INTEGER, seq INTEGER, granted INTEGER, spent INTEGER, absorbed INTEGER, line BLOB,
                   PRIMARY KEY (account, ms, seq)) WITHOUT ROWID;
CREATE TABLE balances (account TEXT, ms INTEGER, seq INTEGER, granted INTEGER, spent INTEGER, absorbed INTEGER,
                       PRIMARY KEY (account, ms, seq)) WITHOUT ROWID;
CREATE TABLE latest (account TEXT, kind TEXT, name TEXT, at_ms INTEGER, line BLOB,
                     PRIMARY KEY (account, kind, name)) WITHOUT ROWID;
"""
_FIRST = (-1, -1)
_SUMS = "COALESCE(SUM(granted), 0), COALESCE(SUM(spent), 0), COALESCE(SUM(absorbed), 0)"


class BadExport(Exception):
    """The files are no exports, or contradict each other; says where."""


class Totals(NamedTuple):
    """What an account's rows come to, µ$."""

    granted: int
    spent: int
    absorbed: int

    def minus(self, other: "Totals") -> "Totals":
        """The difference."""
        return Totals(self.granted - other.granted, self.spent - other.spent, self.absorbed - other.absorbed)

    def plus(self, other: "Totals") -> "Totals":
        """The sum."""
        return Totals(self.granted + other.granted, self.spent + other.spent, self.absorbed + other.absorbed)


class Exported:
    """What the files hold. A context manager, since it keeps a temporary file."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gateway-restore-")
        self._db = sqlite3.connect(Path(self._folder.name) / "lines.db")
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        self._decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._db.close()
        self._folder.cleanup()

    def add(self, lines: Iterable[bytes], name: str) -> None:
        """Take in one file, called ``name`` in messages; raises ``BadExport``."""
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                self._add(self._decoder.decode(text))
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
                raise BadExport(f"{name}:{number}: not a line of an export: {error}") from None
            except BadExport as error:
                raise BadExport(f"{name}:{number}: {error}") from None
        self._db.commit()

    def _add(self, line: Line) -> None:
        match line:
            case RowLine():
                self._add_row(line)
            case BalanceLine():
                totals = (line.granted, line.spent, line.absorbed)
                self._insert("balances", line.account, *place(line.at), *totals)
            case AccountLine():
                self._keep_latest(line, "account", "", line.at_ms)
            case KeyLine():
                self._keep_latest(line, "key", line.key, line.at_ms)
            case GrantLine():
                self._keep_latest(line, "grant", line.grant, 0)
            case CursorLine():
                pass

    def _add_row(self, line: RowLine) -> None:
        row = row_of_line(line)
        text = msgspec.json.encode(row)
        if self._insert("rows", line.account, *place(line.id), *row.effect, text):
            return
        at = (line.account, *place(line.id))
        known = self._db.execute("SELECT line FROM rows WHERE (account, ms, seq) = (?, ?, ?)", at).fetchone()
        if known[0] != text:
            raise BadExport(f"row {line.id} of {line.account} is another one in an earlier file.")

    def _insert(self, table: str, *values: object) -> bool:
        marks = ", ".join("?" * len(values))
        return self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values).rowcount == 1

    def _keep_latest(self, line: AccountLine | KeyLine | GrantLine, kind: str, name: str, at_ms: int) -> None:
        self._db.execute(
            "INSERT INTO latest VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET at_ms = excluded.at_ms,"
            " line = excluded.line WHERE excluded.at_ms >= latest.at_ms",
            (line.account, kind, name, at_ms, msgspec.json.encode(line)),
        )

    @property
    def accounts(self) -> list[str]:
        """Every account that a line names."""
        query = (
            "SELECT account FROM latest UNION SELECT account FROM rows UNION SELECT account FROM balances ORDER BY 1"
        )
        return [name for (name,) in self._db.execute(query)]

    def account(self, account: str) -> AccountLine | None:
        """The account as it was last seen."""
        found = self._latest(account, "account", AccountLine)
        return found[0] if found else None

    def keys(self, account: str) -> list[KeyLine]:
        """The account's keys as they were last seen."""
        return self._latest(account, "key", KeyLine)

    def grants(self, account: str) -> list[GrantLine]:
        """The account's grants as the full exports list them."""
        return self._latest(account, "grant", GrantLine)

    def _latest(self, account: str, kind: str, of: type[T]) -> list[T]:
        query = "SELECT line FROM latest WHERE account = ? AND kind = ? ORDER BY name"
        return [msgspec.json.decode(text, type=of) for (text,) in self._db.execute(query, (account, kind))]

    def rows(self, account: str, *, after: str = "") -> Iterator[LedgerRow]:
        """The account's rows behind an id, oldest first."""
        query = "SELECT line FROM rows WHERE account = ? AND (ms, seq) > (?, ?) ORDER BY ms, seq"
        for (text,) in self._db.execute(query, (account, *place(after))):
            yield msgspec.json.decode(text, type=LedgerRow)

    def count(self, account: str, *, after: str = "") -> int:
        """How many rows the account has behind an id."""
        query = "SELECT COUNT(*) FROM rows WHERE account = ? AND (ms, seq) > (?, ?)"
        return int(self._db.execute(query, (account, *place(after))).fetchone()[0])

    def last_id(self, account: str) -> str:
        """The id of the account's last row; "" without rows."""
        query = "SELECT ms, seq FROM rows WHERE account = ? ORDER BY ms DESC, seq DESC LIMIT 1"
        last = self._db.execute(query, (account,)).fetchone()
        return f"{last[0]}-{last[1]}" if last else ""

    def summed(self, account: str, *, after: tuple[int, int] = _FIRST, until: tuple[int, int] | None = None) -> Totals:
        """What the rows between two places come to."""
        query, values = f"SELECT {_SUMS} FROM rows WHERE account = ? AND (ms, seq) > (?, ?)", [account, *after]
        if until is not None:
            query, values = query + " AND (ms, seq) <= (?, ?)", [*values, *until]
        return Totals(*self._db.execute(query, values).fetchone())

    def totals(self, account: str) -> Totals:
        """The last exported balance and the rows after it; without one, all rows."""
        query = "SELECT ms, seq, granted, spent, absorbed FROM balances WHERE account = ?"
        last = self._db.execute(f"{query} ORDER BY ms DESC, seq DESC LIMIT 1", (account,)).fetchone()
        if last is None:
            return self.summed(account)
        return Totals(*last[2:]).plus(self.summed(account, after=(last[0], last[1])))

    def gaps(self, account: str) -> list[str]:
        """Between which two exported balances rows are missing."""
        query = "SELECT ms, seq, granted, spent, absorbed FROM balances WHERE account = ? ORDER BY ms, seq"
        found, before = [], None
        for ms, seq, *amounts in self._db.execute(query, (account,)).fetchall():
            if before is not None:
                moved = self.summed(account, after=before[0], until=(ms, seq))
                if Totals(*amounts) != before[1].plus(moved):
                    found.append(f"between {before[0][0]}-{before[0][1]} and {ms}-{seq}")
            before = (ms, seq), Totals(*amounts)
        return found


def place(row_id: str) -> tuple[int, int]:
    """A row's id as it sorts; before all rows for ""."""
    ms, _, seq = row_id.partition("-")
    return (int(ms), int(seq or 0)) if row_id else _FIRST


def row_of_line(line: RowLine) -> LedgerRow:
    """The row as a ledger has it."""
    return LedgerRow(
        line.id, line.op, line.sid, line.amount, line.absorbed, line.outcome, bytes(line.record).decode("utf-8")
    )
