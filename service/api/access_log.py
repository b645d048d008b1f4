"""The access log: one line for each HTTP request, when its answer has ended.

A line has the method, the route's template, the status, milliseconds and the id of the API key. It never has the path
or the query as they were sent: both can hold personal data.
"""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability.logging import get_logger

logger = get_logger("service.access")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a caller may send any word


class AccessLog:
    """ASGI middleware that logs each HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        """Log the requests to `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request. Log it when its answer has ended, or when it failed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), None

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        except Exception:
            status = status or 500  # an outer middleware answers so
            raise
        finally:
            logger.info(
                "request",
                method=scope["method"] if scope["method"] in METHODS else None,
                route=getattr(scope.get("route"), "path_format", None),
                http_status=status,
                ms=round(1000 * (time.perf_counter() - started)),
                key=scope.get("state", {}).get("api_key_id"),
            )
