"""Whether this process lives, whether it should get traffic, and its metrics."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gateway.limits.redis import Redis, StoreUnavailable
from gateway.services import Services
from gateway.telemetry import METRICS_CONTENT_TYPE


def health_router(services: Services, redis: Redis) -> APIRouter:
    """``/healthz``, ``/readyz`` and ``/metrics``; none asks for a credential."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process lives")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get(
        "/readyz",
        responses={503: {"description": "It does not; `problems` says why."}},
        summary="The process wants traffic: Redis answers, and it is not stopping",
    )
    async def readyz() -> Response:
        problems = ["draining"] if services.live.is_draining else []
        try:
            await redis.call("PING")
        except StoreUnavailable:
            problems.append("redis_unreachable")
        if problems:
            return JSONResponse({"status": "not_ready", "problems": problems}, status_code=503)
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", summary="Metrics in Prometheus's text format")
    async def metrics() -> Response:
        of_all = services.telemetry.of_all_workers
        try:
            exposed = services.telemetry.expose() if of_all is None else await of_all()
        except TimeoutError:
            return Response(status_code=503)
        return Response(exposed, media_type=METRICS_CONTENT_TYPE)

    return router
