"""Closes connections that send nothing for `seconds`, that do not read their answer, or whose peer is gone.

uvicorn alone waits for ever in all three cases. The time limits one step, not a whole answer, so a long download is
never cut off.
"""

import asyncio
import socket
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux: how long sent data may stay unacknowledged


class TimeoutProtocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, with limits on time.

    Attributes:
        seconds: The longest time from a request's first byte (or the start of the connection) to its last byte, for
            which the client reads nothing of an answer, or for which it acknowledges no sent data.
    """

    seconds: ClassVar[float]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first request."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if (
            TCP_USER_TIMEOUT is not None
            and connection is not None
            and connection.family in (socket.AF_INET, socket.AF_INET6)
        ):
            connection.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(1000 * self.seconds))
        self._start_timer()

    def on_message_begin(self) -> None:
        """Start the time at the first byte of a request."""
        super().on_message_begin()
        self._start_timer()

    def on_message_complete(self) -> None:
        """Stop the time at the last byte of a request."""
        super().on_message_complete()
        self._stop_timer()

    def pause_writing(self) -> None:
        """Start the time when the client stops reading."""
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        """Stop the time when the client reads again."""
        super().resume_writing()
        self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time when the connection has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        """Start the time anew; the connection is aborted when it runs out."""
        self._stop_timer()
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
