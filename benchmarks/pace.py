"""How long things take and how many of each there are: the full run, and a quick one that is a first look."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Times in seconds; counts of streams, accounts and requests."""

    warmup_s: float
    window_s: float
    settle_s: float
    repeats: int  # of the one-client requests
    memory_large: int  # slow streams of memory5k
    aborts: int
    accounts: int
    poor_streams: int  # at once on the account with one cent
    opening_s: float
    soak_s: float = 1800.0
    soak_streams: int = 500

    def window(self) -> dict[str, float]:
        return {"warmup_s": self.warmup_s, "window_s": self.window_s}


FULL = Pace(
    warmup_s=0.6,
    window_s=2.5,
    settle_s=2.0,
    repeats=300,
    memory_large=5000,
    aborts=10_000,
    accounts=10_000,
    poor_streams=200,
    opening_s=20.0,
)
QUICK = Pace(
    warmup_s=0.4,
    window_s=1.2,
    settle_s=1.0,
    repeats=100,
    memory_large=2000,
    aborts=1000,
    accounts=2000,
    poor_streams=50,
    opening_s=8.0,
)
