"""The HTTP application. `python -m service.main` serves it."""

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from prometheus_client import start_http_server

from service.address import listen
from service.api import (
    api_keys,
    bulk,
    corpora,
    errors,
    health,
    hub,
    jobs,
    log,
    models,
    overview,
    policies,
    rechecks,
    report,
    requests,
    settings,
    subjects,
    versions,
)
from service.api import docs as api_docs
from service.api.access_log import AccessLog
from service.api.connections import limited_protocol
from service.api.health import metrics_registry
from service.api.limits import Admission
from service.api.listener import Listener
from service.api.oauth import AccessTokens
from service.api.platforms import datagrail, fides, opendsr, transcend
from service.api.rates import RateLimiter
from service.api.readiness import Readiness
from service.api.shares import Turns
from service.bootstrap import Services, build_server
from service.config import Settings, is_loopback
from service.console.live import LiveParts
from service.console.routes import ROUTERS as ROUTES
from service.explain import explained
from service.observability import tracing
from service.observability.logging import configure as configure_logs
from service.observability.traffic import SHARED_FOLDER
from service.process_group import run_several
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
    415: "Another media type than the one that is expected",
    422: "Not valid",
    429: "Too many requests",
    503: "Temporarily unavailable",
}
ROUTERS: tuple[APIRouter, ...] = (
    requests.submit_router,
    requests.router,
    bulk.router,
    subjects.router,
    models.router,
    policies.router,
    rechecks.router,
    corpora.router,
    jobs.router,
    overview.router,
    report.router,
    settings.router,
    versions.router,
    hub.router,
    fides.router,
    transcend.router,
    datagrail.router,
    log.router,
    api_keys.router,
    health.router,
    health.liveness_router,
    opendsr.opendsr_router,
    opendsr.opengdpr_router,
    opendsr.certificate_router,
)
GRACE_SECONDS = 5
DATABASE_SECONDS = 12  # that a client waits for the database at most
KEEP_ALIVE_SECONDS = 30
SWITCH_SECONDS = 0.001  # a thread with a group of requests to store waits no longer for the event loop's thread
STREAM_READS = 2  # of one API key at once, for its event streams


def create_app(services: Services, *, docs: bool = True) -> FastAPI:
    """The HTTP application on these services, with the page `/docs` or without."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.listener = Listener(services.settings.listen_database_url or services.settings.database_url)
        limiter: RateLimiter = app.state.rate_limiter
        tasks = [asyncio.create_task(work) for work in (app.state.listener.run(), limiter.keep_exchanging())]
        yield
        for task in tasks:
            task.cancel()
        services.close()

    app = _Application(
        title="unlearnd",
        version=importlib.metadata.version("unlearnd"),
        description=DESCRIPTION,
        lifespan=lifespan,
        responses=_problem_responses(),
        docs_url=None,  # its page would load Swagger UI from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # the redirect would name the Host header
    )
    app.state.services = services
    app.state.access_tokens = AccessTokens(services)
    app.state.line_threads = bulk.line_threads()
    app.state.rate_limiter = RateLimiter(services.settings.requests_per_minute, services.settings.broker_url)
    app.state.admission = Admission(services.settings)
    app.state.readiness = Readiness(services.db)
    app.state.stream_turns = Turns(STREAM_READS)
    app.state.live_parts = LiveParts()
    app.add_middleware(AccessLog, is_written=services.settings.access_log)
    errors.install(app)
    pages = ROUTES if services.settings.console else (api_docs.root_router,)
    optional = (*([api_docs.router] if docs else []), *pages)
    for router in (*ROUTERS, *optional):
        app.include_router(router)
    return app


class _Application(FastAPI):
    """The application. The schema of its errors is built once, and not for each operation."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document


def _problem_responses() -> dict[int | str, dict[str, object]]:
    """The error responses that the OpenAPI document lists for every operation."""
    content = {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"content": content, "description": description} for status, description in PROBLEMS.items()}


def main() -> None:
    """Serve until SIGINT or SIGTERM, in one process or in several."""
    parser = argparse.ArgumentParser(description="the HTTP API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a socket that listens already, in place of host and port")
    parser.add_argument("--processes", type=int, default=1, help="how many serve on the socket")
    arguments = parser.parse_args()
    server_socket = (
        listen(arguments.host, arguments.port) if arguments.fd is None else socket.socket(fileno=arguments.fd)
    )
    if arguments.processes > 1:
        configure_logs(Settings().log_level)
        fd = server_socket.fileno()
        with tempfile.TemporaryDirectory(prefix="unlearnd-metrics-") as folder:
            os.environ[SHARED_FOLDER] = folder
            sys.exit(run_several([sys.executable, "-m", "service.main", "--fd", str(fd)], arguments.processes, fd))
    serve(server_socket)


def serve(server_socket: socket.socket) -> None:
    """Serve on a socket until SIGINT or SIGTERM."""
    services = build_server(answer_seconds=DATABASE_SECONDS)
    services.wrapper.check_writable()
    settings, host = services.settings, str(server_socket.getsockname()[0])
    settings.check_reachable_at(host)
    settings.check_sign_in()
    settings.check_pooler()
    configure_logs(settings.log_level)
    app = create_app(services, docs=is_loopback(host) if settings.docs is None else settings.docs)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, host, metrics_registry(services))
    # The collector skips objects that live as long as the process. Scanning them took a twentieth of its time.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    sys.setswitchinterval(SWITCH_SECONDS)
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
        http=limited_protocol(settings),
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
    )
    server = uvicorn.Server(config)
    server.run(sockets=[server_socket])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    explained(main)
