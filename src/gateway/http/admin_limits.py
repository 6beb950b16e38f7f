"""The admin endpoint that says which limits an account has at this moment, and why.

It only shows: what is shown is computed in ``limits/``. The router comes from ``admin.py``, which guards it.
"""

from typing import Any, Protocol

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.limits import keys


class LimitsExplainer(Protocol):
    """Whoever knows an account's limits."""

    async def explain(self, account_id: str, /) -> dict[str, object] | None:
        """The fields of ``LimitsOut``, or ``None`` where there is no such account."""
        ...


class AmountOut(BaseModel):
    """A limit, and what may come at once."""

    limit: int
    burst: int | None


class LimitOut(BaseModel):
    """One limit as configured and as it holds now; budgets and tokens per request are never scaled."""

    name: str
    unit: str
    period_s: float | None
    scaled: bool
    base: AmountOut
    effective: AmountOut


class LimitsOut(BaseModel):
    """An account's limits at this moment; `permille` is what strategy, load and trust make of the configured ones."""

    account: str
    tier: str
    strategy: str
    variant: str | None
    permille: int
    load: dict[str, Any]
    trust: dict[str, Any]
    limits: list[LimitOut]


def add_limits(router: APIRouter, explainer: LimitsExplainer) -> None:
    """Add the endpoint to the admin API's router."""

    @router.get("/accounts/{account_id}/limits", summary="The account's limits at this moment, and why")
    async def get_limits(account_id: str) -> LimitsOut:
        explained = await explainer.explain(account_id) if keys.ACCOUNT_NAME.fullmatch(account_id) else None
        if explained is None:
            raise RequestError("There is no such account.", code=ErrorCode.NOT_FOUND)
        return LimitsOut.model_validate(explained)
