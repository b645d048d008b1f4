"""Connections that do not get on are cut: a request that does not arrive, an answer not taken, a peer that is gone.

uvicorn alone waits for ever on all three. The times are for one step each, so a long download is nobody's fault.
"""

import asyncio
import socket
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux: how long sent data may stay unacknowledged


class TimeoutProtocol(HttpToolsProtocol):
    """uvicorn's protocol, one connection, with limits.

    Attributes:
        seconds: From a request's first byte (or the connection's start) to its last; without taking any of an answer;
            without acknowledging any.
        at_once: Open connections; more are closed as they come.
    """

    seconds: ClassVar[float]
    at_once: ClassVar[int]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and wait for its first request."""
        super().connection_made(transport)
        found = transport.get_extra_info("socket")
        if USER_TIMEOUT is not None and found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, int(1000 * self.seconds))
        if len(self.connections) > self.at_once:
            transport.abort()
        else:
            self._expect()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._expect()

    def on_message_complete(self) -> None:
        """Its last."""
        super().on_message_complete()
        self._got_on()

    def pause_writing(self) -> None:
        """The peer does not read."""
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._got_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._got_on()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._got_on()
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _got_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def timeout_protocol(*, seconds: float, connections: int) -> type[HttpToolsProtocol]:
    """The protocol with these limits, as uvicorn takes it: a class."""
    return type("Patient", (TimeoutProtocol,), {"seconds": seconds, "at_once": connections})
