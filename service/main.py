"""The HTTP application, and `python -m service.main` to serve it."""

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.api import api_keys, corpora, errors, health, hub, jobs, log, models, requests, subjects, versions
from service.api.limits import Admission, BodyLimit
from service.api.listener import Listener
from service.api.oauth import Tokens
from service.api.platforms import datagrail, fides, opendsr, transcend
from service.api.rates import Rates
from service.api.timeouts import timeout_protocol
from service.bootstrap import Services, build
from service.observability import tracing
from service.observability.logging import configure as configure_logs
from service.schemas.base import Problem

DESCRIPTION = """Deletion requests in, certified model versions out.

Errors are `application/problem+json` (RFC 9457). Times are RFC 3339 in UTC. Lists answer
`{"items": [...], "next_cursor": null | "..."}`.
"""
PROBLEM = {"model": Problem, "content": {errors.MEDIA_TYPE: {}}}
GRACE_SECONDS = 5
BODIES_AT_ONCE = 32  # of the largest size, on their way


def create_app(services: Services) -> FastAPI:
    """The HTTP application on these services."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.listener = Listener(services.settings.database_url)
        listening = asyncio.create_task(app.state.listener.run())
        yield
        listening.cancel()
        services.close()

    responses: dict[int | str, dict[str, Any]] = {
        status: {**PROBLEM, "description": text}
        for status, text in {
            401: "No valid API key", 403: "The key's scopes do not allow it", 404: "No such thing",
            400: "Not JSON in UTF-8", 409: "Not possible in the current state", 413: "Body too large",
            422: "Not valid", 429: "Too many requests", 503: "Temporarily unavailable",
        }.items()
    }  # fmt: skip
    version = importlib.metadata.version("unlearnd")
    app = FastAPI(title="unlearnd", version=version, description=DESCRIPTION, lifespan=lifespan, responses=responses)
    app.state.services = services
    app.state.tokens, app.state.rates = Tokens(services), Rates(services.settings.requests_per_minute)
    limit = services.settings.max_body_bytes
    app.add_middleware(Admission, max_requests=services.settings.max_requests, max_buffered=BODIES_AT_ONCE * limit)
    app.add_middleware(BodyLimit, max_bytes=limit)  # the last one is the outermost
    errors.install(app)
    resources = (
        requests,
        subjects,
        models,
        corpora,
        jobs,
        versions,
        hub,
        fides,
        transcend,
        datagrail,
        log,
        api_keys,
        health,
    )
    for resource in resources:
        app.include_router(resource.router)
    for router in (opendsr.dialect_router("opendsr"), opendsr.dialect_router("opengdpr"), opendsr.certificates):
        app.include_router(router)
    return app


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="the HTTP API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    services = build()
    settings = services.settings
    configure_logs(settings.log_level)
    app = create_app(services)
    gc.freeze()  # what lives as long as the process is not looked through again and again: a twentieth of its time
    gc.set_threshold(50_000, 50, 100)
    if tracing.configure("api"):
        tracing.instrument(app)
    uvicorn.run(
        app, host=arguments.host, port=arguments.port, access_log=False, log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS, timeout_keep_alive=30, server_header=False, loop="uvloop",
        http=timeout_protocol(seconds=settings.request_seconds, connections=settings.max_connections),
    )  # fmt: skip


if __name__ == "__main__":
    main()
