"""The admin API: accounts, credit, keys and usage, for the operator.

Amounts are decimal USD strings. Ids are looked up within the account of the path, so that one account's key id tells
nothing about another's.
"""

import hmac
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.canonical.errors import AuthenticationError, ErrorCode, RequestError
from gateway.http.admin_limits import LimitsExplainer, add_limits
from gateway.http.front import Scope
from gateway.http.inference import read_body
from gateway.identity.authenticator import credential
from gateway.identity.keys import ApiKeys, KeyRecord
from gateway.ledger import Ledger, Row
from gateway.limits import keys
from gateway.limits.accounts import Accounts
from gateway.metering.prices import microusd_of, usd_string

_BODY_BYTES_MAX = 1024 * 1024
_ACCOUNTS_MAX = 1_000_000_000
_ACCOUNTS_PER_PAGE_MAX = 1000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_GRANT_DONE, _GRANT_REPEATED, _GRANT_OTHER_AMOUNT, _GRANT_BELOW_ZERO = 1, 2, 5, -2

AccountId = Annotated[str, Field(pattern=f"^{keys.ACCOUNT_NAME.pattern}$", description="Letters, digits, - and _.")]


def _in_range(at: datetime) -> datetime:
    if not _EARLIEST <= at <= _LATEST:
        raise ValueError("must lie between 1970 and 9999")
    return at


def _in_future(at: datetime) -> datetime:
    if at.timestamp() <= time.time():
        raise ValueError("lies in the past")
    return at


