"""Every Redis key of the project, with its type and its fields.

All keys of one account share the hash tag ``{account}``, so that one script may touch them together on a cluster.
Account names match ``ACCOUNT_NAME``: no braces, no colons, so that no name can reach another account's keys.
"""

import re

ACCOUNT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# ZSET account → time of creation (ms): every account there is.
ACCOUNTS = "gw:accounts"

# ZSET account → time (ms) until which one of its leases may run: where a reaper has to look.
ACTIVE = "gw:active"


def account(name: str) -> str:
    """HASH name, tier, created (ms)."""
    return f"cr:{{{name}}}:a"


def wallet(name: str) -> str:
    """HASH g granted, s spent, h held, o absorbed (µ$), x suspended. Available is g - s - h, never stored."""
    return f"cr:{{{name}}}:w"


def record(name: str, sid: str) -> str:
    """HASH st open|reaped|done, h held, u used, c charged, o absorbed (µ$), no nonce, t0, t1 (ms), m facts (JSON)."""
    return f"cr:{{{name}}}:s:{sid}"


def leases(name: str) -> str:
    """ZSET sid → end of lease (ms): exactly the open streams."""
    return f"cr:{{{name}}}:x"


def ledger(name: str) -> str:
    """STREAM of posted movements: op grant|post|reap|trueup, sid, d amount, o absorbed (µ$), out outcome, rec JSON."""
    return f"cr:{{{name}}}:led"


def grants(name: str) -> str:
    """HASH grant id → amount (µ$): what was granted, once per id."""
    return f"cr:{{{name}}}:grants"


def bucket(name: str, limit: str) -> str:
    """HASH l level × period_ms, t last refill (ms). A missing bucket is full; it expires when it would be."""
    return f"cr:{{{name}}}:r:{limit}"


def slots(name: str, limit: str) -> str:
    """ZSET sid → end of lease (ms): the streams that count against one concurrency limit."""
    return f"cr:{{{name}}}:c:{limit}"


def account_keys(name: str) -> str:
    """SET of the account's API key ids."""
    return f"cr:{{{name}}}:k"


def api_key(key_id: str) -> str:
    """HASH account, digest (SHA-256 of the secret, hex), name, models (JSON), created, expires, revoked (ms)."""
    return f"key:{{{key_id}}}"
