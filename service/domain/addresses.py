"""Which addresses and ports outgoing calls may reach.

Some addresses and ports are never called, whatever an operator allows. A cloud gives each machine its credentials on a
metadata address. A port of a database or a mail server might take an HTTP call for commands.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Networks whose addresses end with an IPv4 address: mapped, compatible, translated, NAT64 (RFC 6052 and 8215).
ENDING_WITH_IPV4 = [
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
]
ISATAP = (0x5EFE, 0x02005EFE)  # bits 64 to 95 of an IPv6 address that ends with an IPv4 address (RFC 5214)
# Networks that `is_global` counts as public and that are not: of translators and relays, and deprecated ones.
NON_PUBLIC_NETWORKS = [
    ipaddress.ip_network(network)
    for network in ("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "192.88.99.0/24")
]
# Metadata services of clouds, and every link-local address: most of them are there.
METADATA_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
    )
]
WEB_PORTS = (80, 443)  # of the system ports, those below 1024
INFRASTRUCTURE_PORTS = frozenset(
    [
        *(1433, 1521, 3306, 5432, 5433, 6432, 26257),  # SQL databases
        *(5984, 6379, 6380, 7000, 7001, 7199, 8086, 9000, 9042, 9160, 9200, 9300, 11211),  # other databases, caches
        *(16379, 26379, 27017, 27018, 27019, 28017),
        *(1883, 4222, 4369, 5671, 5672, 9092, 15672, 61613, 61616),  # brokers
        *(2181, 2375, 2376, 2379, 2380, 6443, 7077, 8300, 8301, 8302, 8500, 8501, 8600),  # clusters and containers
        *(10250, 10255, 10256),
        *(2049, 3128, 3260, 3389, 5900, 5985, 5986, 6000, 6667, 9418),  # files, proxies, remote desktops, chat, git
    ]
)


def is_callable_port(port: int) -> bool:
    """Whether a submitter's URL may name this port: no system port but the web's, and none of known infrastructure."""
    return port in WEB_PORTS or (port >= 1024 and port not in INFRASTRUCTURE_PORTS)


def check_callback_port(url: str) -> None:
    """Refuse a submitter's URL whose port is never called.

    Raises:
        ValueError: The port is one of those.
    """
    parts = urlsplit(url)
    if not is_callable_port(parts.port or {"http": 80}.get(parts.scheme, 443)):
        raise ValueError("callbacks to this port are not made")


def is_callable_address(address: str, *, allow_private: bool, allow: Sequence[Network]) -> bool:
    """Whether an address may be called: a public one, or one that an operator allows; never a metadata address."""
    ip_address = ipaddress.ip_address(address)
    if any(_is_in(form, METADATA_NETWORKS) for form in (ip_address, *_embedded(ip_address))):
        return False
    return allow_private or is_public_address(address) or _is_in(ip_address, allow)


def is_public_address(address: str) -> bool:
    """Whether an IP address is public. An IPv4 address that is embedded in IPv6 must be public, too."""
    ip_address = ipaddress.ip_address(address)
    if _is_in(ip_address, NON_PUBLIC_NETWORKS) or ip_address.is_multicast:
        return False
    return ip_address.is_global and all(
        form.is_global and not form.is_multicast and not _is_in(form, NON_PUBLIC_NETWORKS)
        for form in _embedded(ip_address)
    )


def _embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address may stand for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    if _is_in(address, ENDING_WITH_IPV4) or number >> 32 & 0xFFFFFFFF in ISATAP:
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
