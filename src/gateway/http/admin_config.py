"""The part of the admin API that shows the configuration in use, and has it read again."""

from typing import Any, Protocol

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from gateway.http.admin import Admin


class ReloadOut(BaseModel):
    """What reading the configuration again came to. Keys are named by section and name, such as `models.fast`."""

    changed: list[str] = Field(description="In use from `at` on, for requests that come from then on.")
    needs_restart: list[str] = Field(description="Other than in the file until the next start.")
    at: str


class ConfigOut(BaseModel):
    """The configuration in use."""

    config: dict[str, Any] = Field(description="Every key, defaults included; secrets as `***`.")
    needs_restart: list[str] = Field(description="Keys that were read otherwise, and wait for the next start.")
    at: str = Field(description="Since when it is in use.")


class Reloads(Protocol):
    """Whoever keeps the configuration."""

    def shown(self) -> ConfigOut:
        """The configuration in use."""
        ...

    async def reload_for_admin(self) -> ReloadOut:
        """Read the file again; raises ``RequestError`` with every problem that it has."""
        ...


def config_router(admin: Admin, reloads: Reloads) -> APIRouter:
    """``/admin/v1/config``; wants the admin key."""

    def check(request: Request) -> None:
        admin.check(dict(request.scope))

    router = APIRouter(prefix="/admin/v1/config", tags=["admin"], dependencies=[Depends(check)])

    @router.get("", summary="The configuration in use, without its secrets")
    async def show_config() -> ConfigOut:
        return reloads.shown()

    @router.post("/reload", summary="Read the configuration again; a bad file changes nothing, and is a 400")
    async def reload_config() -> ReloadOut:
        return await reloads.reload_for_admin()

    return router
