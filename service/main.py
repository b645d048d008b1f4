"""The HTTP application. `python -m service.main` serves it."""

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import APIRouter, FastAPI

from service.address import listen
from service.api import api_keys, corpora, errors, health, hub, jobs, log, models, requests, subjects, versions
from service.api.access_log import AccessLog
from service.api.limits import Admission, BodyLimit
from service.api.listener import Listener
from service.api.oauth import AccessTokens
from service.api.platforms import datagrail, fides, opendsr, transcend
from service.api.rates import RateLimiter
from service.api.timeouts import timeout_protocol
from service.bootstrap import Services, build_server
from service.explain import explained
from service.observability import tracing
from service.observability.logging import configure as configure_logs
from service.schemas.base import Problem

DESCRIPTION = """Deletion requests in, certified model versions out.

Errors are `application/problem+json` (RFC 9457). Times are RFC 3339 in UTC. Lists answer
`{"items": [...], "next_cursor": null | "..."}`.
"""
PROBLEMS = {
    400: "Not JSON in UTF-8",
    401: "No valid API key",
    403: "The key's scopes do not allow it",
    404: "No such thing",
    409: "Not possible in the current state",
    413: "Body too large",
    422: "Not valid",
    429: "Too many requests",
    503: "Temporarily unavailable",
}
ROUTERS: tuple[APIRouter, ...] = (
    requests.router,
    subjects.router,
    models.router,
    corpora.router,
    jobs.router,
    versions.router,
    hub.router,
    fides.router,
    transcend.router,
    datagrail.router,
    log.router,
    api_keys.router,
    health.router,
    opendsr.opendsr_router,
    opendsr.opengdpr_router,
    opendsr.certificate_router,
)
GRACE_SECONDS = 5
KEEP_ALIVE_SECONDS = 30
MAX_BUFFERED_BODIES = 32  # bodies of the largest size that a process buffers before it answers 503


def create_app(services: Services) -> FastAPI:
    """The HTTP application on these services."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.listener = Listener(services.settings.database_url)
        listening = asyncio.create_task(app.state.listener.run())
        yield
        listening.cancel()
        services.close()

    app = FastAPI(
        title="unlearnd",
        version=importlib.metadata.version("unlearnd"),
        description=DESCRIPTION,
        lifespan=lifespan,
        responses=_problem_responses(),
    )
    app.state.services = services
    app.state.access_tokens = AccessTokens(services)
    app.state.rate_limiter = RateLimiter(services.settings.requests_per_minute)
    _add_limits(app, max_requests=services.settings.max_requests, max_body_bytes=services.settings.max_body_bytes)
    if services.settings.access_log:
        app.add_middleware(AccessLog)  # the outermost: it logs what the limits refuse, too
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _problem_responses() -> dict[int | str, dict[str, object]]:
    """The error responses that the OpenAPI document lists for every operation."""
    return {
        status: {"model": Problem, "content": {errors.MEDIA_TYPE: {}}, "description": description}
        for status, description in PROBLEMS.items()
    }


def _add_limits(app: FastAPI, *, max_requests: int, max_body_bytes: int) -> None:
    """Add the middleware that limits requests and bodies. The middleware added last is the outermost."""
    app.add_middleware(Admission, max_requests=max_requests, max_buffered=MAX_BUFFERED_BODIES * max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="the HTTP API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a socket that listens already, in place of host and port")
    arguments = parser.parse_args()
    services = build_server()
    server_socket = (
        listen(arguments.host, arguments.port) if arguments.fd is None else socket.socket(fileno=arguments.fd)
    )
    settings = services.settings
    configure_logs(settings.log_level)
    app = create_app(services)
    # The collector skips objects that live as long as the process. Scanning them took a twentieth of its time.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    if tracing.configure("api"):
        tracing.instrument(app)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
        loop="uvloop",
        http=timeout_protocol(seconds=settings.request_seconds, connections=settings.max_connections),
    )
    server = uvicorn.Server(config)
    server.run(sockets=[server_socket])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    explained(main)
