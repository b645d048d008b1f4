"""Outgoing calls: signed after Standard Webhooks, and sent only to addresses that may be called (`domain.addresses`).

A receiver holds the secret `whsec_...` of its API key and checks `webhook-signature`: `v1,` and the base64 of
HMAC-SHA256 over `webhook-id.webhook-timestamp.body` (github.com/standard-webhooks/standard-webhooks, spec). The secret
is derived from the key-encryption key and stored nowhere.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import httpcore
from anyio import to_thread

from service.domain.addresses import is_callable_address, is_callable_port
from service.privacy.envelope import Wrapper

SocketOption: TypeAlias = (  # as httpcore declares it
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


class RefusedTarget(ValueError):
    """The call would go to an address or a port that is not called."""


def webhook_secret(wrapper: Wrapper, api_key_id: UUID) -> str:
    """The secret that signs the calls about this API key's requests."""
    return "whsec_" + base64.b64encode(wrapper.keyed_hash("webhook", api_key_id.bytes)).decode()


def signature_headers(secret: str, message_id: UUID, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of a signed message."""
    timestamp = str(int(at.timestamp()))
    signed = f"{message_id}.{timestamp}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "content-type": "application/json",
        "webhook-id": str(message_id),
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }


@dataclass(frozen=True, slots=True)
class OutgoingCall:
    """An HTTP call to send. `trusted`: an operator has set the URL, so its address may be private and its port any."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    trusted: bool = False


def send(call: OutgoingCall, *, seconds: float, allow_private: bool, allow: Sequence[str] = ()) -> int:
    """Send a call and return the receiver's HTTP status. The body of the answer is not read.

    Follows no redirects. `seconds` limits the whole call, the look-up of the name included. `allow` lists private
    networks that calls may go to.

    Raises:
        RefusedTarget: The host is an address that may not be called, or resolves to one; or the port may not be called.
        TimeoutError: The call took longer than `seconds`, even if bytes kept arriving.
        httpcore.NetworkError, httpcore.ProtocolError, OSError: The receiver cannot be reached.
        ValueError: Not an HTTP URL.
    """
    url = urlsplit(call.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("not an HTTP URL")
    backend = PublicNetworkBackend(allow_private=allow_private or call.trusted, allow=allow, any_port=call.trusted)
    return asyncio.run(_send(call, seconds, backend))


async def _send(call: OutgoingCall, seconds: float, backend: "PublicNetworkBackend") -> int:
    async with (
        asyncio.timeout(seconds),
        httpcore.AsyncConnectionPool(network_backend=backend) as pool,
        pool.stream(call.method, call.url, headers=list(call.headers.items()), content=call.body) as answer,
    ):
        return int(answer.status)


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host.

    A time-out abandons the thread that resolves. `asyncio.run` would wait for a thread of the loop's own pool: then a
    slow name server could make a call as long as it likes.
    """
    resolved = await to_thread.run_sync(
        partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM), abandon_on_cancel=True
    )
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in resolved))


class PublicNetworkBackend(httpcore.AsyncNetworkBackend):
    """Resolves names itself and connects to the addresses that it has checked.

    So a name cannot resolve to another address between the check and the call (DNS rebinding).
    """

    def __init__(self, *, allow_private: bool, allow: Sequence[str] = (), any_port: bool = False) -> None:
        """Allow private addresses, the networks of `allow`, and ports of infrastructure only where an operator does."""
        self._backend, self._allow_private, self._any_port = httpcore.AnyIOBackend(), allow_private, any_port
        self._allow = [ipaddress.ip_network(network) for network in allow]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve the host, refuse it if any address may not be called, and connect to the first one that answers."""
        if not self._any_port and not is_callable_port(port):
            raise RefusedTarget("not a port that is called")
        addresses = await _resolve(host, port)
        if not all(map(self._may_be_called, addresses)):
            raise RefusedTarget("not an address that may be called")
        failure: Exception = OSError("the host has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, OSError) as error:
                failure = error
        raise failure

    def _may_be_called(self, address: str) -> bool:
        return is_callable_address(address, allow_private=self._allow_private, allow=self._allow)
