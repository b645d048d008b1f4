"""Refuses overload: too many requests at once, bodies over the limit, and too much memory for bodies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from starlette.requests import Request

from service.api.shares import Shares, Turns, peer_name
from service.config import Settings
from service.domain.errors import Busy, TooLarge

MAX_BUFFERED_BODIES = 32  # bodies of the largest size that a process holds before it answers 503
WEBHOOK_BYTES = 65_536  # largest body of a request without an API key
WEBHOOK_BUFFER_BYTES = 8_388_608  # memory for all bodies without an API key
WEBHOOK_SHARE_BYTES = 1_048_576  # and for those of one address
VALUES_OF_A_RECORD = 4
OTHER_VALUES = 20_000
PARSER_THREADS = 2  # that parse large bodies
SUBMISSIONS = 32  # of one holder that wait for the database at once: as many as one transaction stores
LOOKUP_THREADS = 4  # that look up keys which are not remembered


class Admission:
    """Admits requests to an API process.

    Refusing some requests at once is better than answering all of them late: a queue in this process would only grow.
    A request counts once its whole body has arrived, so clients that do not send their bodies block nobody. Streams and
    downloads that have begun do not count.
    """

    def __init__(self, settings: Settings) -> None:
        """Admit as much as the settings allow."""
        buffer = MAX_BUFFERED_BODIES * settings.max_body_bytes
        self._max_bytes = settings.max_body_bytes
        self._requests = Shares(settings.max_requests, _part(settings.max_requests, settings.share))
        self._bodies = Shares(buffer, max(settings.max_body_bytes, _part(buffer, settings.share)))
        self._webhooks = Shares(WEBHOOK_BUFFER_BYTES, WEBHOOK_SHARE_BYTES)
        self.turns = Turns(settings.key_requests)  # each may take a thread and a connection
        self._submissions = Turns(SUBMISSIONS)
        self.max_values = OTHER_VALUES + VALUES_OF_A_RECORD * settings.max_records  # of a JSON body
        self.parsers, self.key_lookups = CapacityLimiter(PARSER_THREADS), CapacityLimiter(LOOKUP_THREADS)

    @asynccontextmanager
    async def place(self, holder: str) -> AsyncIterator[None]:
        """Count a request of a holder. It may hold neither a thread nor a connection to the database.

        Raises:
            Busy: Too many requests are under way, or too many of this holder.
        """
        if not self._requests.take(holder):
            raise Busy("Too many requests are under way; nothing was changed. Try again.")
        try:
            yield
        finally:
            self._requests.give_back(holder)

    @asynccontextmanager
    async def submission(self, holder: str) -> AsyncIterator[None]:
        """Count a submission, and wait until it may be sealed: a holder's others would keep the event loop busy.

        Raises:
            Busy: As in `place`.
        """
        async with self.place(holder), self._submissions.turn(holder):
            yield

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """Count a request of a holder, and wait until it may be worked on.

        Raises:
            Busy: As in `place`.
        """
        async with self.place(holder), self.turns.turn(holder):
            yield

    @asynccontextmanager
    async def body(self, request: Request, holder: str, *, has_key: bool) -> AsyncIterator[bytes]:
        """The whole body of a request. It counts as held until the context ends.

        A body is refused by its Content-Length before it is read, and by its real length while it is read.

        Raises:
            TooLarge: The body is over the limit.
            Busy: There is no memory for it, or this holder has too many bodies.
            ClientDisconnect: The client has gone.
        """
        limit, shares = (self._max_bytes, self._bodies) if has_key else (WEBHOOK_BYTES, self._webhooks)
        if (
            int(request.headers.get("content-length", "0")) > limit
        ):  # the HTTP parser refuses lengths that are no numbers
            raise TooLarge(limit)
        chunks: list[bytes] = []
        held = 0
        try:
            async for chunk in request.stream():
                if held + len(chunk) > limit:
                    raise TooLarge(limit)
                if not shares.take(holder, len(chunk)):
                    raise Busy("Too many bodies arrive at once; nothing was changed. Try again.")
                held += len(chunk)
                chunks.append(chunk)
            body = b"".join(chunks)
            chunks.clear()  # the parts would take as much memory again
            yield body
        finally:
            shares.give_back(holder, held)


def _part(total: int, share: float) -> int:
    """A share of a total, at least one."""
    return max(1, int(total * share))


def admission_from(request: Request) -> Admission:
    """The admission of the application."""
    admission: Admission = request.app.state.admission
    return admission


def peer(request: Request) -> str:
    """The holder for a request without a key: the address that it comes from."""
    return peer_name(request.client.host if request.client else "")
