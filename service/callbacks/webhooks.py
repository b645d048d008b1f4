"""Outgoing calls: signed after Standard Webhooks, and never to an address that is not the outside world's.

A receiver holds `whsec_...` of its API key and checks `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over
`webhook-id.webhook-timestamp.body` (github.com/standard-webhooks/standard-webhooks, spec). The secret is derived from
the key-encryption key and stored nowhere.
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
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpcore

from service.privacy.envelope import KeyWrapper

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind a translator
NON_PUBLIC_NETWORKS = [  # what `is_global` takes for the outside: translators' and relays' own, and what was given up
    ipaddress.ip_network(network)
    for network in ("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "192.88.99.0/24")
]


class RefusedTarget(ValueError):
    """The call would go to an address that is not the outside world's."""


def webhook_secret(wrapper: KeyWrapper, api_key_id: UUID) -> str:
    """The secret that calls for requests of this API key are signed with."""
    return "whsec_" + base64.b64encode(wrapper.keyed_hash("webhook", api_key_id.bytes)).decode()


def signature_headers(secret: str, message_id: UUID, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of a signed message."""
    timestamp = str(int(at.timestamp()))
    signed = f"{message_id}.{timestamp}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "content-type": "application/json", "webhook-id": str(message_id), "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutgoingCall:
    """A call to make; `trusted` if its URL is an operator's, which may be inside."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    trusted: bool = False


def send(call: OutgoingCall, *, seconds: float, allow_private: bool, allow: Sequence[str] = ()) -> int:
    """Make a call within so many seconds in all; the receiver's HTTP status. What else it says is not read.

    Redirects are not followed. `allow` lists networks inside that calls may go to.

    Raises:
        RefusedTarget: The host is, or just then resolves to, an address inside.
        TimeoutError: It took longer, however busily.
        httpcore.NetworkError, httpcore.ProtocolError, OSError: It cannot be reached.
        ValueError: Not an HTTP URL.
    """
    parts = urlsplit(call.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an HTTP URL")
    outside = PublicNetworkBackend(allow_private=allow_private or call.trusted, allow=allow)
    return asyncio.run(_status(call, seconds, outside))


async def _status(call: OutgoingCall, seconds: float, outside: "PublicNetworkBackend") -> int:
    async with (
        asyncio.timeout(seconds),
        httpcore.AsyncConnectionPool(network_backend=outside) as pool,
        pool.stream(call.method, call.url, headers=list(call.headers.items()), content=call.body) as answer,
    ):
        return int(answer.status)


class PublicNetworkBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that it has looked at itself: a name cannot mean another one between check and call."""

    def __init__(self, *, allow_private: bool, allow: Sequence[str] = ()) -> None:
        """Let calls go inside only if an operator wants that: anywhere, or to some networks."""
        self._backend, self._allow_private = httpcore.AnyIOBackend(), allow_private
        self._allow = [ipaddress.ip_network(network) for network in allow]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, refuse if any address is inside, connect to the first that answers."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        if not self._allow_private and not all(map(self._may_be_called, addresses)):
            raise RefusedTarget("not a global address")
        failed: Exception = OSError("the host has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, OSError) as error:
                failed = error
        raise failed

    def _may_be_called(self, address: Any) -> bool:
        found = ipaddress.ip_address(address)
        return is_public_address(address) or any(found in network for network in self._allow)


def is_public_address(address: Any) -> bool:
    """Whether an IP address is the outside world's, also one that is an IPv4 address in IPv6's clothes."""
    found = ipaddress.ip_address(address)
    if found in NAT64:
        found = ipaddress.ip_address(int(found) & 0xFFFFFFFF)
    if any(found in network for network in NON_PUBLIC_NETWORKS):
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)
