"""Outgoing calls: signed after Standard Webhooks, and sent only to public addresses.

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
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import httpcore

from service.privacy.envelope import Wrapper

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses behind a translator (RFC 6052)
# Networks that `is_global` counts as public and that are not: of translators and relays, and deprecated ones.
NON_PUBLIC_NETWORKS = [
    ipaddress.ip_network(network)
    for network in ("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "192.88.99.0/24")
]
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
SocketOption: TypeAlias = (  # as httpcore declares it
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


class RefusedTarget(ValueError):
    """The call would go to an address that is not public."""


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
    """An HTTP call to send. `trusted`: an operator has set the URL, so it may be a private address."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    trusted: bool = False


def send(call: OutgoingCall, *, seconds: float, allow_private: bool, allow: Sequence[str] = ()) -> int:
    """Send a call and return the receiver's HTTP status. The body of the answer is not read.

    Follows no redirects. `seconds` limits the whole call. `allow` lists private networks that calls may go to.

    Raises:
        RefusedTarget: The host is a private address, or resolves to one.
        TimeoutError: The call took longer than `seconds`, even if bytes kept arriving.
        httpcore.NetworkError, httpcore.ProtocolError, OSError: The receiver cannot be reached.
        ValueError: Not an HTTP URL.
    """
    url = urlsplit(call.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("not an HTTP URL")
    backend = PublicNetworkBackend(allow_private=allow_private or call.trusted, allow=allow)
    return asyncio.run(_send(call, seconds, backend))


async def _send(call: OutgoingCall, seconds: float, backend: "PublicNetworkBackend") -> int:
    async with (
        asyncio.timeout(seconds),
        httpcore.AsyncConnectionPool(network_backend=backend) as pool,
        pool.stream(call.method, call.url, headers=list(call.headers.items()), content=call.body) as answer,
    ):
        return int(answer.status)


class PublicNetworkBackend(httpcore.AsyncNetworkBackend):
    """Resolves names itself and connects to the addresses that it has checked.

    So a name cannot resolve to another address between the check and the call (DNS rebinding).
    """

    def __init__(self, *, allow_private: bool, allow: Sequence[str] = ()) -> None:
        """Allow all private addresses, or those in the networks of `allow`, only where an operator says so."""
        self._backend, self._allow_private = httpcore.AnyIOBackend(), allow_private
        self._allow = [ipaddress.ip_network(network) for network in allow]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve the host, refuse it if any address is private, and connect to the first address that answers."""
        loop = asyncio.get_running_loop()
        resolved = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in resolved))
        if not self._allow_private and not all(map(self._may_be_called, addresses)):
            raise RefusedTarget("not a global address")
        failure: Exception = OSError("the host has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, OSError) as error:
                failure = error
        raise failure

    def _may_be_called(self, address: str) -> bool:
        ip_address = ipaddress.ip_address(address)
        return is_public_address(address) or any(ip_address in network for network in self._allow)


def is_public_address(address: str) -> bool:
    """Whether an IP address is public. An IPv4 address that is embedded in IPv6 must be public, too."""
    ip_address: Address = ipaddress.ip_address(address)
    if ip_address in NAT64:
        ip_address = ipaddress.IPv4Address(int(ip_address) & 0xFFFFFFFF)
    if any(ip_address in network for network in NON_PUBLIC_NETWORKS):
        return False
    embedded = None
    if isinstance(ip_address, ipaddress.IPv6Address):
        embedded = ip_address.ipv4_mapped or ip_address.sixtofour
    return ip_address.is_global and not ip_address.is_multicast and (embedded is None or embedded.is_global)
