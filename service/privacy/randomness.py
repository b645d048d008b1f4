"""Random keys, nonces and names, from OpenSSL's generator: the system seeds it, and again in a forked process.

`os.urandom` is a system call for which Python lets go of its interpreter lock. With thirty threads at work, to get it
back six times a request cost more than everything that the request's bytes were used for (bench.load). What the kernel
is told and OpenSSL is not: that a virtual machine was resumed from a snapshot. Restart the services after one.
"""

from ssl import RAND_bytes as random_bytes
from uuid import UUID

__all__ = ["random_bytes", "random_uuid"]


def random_uuid() -> UUID:
    """A random UUID (RFC 9562, version 4)."""
    return UUID(bytes=random_bytes(16), version=4)
