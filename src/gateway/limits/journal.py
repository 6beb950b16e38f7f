"""What every running stream has cost so far, in memory that survives ``kill -9``.

One file per process, mapped into memory: a store to a shared mapping belongs to the kernel the moment it is made, so
a killed process loses nothing (a power cut may). Slots are fixed and the file has its full size from the start: no
write can fail later for want of space. The state byte is written last, so a torn slot is seen as free.

Slot, little endian: state u8, 7 pad, used i64 (µ$), created i64 (ms), sid 32, account 64, model 64, request id 64,
nonce u64.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgspec

SLOT_BYTES = 256
_SLOT = struct.Struct("<B7xqq32s64s64s64sQ")
_USED = struct.Struct("<q")
_USED_AT = 8


class SlotState(IntEnum):
    """``OPEN``: the stream runs, ``used`` is what was forwarded. ``FINAL``: it ended, ``used`` is what it cost.

    ``POSTED``: Redis acknowledged it a moment ago, and may still lose it.
    """

    FREE = 0
    OPEN = 1
    FINAL = 2
    POSTED = 3


# As plain numbers, which is what a byte of a map is set to.
_FREE, _OPEN, _FINAL, _POSTED = (int(state) for state in SlotState)


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One stream as the journal knows it; ``used`` in µ$."""

    slot: int
    state: SlotState
    used: int
    created_ms: int
    sid: str
    account: str
    model: str
    request_id: str
    nonce: str


class JournalFull(Exception):
    """Every slot is taken: no further stream may start."""


class Journal:
    """The journal of this process, locked against every other."""

    def __init__(self, path: Path, *, slots: int = 32_768) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size < slots * SLOT_BYTES:
                os.posix_fallocate(descriptor, 0, slots * SLOT_BYTES)
            self._map = mmap.mmap(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self.number = path.stem
        self._free = [i for i in range(len(self._map) // SLOT_BYTES - 1, -1, -1) if not self._map[i * SLOT_BYTES]]

    @classmethod
    def open_free(cls, folder: Path) -> "Journal":
        """The first journal in ``folder`` that no living process holds, or a new one."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(1024):
            try:
                return cls(folder / f"{number}.journal")
            except BlockingIOError:
                continue
        raise RuntimeError(f"{folder} holds 1,024 journals of living processes")

    @classmethod
    def open_abandoned(cls, folder: Path) -> Iterator["Journal"]:
        """Journals of processes that died, each locked for us."""
        for path in sorted(folder.glob("*.journal")):
            try:
                yield cls(path)
            except BlockingIOError:
                continue

    @property
    def room(self) -> int:
        """How many more streams it can take."""
        return len(self._free)

    def open(self, *, sid: str, account: str, created_ms: int, model: str, request_id: str, nonce: str) -> int:
        """Begin a stream; returns its slot. ``nonce`` is 16 hex digits. Raises ``JournalFull``."""
        if not self._free:
            raise JournalFull
        slot = self._free.pop()
        at = slot * SLOT_BYTES
        # Packing cuts what is too long.
        texts = [text.encode("ascii", "replace") for text in (sid, account, model, request_id)]
        _SLOT.pack_into(self._map, at, _FREE, 0, created_ms, *texts, int(nonce, 16))
        self._map[at] = _OPEN
        return slot

    def write_used(self, slot: int, used: int) -> None:
        """Note what the stream will have cost once the next bytes are sent; call before sending them."""
        _USED.pack_into(self._map, slot * SLOT_BYTES + _USED_AT, used)

    def finish(self, slot: int, actual: int) -> None:
        """Note what the stream cost; it stays until ``free``."""
        self.write_used(slot, actual)
        self._map[slot * SLOT_BYTES] = _FINAL

    def keep(self, slot: int) -> None:
        """Note that Redis has acknowledged what the stream cost; it stays until ``free``."""
        self._map[slot * SLOT_BYTES] = _POSTED

    def free(self, slot: int) -> None:
        """Forget a stream that Redis has settled."""
        self._map[slot * SLOT_BYTES] = _FREE
        self._free.append(slot)

    def entries(self) -> Iterator[JournalEntry]:
        """Every stream that is not settled yet."""
        for slot in range(len(self._map) // SLOT_BYTES):
            state, used, created_ms, *texts, nonce = _SLOT.unpack_from(self._map, slot * SLOT_BYTES)
            if state:
                sid, account, model, request_id = (text.rstrip(b"\0").decode("ascii", "replace") for text in texts)
                yield JournalEntry(
                    slot=slot,
                    state=SlotState(state),
                    used=used,
                    created_ms=created_ms,
                    sid=sid,
                    account=account,
                    model=model,
                    request_id=request_id,
                    nonce=f"{nonce:016x}" if nonce else "",
                )

    def close(self) -> None:
        """Unmap and unlock."""
        self._map.close()
        os.close(self._descriptor)
