"""Shares of what an API process has: connections, requests at once, memory for bodies, turns to be worked on.

A holder is an API key, or a network address while no key is known. A holder that has its share is refused or waits, so
that no key and no address can take everything.
"""

import asyncio
import functools
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

IPV6_NETWORK = 64  # the bits that name a customer; whoever has one IPv6 address has all of its /64


@functools.lru_cache(4096)
def peer_name(address: str) -> str:
    """The holder behind an IP address: the address itself, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address  # a Unix socket
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK), strict=False))


class Shares:
    """A limited amount of something, and how much of it each holder has."""

    def __init__(self, total: int, share: int) -> None:
        """Give out at most `total`, and at most `share` of it to one holder."""
        self._free, self._share = total, share
        self._held: Counter[str] = Counter()

    def take(self, holder: str, amount: int = 1, *, is_limited: bool = True) -> bool:
        """Give a holder this amount; false, and nothing is given, if that is more than is free or than its share.

        A holder that is not limited, because it stands for many, may have more than a share.
        """
        if amount > self._free or (is_limited and self._held[holder] + amount > self._share):
            return False
        self._free -= amount
        self._held[holder] += amount
        return True

    def give_back(self, holder: str, amount: int = 1) -> None:
        """Take an amount back from a holder."""
        self._free += amount
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]  # a holder without anything costs no memory


class Turns:
    """Lets each holder do a few things at once; the others of the same holder wait in line."""

    def __init__(self, at_once: int) -> None:
        """Let each holder do `at_once` things."""
        self._at_once = at_once
        self._semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # those in use

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """Wait for the holder's turn."""
        semaphore = self._semaphores.get(holder)
        if semaphore is None:
            semaphore = self._semaphores[holder] = asyncio.Semaphore(self._at_once)
        async with semaphore:
            yield
