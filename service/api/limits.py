"""Refuse what is too much: requests at once, and a body over the limit.

A body is refused by its announced length before it is read, by its real one while it is.
"""

from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem

RETRY_AFTER = 1  # seconds


class Admission:
    """ASGI middleware that answers 503 with Retry-After when enough requests wait for their answer to begin.

    Better some refused at once than all late: a queue in here would only grow. A request counts once its body is here,
    so that peers who do not send theirs keep nobody out; streams and downloads that have begun do not count.
    """

    def __init__(self, app: ASGIApp, max_requests: int, max_buffered: int) -> None:
        """Guard `app`; bodies on their way hold `max_buffered` bytes at most."""
        self._app, self._max, self._waiting = app, max_requests, 0
        self._max_buffered, self._buffered = max_buffered, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what there is room for; whether the process lives is always answered."""
        if scope["type"] != "http" or scope["path"] == "/livez":
            await self._app(scope, receive, send)
            return
        body = await self._arrived(receive)
        if body is None:
            return  # the peer has gone
        if self._waiting >= self._max or not body:
            detail = "Too much is under way; nothing was changed. Try again."
            headers = {"Retry-After": str(RETRY_AFTER)}
            await problem(503, "busy", "Temporarily unavailable", detail, headers=headers)(scope, receive, send)
            return
        self._waiting += 1
        counted = True

        def leave() -> None:
            nonlocal counted
            self._waiting -= counted
            counted = False

        async def watched(message: Message) -> None:
            leave()
            await send(message)

        async def replayed() -> Message:
            return body.popleft() if body else await receive()

        try:
            await self._app(scope, replayed, watched)
        finally:
            leave()

    async def _arrived(self, receive: Receive) -> deque[Message] | None:
        """The messages of a whole body; none if there is no room for it, None if the peer went away."""
        messages: deque[Message] = deque()
        held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                messages.append(message)
                held += len(message.get("body", b""))
                self._buffered += len(message.get("body", b""))
                if self._buffered > self._max_buffered:
                    return deque()
                if not message.get("more_body", False):
                    return messages
        finally:
            self._buffered -= held


class BodyLimit:
    """ASGI middleware that answers 413 as a problem document."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Guard `app`."""
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max:
            await self._refuse(scope, receive, send)
            return
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self._max else {"type": "http.disconnect"}

        async def watched(message: Message) -> None:
            nonlocal started
            if received <= self._max:  # whatever is said of the cut body is not the answer
                started = True
                await send(message)

        await self._app(scope, counted, watched)
        if received > self._max and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The body is over {self._max} bytes; split the request."
        errors = [{"field": "body", "message": detail}]
        headers = {"Connection": "close"}
        await problem(413, "too_large", "The body is too large", detail, errors, headers)(scope, receive, send)