Time = Annotated[AwareDatetime, AfterValidator(_in_range)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewAccount(_Body):
    """An account to make."""

    id: AccountId
    name: str = Field("", max_length=256)
    tier: str | None = Field(None, max_length=64)


class AccountChange(_Body):
    """What to change about an account; what is left out stays."""

    tier: str | None = Field(None, max_length=64, description="Its tier; an empty string for the default one.")
    suspended: bool | None = Field(None, description="Refuse requests and end running streams, or take that back.")


class NewCredit(_Body):
    """Credit to add; a negative amount takes it back."""

    amount_usd: Decimal = Field(strict=False, max_digits=20, description="USD, at most six decimal places.")


class NewKeyBody(_Body):
    """A key to make."""

    name: str = Field("", max_length=256)
    models: list[str] | None = Field(None, max_length=1000, description="Models it may use; all where unset.")
    expires_at: Annotated[Time, AfterValidator(_in_future)] | None = Field(None, strict=False)


class AccountOut(BaseModel):
    """An account and its balance."""

    id: str
    name: str
    tier: str | None
    created_at: str
    suspended: bool
    granted: str
    spent: str
    held: str
    available: str
    absorbed: str


class KeyOut(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    models: list[str] | None
    expires_at: str | None
    revoked_at: str | None


class CreatedKey(BaseModel):
    """A new key, shown this once."""

    id: str
    key: str


class UsageOut(BaseModel):
    """One exchange as it was charged."""

    id: str
    time: str
    account: str
    kind: str
    outcome: str
    charged_usd: str
    absorbed_usd: str
    record: dict[str, object]


class UsagePage(BaseModel):
    """Records, newest first."""

    data: list[UsageOut]
    next: str | None


class Admin:
    """What the admin endpoints work with."""

    def __init__(self, *, key: str, accounts: Accounts, api_keys: ApiKeys, ledger: Ledger, tiers: Collection[str]):
        self._key = key
        self.accounts = accounts
        self.api_keys = api_keys
        self.ledger = ledger
        self.tiers = tiers

    def check(self, scope: Scope) -> None:
        """Raises ``AuthenticationError`` where the request does not carry the admin key."""
        token = credential(scope["headers"])
        if not hmac.compare_digest(token.encode(), self._key.encode()):
            raise AuthenticationError("The admin key is wrong.")

    def check_tier(self, tier: str | None) -> None:
        """Raises ``RequestError`` for a tier that the configuration does not have."""
        if tier is not None and tier not in self.tiers:
            raise RequestError(
                f"There is no such tier; there are {', '.join(sorted(self.tiers))}.",
                code=ErrorCode.INVALID_VALUE,
                param="tier",
            )

    async def account_out(self, account_id: str) -> AccountOut:
        """An account with its balance; raises ``RequestError`` (not found)."""
        account = await self.accounts.get(account_id) if keys.ACCOUNT_NAME.fullmatch(account_id) else None
        if account is None:
            raise _not_found("account")
        wallet = await self.accounts.wallet(account_id)
        return AccountOut(
            id=account.id,
            name=account.name,
            tier=account.tier,
            created_at=_time(account.created_ms),
            suspended=wallet.is_suspended,
            granted=usd_string(wallet.granted),
            spent=usd_string(wallet.spent),
            held=usd_string(wallet.held),
            available=usd_string(wallet.available),
            absorbed=usd_string(wallet.absorbed),
        )


def admin_router(admin: Admin, explainer: LimitsExplainer) -> APIRouter:
    """Everything under ``/admin/v1``."""
    router = APIRouter(prefix="/admin/v1", tags=["admin"], route_class=_guarded_route(admin))
    _add_accounts(router, admin)
    _add_changes(router, admin)
    add_limits(router, explainer)
    _add_keys(router, admin)
    _add_usage(router, admin)
    return router


def _guarded_route(admin: Admin) -> type[APIRoute]:
    """FastAPI reads a body of any size before it asks dependencies; here the key comes first, and there is a bound."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                scope = dict(request.scope)
                admin.check(scope)
                body = await read_body(scope, request.receive, _BODY_BYTES_MAX)

                async def read() -> dict[str, Any]:
                    return {"type": "http.request", "body": body, "more_body": False}

                return await handler(Request(request.scope, read))

            return guarded

    return GuardedRoute


def _add_accounts(router: APIRouter, admin: Admin) -> None:
    @router.post("/accounts", status_code=201, summary="Make an account")
    async def create_account(body: NewAccount) -> AccountOut:
        admin.check_tier(body.tier)
        if not await admin.accounts.create(body.id, name=body.name, tier=body.tier):
            raise RequestError("An account of this id exists.", code=ErrorCode.CONFLICT, param="id")
        return await admin.account_out(body.id)

    @router.get("/accounts", summary="List accounts, newest first")
    async def list_accounts(
        start: Annotated[int, Query(ge=0, le=_ACCOUNTS_MAX)] = 0, count: Annotated[int, Query(ge=1, le=100)] = 50
    ) -> list[AccountOut]:
        return [await admin.account_out(account) for account in await admin.accounts.ids(start=start, count=count)]

    @router.get("/accounts/{account_id}", summary="An account and its balance")
    async def get_account(account_id: str) -> AccountOut:
        return await admin.account_out(account_id)

    @router.post("/accounts/{account_id}/credits", summary="Add credit, once per Idempotency-Key")
    async def add_credit(
        account_id: str,
        body: NewCredit,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[!-~]+$")] = None,
    ) -> AccountOut:
        await admin.account_out(account_id)
        try:
            amount = microusd_of(body.amount_usd)
        except ValueError as error:
            raise RequestError(f"amount_usd: {error}.", code=ErrorCode.INVALID_VALUE, param="amount_usd") from None
        grant_id = idempotency_key or uuid.uuid4().hex
        reply = await admin.accounts.grant(account_id, grant_id=grant_id, amount=amount)
        if reply.code == _GRANT_OTHER_AMOUNT:
            raise RequestError(
                "This Idempotency-Key was used for another amount.", code=ErrorCode.CONFLICT, param="idempotency-key"
            )
        if reply.code not in (_GRANT_DONE, _GRANT_REPEATED):
            reason = "would leave less than nothing" if reply.code == _GRANT_BELOW_ZERO else "is too large"
            raise RequestError(f"The amount {reason}.", code=ErrorCode.INVALID_VALUE, param="amount_usd")
        return await admin.account_out(account_id)


def _add_changes(router: APIRouter, admin: Admin) -> None:
    @router.patch("/accounts/{account_id}", summary="Change an account's tier, suspend or resume it")
    async def change_account(account_id: str, body: AccountChange) -> AccountOut:
        await admin.account_out(account_id)
        if body.tier is not None:
            admin.check_tier(body.tier or None)
            await admin.accounts.change_tier(account_id, body.tier or None)
        if body.suspended is not None:
            await (admin.accounts.suspend if body.suspended else admin.accounts.resume)(account_id)
        return await admin.account_out(account_id)


def _add_keys(router: APIRouter, admin: Admin) -> None:
    @router.post("/accounts/{account_id}/keys", status_code=201, summary="Make a key; it is shown this once")
    async def create_key(account_id: str, body: NewKeyBody) -> CreatedKey:
        await admin.account_out(account_id)
        expires_ms = 0 if body.expires_at is None else int(body.expires_at.timestamp() * 1000)
        models = None if body.models is None else tuple(body.models)
        key = await admin.api_keys.create(account_id, name=body.name, models=models, expires_ms=expires_ms)
        return CreatedKey(id=key.id, key=key.token)

    @router.get("/accounts/{account_id}/keys", summary="The account's keys, without their secrets")
    async def list_keys(account_id: str) -> list[KeyOut]:
        await admin.account_out(account_id)
        return [_key_out(record) for record in await admin.api_keys.list(account_id)]

    @router.delete("/accounts/{account_id}/keys/{key_id}", status_code=204, summary="Revoke a key")
    async def revoke_key(account_id: str, key_id: str) -> Response:
        await admin.account_out(account_id)
        if not await admin.api_keys.revoke(account_id, key_id):
            raise _not_found("key")
        return Response(status_code=204)


def _add_usage(router: APIRouter, admin: Admin) -> None:
    @router.get("/usage", summary="What was charged, newest first")
    async def usage(
        account: str | None = None,
        start: Annotated[Time | None, Query(alias="from")] = None,
        end: Annotated[Time | None, Query(alias="to")] = None,
        cursor: Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,18}-[0-9]{1,19}-[a-z0-9_-]{1,64}$")] = None,
        count: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> UsagePage:
        if account is not None:
            accounts = [(await admin.account_out(account)).id]
        else:
            accounts = await admin.accounts.ids(start=0, count=_ACCOUNTS_PER_PAGE_MAX)
        from_ms = 0 if start is None else int(start.timestamp() * 1000)
        to_ms = int(time.time() * 1000) + 60_000 if end is None else int(end.timestamp() * 1000)
        page = await admin.ledger.page(accounts, from_ms=from_ms, to_ms=to_ms, cursor=cursor, count=count)
        return UsagePage(data=[_usage_out(row) for row in page.rows], next=page.next)


def _not_found(what: str) -> RequestError:
    return RequestError(f"There is no such {what}.", code=ErrorCode.NOT_FOUND)


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _key_out(record: KeyRecord) -> KeyOut:
    return KeyOut(
        id=record.id,
        name=record.name,
        models=None if record.models is None else list(record.models),
        expires_at=_time(record.expires_ms) if record.expires_ms else None,
        revoked_at=_time(record.revoked_ms) if record.revoked_ms else None,
    )


def _usage_out(row: Row) -> UsageOut:
    return UsageOut(
        id=row.id,
        time=_time(row.time_ms),
        account=row.account,
        kind=row.kind,
        outcome=row.outcome,
        charged_usd=usd_string(row.charged),
        absorbed_usd=usd_string(row.absorbed),
        record=row.record,
    )
