"""Every Redis key of the project, with its type and its fields.

All keys of one account share the hash tag ``{account}``, so that one script may touch them together on a cluster.
Account names match ``ACCOUNT_NAME``: no braces, no colons, so that no name can reach another account's keys.
"""

import hashlib
import re

ACCOUNT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# ZSET account → time of creation (ms): every account there is.
ACCOUNTS = "gw:accounts"

# ZSET account → time (ms) until which one of its leases may run: where a reaper has to look.
ACTIVE = "gw:active"


# ZSET account or key:<key id> → time (ms) of its suspension or revocation: what running streams are checked against.
REVOKED = "gw:revoked"

# HASH provider/model → time (ms) until which a gateway leaves this deployment alone.
SICK = "gw:sick"


def account(name: str) -> str:
    """HASH name, tier, created (ms), down the model that answers until down_until (ms)."""
    return f"cr:{{{name}}}:a"


class Owner:
    """Whose limits they are: the prefix under which windows, buckets and slots are kept."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def window(self, limit: str) -> str:
        """HASH lo oldest part, sum posted, h held, b<part> amount posted in it. Expires when nothing in it counts."""
        return f"{self._prefix}:b:{limit}"

    def bucket(self, limit: str) -> str:
        """STRING "<level × period_ms> <last refill, ms>". A missing bucket is full; it expires when it would be."""
        return f"{self._prefix}:r:{limit}"

    def slots(self, limit: str) -> str:
        """ZSET sid → end of lease (ms): the streams that count against one concurrency limit."""
        return f"{self._prefix}:c:{limit}"

    @property
    def permits(self) -> str:
        """ZSET nonce of a run → end of lease (ms): who has taken from this shared capacity."""
        return f"{self._prefix}:p"


def limits_of(name: str) -> Owner:
    """The limits of an account; on its money's slot, so that one script decides about both."""
    return Owner(f"cr:{{{name}}}")


def capacity(tag: str) -> Owner:
    """Limits that accounts share, such as a tier's or a model's; ``tag`` holds no braces."""
    return Owner(f"cap:{{{tag}}}")


def digest(text: str, size: int = 8) -> str:
    """Text from outside as part of a key: nobody's text reaches Redis as it is. Twice ``size`` hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def wallet(name: str) -> str:
    """HASH g granted, s spent, h held, o absorbed (µ$), x suspended, rec recovering until (ms).

    Available is g - s - h, never stored.
    """
    return f"cr:{{{name}}}:w"


def record(name: str, sid: str) -> str:
    """HASH of one stream: st open|reaped|done, h held, u used, c charged, o absorbed (µ$), n tokens taken, no nonce.

    Also rq digest of the request, out outcome, t0, t1 (ms), m facts (JSON), lim its limits (JSON).
    """
    return f"cr:{{{name}}}:s:{sid}"


def leases(name: str) -> str:
    """ZSET sid → end of lease (ms): exactly the open streams."""
    return f"cr:{{{name}}}:x"


def revision(name: str, gateway: str) -> str:
    """STRING how many changes of the account this Redis has acknowledged to one gateway; expires a day after."""
    return f"cr:{{{name}}}:q:{gateway}"


def ledger(name: str) -> str:
    """STREAM of movements: op grant|post|reap|trueup|rollback, sid, d amount, o absorbed (µ$), out outcome, rec record.

    The record is JSON.
    """
    return f"cr:{{{name}}}:led"


def grants(name: str) -> str:
    """HASH grant id → amount (µ$): what was granted, once per id."""
    return f"cr:{{{name}}}:grants"


def account_keys(name: str) -> str:
    """SET of the account's API key ids."""
    return f"cr:{{{name}}}:k"


def api_key(key_id: str) -> str:
    """HASH account, digest (SHA-256 of the secret, hex), name, models (JSON), created, expires, revoked (ms)."""
    return f"key:{{{key_id}}}"


# HASH gateway id → its load (JSON; see load.py): one entry per gateway that runs. Expires when nobody writes it.
GAUGES = "gw:gauges"


def stat(minute: int) -> str:
    """HASH what all gateways saw in one minute of Unix time, and counted|reported:<target>; see ``statistics``."""
    return f"gw:stat:{minute}"


def experiment(name: str) -> str:
    """HASH <variant>:requests|completed|failed|refused|input_tokens|output_tokens|cost (µ$); see ``statistics``."""
    return f"gw:exp:{name}"


def history(name: str) -> str:
    """HASH <day>:requests|refused|strikes|spent (µ$), day in days of Unix time: an account's last 60 days.

    Requests include the refused ones.
    """
    return f"cr:{{{name}}}:t"


def alert(name: str) -> str:
    """STRING the gateway that sent this alert; while it exists, nobody sends it again."""
    return f"gw:alert:{name}"


def log(name: str, sid: str) -> str:
    """STREAM of what a resumable answer said: h head (JSON), b bytes, e the end; its entries are numbered from 1-1."""
    return f"cr:{{{name}}}:l:{sid}"


def watched(name: str, sid: str) -> str:
    """STRING that is there while somebody reads a log."""
    return f"cr:{{{name}}}:v:{sid}"


def chat(name: str, owner: str, chat_id: str) -> str:
    """HASH of a chat of one owner within an account: s sid of its newest answer, d sid of the last one read whole."""
    return f"cr:{{{name}}}:n:{digest(f'{len(owner)}:{owner}{chat_id}', 16)}"


def responses(name: str) -> str:
    """HASH id → response (JSON), <id → its bytes and the id before it, bytes sum; see ``responses/lua/keep.lua``."""
    return f"cr:{{{name}}}:o"


def response_ends(name: str) -> str:
    """ZSET id → when a kept response goes (ms). Both keys expire with the last of them."""
    return f"cr:{{{name}}}:u"
