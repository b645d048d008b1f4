"""Limits what a client may send before it is known: connections, header blocks, URLs, and requests in advance.

A connection over a limit is answered with a problem document if no other answer is under way on it, and closed.
"""

import asyncio
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.errors import problem
from service.api.shares import Shares, peer_name
from service.api.timeouts import TimeoutProtocol
from service.config import Settings

MAX_HEAD_BYTES = 65_536  # URL and headers of one request, with its trailers
MAX_HEADERS = 128  # each costs a hundred bytes beyond its own
MAX_URL_BYTES = 16_384
MAX_PIPELINED = 8  # requests that a client sends before earlier ones are answered
HEAD_TOO_LARGE = (431, "headers_too_large", f"The headers are over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} in number.")
URL_TOO_LONG = (414, "url_too_long", f"The URL is over {MAX_URL_BYTES} bytes.")


class TooMuch(Exception):
    """A client sent more than it may. The HTTP parser stops when a callback raises."""


class LimitedProtocol(TimeoutProtocol):
    """uvicorn's protocol for one connection, with limits on time, size and number.

    Attributes:
        places: Connections, and how many of them each address holds.
        proxies: Addresses of reverse proxies. Their connections are those of many clients, so no share limits them.
    """

    places: ClassVar[Shares]
    proxies: ClassVar[tuple[IPv4Network | IPv6Network, ...]]
    _peer: str | None = None  # set while the connection has a place
    _refusal: tuple[int, str, str] = (400, "malformed", "The request is not valid HTTP.")
    _head_bytes = 0  # of the current request, its trailers included
    _unparsed_bytes = 0  # received since the last part of a request that was complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection over the limit."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        is_proxy = any(ip_address(address) in network for network in self.proxies)
        if self.places.take(peer_name(address), is_limited=not is_proxy):
            self._peer = peer_name(address)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if self._peer is not None:
            self.places.give_back(self._peer)
            self._peer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a header or a trailer without an end. The parser would keep all of it in memory."""
        if self.transport.is_closing():
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refusal = HEAD_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Count anew for each request."""
        super().on_message_begin()
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Refuse a URL over the limit."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._refuse(URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse headers and trailers over the limits."""
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes + len(self.url) > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Refuse a client that does not wait for its answers."""
        self._unparsed_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise TooMuch

    def on_chunk_header(self) -> None:
        """Count anew: the size of the chunk is parsed."""
        self._unparsed_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Leave bodies out of the count: they have limits of their own."""
        super().on_body(body)
        self._unparsed_bytes = max(0, self._unparsed_bytes - len(body))

    def on_message_complete(self) -> None:
        """Count anew: the request is complete."""
        super().on_message_complete()
        self._unparsed_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Answer with the problem, unless that would be in the middle of another answer. Then close."""
        cycle = self.cycle
        is_silent = cycle is None or cycle.response_complete or not cycle.response_started
        if is_silent and not self.pipeline:
            status, code, detail = self._refusal
            answer = problem(status, code, HTTPStatus(status).phrase, detail, headers={"Connection": "close"})
            headers = b"".join(name + b": " + value + b"\r\n" for name, value in answer.raw_headers)
            self.transport.write(STATUS_LINE[status] + headers + b"\r\n" + bytes(answer.body))
            self.transport.close()
        else:
            self.transport.abort()

    def _refuse(self, refusal: tuple[int, str, str]) -> None:
        """Stop the parser, which calls `send_400_response`."""
        self._refusal = refusal
        raise TooMuch


def limited_protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """A protocol class with the limits of these settings; uvicorn takes a class, not an object."""
    places = Shares(settings.max_connections, max(1, int(settings.max_connections * settings.share)))
    attributes = {"seconds": settings.request_seconds, "places": places, "proxies": tuple(settings.trusted_proxies)}
    return type("ConfiguredProtocol", (LimitedProtocol,), attributes)
