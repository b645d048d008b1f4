"""Random names."""

import os
from uuid import RFC_4122, UUID

from service.privacy.randomness import random_uuid


def test_random_names_are_random_uuids():
    """Version 4, variant of RFC 9562, and no two alike; in a forked process, too."""
    names = {random_uuid() for _ in range(1000)}
    assert {(u.version, u.variant) for u in names} == {(4, RFC_4122)}
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, random_uuid().bytes)
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    assert len(names | {random_uuid(), UUID(bytes=os.read(read_end, 16))}) == 1002
    os.close(read_end)
