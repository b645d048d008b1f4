"""Refuses overload: too many requests at once, and bodies over the limit.

A body is refused by its Content-Length before it is read, and by its real length while it is read.
"""

from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem

RETRY_AFTER = 1  # seconds


class Admission:
    """ASGI middleware that answers 503 with Retry-After when too many requests wait for their answer to begin.

    Refusing some requests at once is better than answering all of them late: a queue in this process would only grow.
    A request counts once its whole body has arrived, so clients that do not send their bodies block nobody. Streams and
    downloads that have begun do not count.
    """

    def __init__(self, app: ASGIApp, max_requests: int, max_buffered: int) -> None:
        """Guard `app`. Bodies that are still arriving hold at most `max_buffered` bytes."""
        self._app, self._max_requests, self._waiting = app, max_requests, 0
        self._max_buffered, self._buffered = max_buffered, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request if there is room for it. `/livez` is always answered."""
        if scope["type"] != "http" or scope["path"] == "/livez":
            await self._app(scope, receive, send)
            return
        body = await self._receive_body(receive)
        if body is None:
            return  # the client has disconnected
        if self._waiting >= self._max_requests or not body:
            detail = "Too many requests are under way; nothing was changed. Try again."
            headers = {"Retry-After": str(RETRY_AFTER)}
            await problem(503, "busy", "Temporarily unavailable", detail, headers=headers)(scope, receive, send)
            return
        self._waiting += 1
        is_counted = True

        def stop_counting() -> None:
            nonlocal is_counted
            self._waiting -= is_counted
            is_counted = False

        async def send_and_stop_counting(message: Message) -> None:
            stop_counting()
            await send(message)

        async def replay_body() -> Message:
            return body.popleft() if body else await receive()

        try:
            await self._app(scope, replay_body, send_and_stop_counting)
        finally:
            stop_counting()

    async def _receive_body(self, receive: Receive) -> deque[Message] | None:
        """The messages of a whole body: empty if there is no room for it, None if the client disconnected."""
        messages: deque[Message] = deque()
        body_bytes = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                messages.append(message)
                body_bytes += len(message.get("body", b""))
                self._buffered += len(message.get("body", b""))
                if self._buffered > self._max_buffered:
                    return deque()
                if not message.get("more_body", False):
                    return messages
        finally:
            self._buffered -= body_bytes


class BodyLimit:
    """ASGI middleware that refuses large bodies with a 413 problem document."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Guard `app`."""
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose body is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        if not content_length.isdigit() or int(content_length) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received, answer_started = 0, False

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self._max_bytes else {"type": "http.disconnect"}

        async def send_unless_refused(message: Message) -> None:
            nonlocal answer_started
            if received <= self._max_bytes:  # an answer to a truncated body is dropped
                answer_started = True
                await send(message)

        await self._app(scope, receive_and_count, send_unless_refused)
        if received > self._max_bytes and not answer_started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The body is over {self._max_bytes} bytes; split the request."
        errors = [{"field": "body", "message": detail}]
        headers = {"Connection": "close"}
        await problem(413, "too_large", "The body is too large", detail, errors, headers)(scope, receive, send)
