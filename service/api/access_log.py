"""The access log: one line for each HTTP request, when its answer has ended; and the request is counted.

A line has the method, the route's template, the status, milliseconds and the id of the API key. It never has the path
or the query as they were sent: both can hold personal data. No request waits for the disk: the lines of a moment are
written together, and a process that is killed loses them.
"""

import asyncio
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability import traffic
from service.observability.logging import is_logged, trace_id, write_lines

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a caller may send any word
WRITE_SECONDS = 0.2  # the longest time that a line waits


class AccessLog:
    """ASGI middleware that counts and logs each HTTP request."""

    def __init__(self, app: ASGIApp, *, is_written: bool = True) -> None:
        """Count the requests to `app`, and log them if `is_written`."""
        self._app, self._is_written = app, is_written
        self._lines: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request. Count and log it when its answer has ended, or when it failed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            self._write()  # the server has shut down
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
            self._add(scope, status, time.perf_counter() - started)

    def _add(self, scope: Scope, status: int | None, seconds: float) -> None:
        """Count a request and add its line. All values are the service's own words, or numbers: none needs quotes."""
        method = scope["method"] if scope["method"] in METHODS else None
        route = getattr(scope.get("route"), "path_format", None)
        traffic.count(method, route, status, seconds)
        if not (self._is_written and is_logged("INFO")):
            return
        values = {
            "method": method,
            "route": route,
            "http_status": status,
            "ms": round(1000 * seconds),
            "key": scope.get("state", {}).get("api_key_id"),
            "trace": trace_id(),
        }
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        said = " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
        if not self._lines:
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self._write)
        self._lines.append(f"timestamp={at} level=info logger=service.access event=request {said}\n")

    def _write(self) -> None:
        """Write the lines that were added."""
        lines, self._lines = self._lines, []
        if lines:
            write_lines("".join(lines))
