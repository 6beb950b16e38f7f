"""The part of the admin API that reports: how the variants of an experiment did.

An experiment that is no longer in the configuration can still be asked for by its name while its counters are kept.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field
from starlette.requests import Request

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.experiments import Experiment, Experiments, Row, refusals_differ, rows_of
from gateway.http.admin import Admin
from gateway.limits import keys
from gateway.limits.tallies import Tallies
from gateway.metering.prices import usd_string

_NAME = r"^[a-z0-9_-]{1,32}$"


class VariantOut(BaseModel):
    """What was counted for one variant; the first one is what the others are compared with."""

    variant: str
    requests: int = Field(description="Refused ones included.")
    completed: int
    failed: int
    refused: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    refused_z: float | None = Field(description="Refusals against the first variant's: a two-proportion z-test.")
    refused_p: float | None


class ExperimentOut(BaseModel):
    """An experiment and its variants."""

    name: str
    state: Literal["waiting", "running", "over", "removed"]
    tier: str | None
    start: str | None
    end: str | None
    variants: list[VariantOut]


def reports_router(admin: Admin, current: Callable[[], Experiments], tallies: Tallies) -> APIRouter:
    """``/admin/v1/experiments``; wants the admin key. ``current`` tells the experiments of the configuration."""

    def check(request: Request) -> None:
        admin.check(dict(request.scope))

    router = APIRouter(prefix="/admin/v1", tags=["admin"], dependencies=[Depends(check)])

    @router.get("/experiments", summary="Every experiment of the configuration, with what was counted")
    async def list_experiments() -> list[ExperimentOut]:
        experiments = current()
        names = experiments.names()
        counters = await tallies.read(*map(keys.experiment, names))
        return [
            _experiment_out(name, experiments.get(name), found) for name, found in zip(names, counters, strict=True)
        ]

    @router.get("/experiments/{name}", summary="One experiment, with what was counted")
    async def get_experiment(name: str = Path(pattern=_NAME)) -> ExperimentOut:
        experiment = current().get(name)
        (counters,) = await tallies.read(keys.experiment(name))
        if experiment is None and not counters:
            raise RequestError("There is no such experiment.", code=ErrorCode.NOT_FOUND)
        return _experiment_out(name, experiment, counters)

    return router


def _experiment_out(name: str, experiment: Experiment | None, counters: dict[str, int]) -> ExperimentOut:
    variants = [] if experiment is None else [it.name.partition("/")[2] for it in experiment.variants]
    rows = rows_of(counters, variants)
    return ExperimentOut(
        name=name,
        state=_state(experiment),
        tier=None if experiment is None else experiment.tier,
        start=None if experiment is None else _time(experiment.start_s),
        end=None if experiment is None else _time(experiment.end_s),
        variants=[_variant_out(row, rows[0]) for row in rows],
    )


def _state(experiment: Experiment | None) -> Literal["waiting", "running", "over", "removed"]:
    if experiment is None:
        return "removed"
    now_s = time.time()
    if experiment.is_running(now_s):
        return "running"
    return "waiting" if now_s < experiment.start_s else "over"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _variant_out(row: Row, first: Row) -> VariantOut:
    difference = None if row is first else refusals_differ(first, row)
    return VariantOut(
        variant=row.variant,
        requests=row.requests,
        completed=row.completed,
        failed=row.failed,
        refused=row.refused,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=usd_string(row.cost),
        refused_z=None if difference is None else difference.z,
        refused_p=None if difference is None else difference.p,
    )
