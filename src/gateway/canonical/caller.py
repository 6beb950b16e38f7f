"""Who is calling: the result of authentication, and all that later rooms may know about it."""

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller.

    ``account`` is the billing account. ``tier`` is ``None`` where the credential does not name one, and the
    account's own tier applies. ``models`` is the allow-list of model names; ``None`` allows every model.
    """

    account: str
    subject: str
    method: str
    tier: str | None = None
    models: frozenset[str] | None = None
    scopes: frozenset[str] = frozenset()

    def may_use(self, model: str) -> bool:
        """Whether the caller's credential allows this model name."""
        return self.models is None or model in self.models
