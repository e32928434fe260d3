"""/healthz: the event loop answers. /readyz: an image could be made now. Neither says more than one word."""

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse


def health_routes(not_ready: Callable[[], str]) -> APIRouter:
    """`not_ready` gives one word why no image could be made now, or nothing. It runs off the event loop."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        reason = not_ready()
        headers = {"cache-control": "no-store"}
        if reason:
            return JSONResponse({"status": reason}, status_code=503, headers=headers)
        return JSONResponse({"status": "ready"}, headers=headers)

    return router
