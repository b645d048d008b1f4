"""Random keys, nonces and ids from OpenSSL's generator, which the system seeds, and seeds again after a fork.

`os.urandom` is a system call for which Python releases its interpreter lock. With thirty threads, getting the lock back
six times for each request cost more than all work on the random bytes (bench.load). One caveat: the kernel notices when
a virtual machine resumes from a snapshot, and OpenSSL does not. Restart the services after a resume.
"""

from ssl import RAND_bytes as random_bytes
from uuid import UUID

__all__ = ["random_bytes", "random_uuid"]


def random_uuid() -> UUID:
    """A random UUID (RFC 9562, version 4)."""
    return UUID(bytes=random_bytes(16), version=4)
