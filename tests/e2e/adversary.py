"""An adversary who has bytes of the database (heap, WAL or a dump) and today's keys, and looks for texts in them.

It needs nothing of the service but the formats: a wrapped data key is AES-GCM under an epoch key or under the
key-encryption key, bound to the request's id; a record is AES-GCM under the data key, bound to id and position. It
tries every byte position where PostgreSQL may have put such a value.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE, TAG, KEY = 12, 16, 32
WRAPPED = NONCE + KEY + TAG
EPOCH = len(b"epoch1") + 16
SHORTEST, LONGEST = 150, 600  # bytes of a sealed record that the adversary looks for


def opened(key: bytes, sealed: bytes, context: bytes) -> bytes | None:
    """What a key opens; None if it is not the key."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], context)
    except InvalidTag:
        return None


class Adversary:
    """Recovers texts from bytes of the database with the keys of a folder."""

    def __init__(self, keys: Path, request_ids: list[str]) -> None:
        """Take the folder of keys as it is now. The ids of requests are no secret."""
        self.request_ids = request_ids
        self.masters = [path.read_bytes() for path in keys.glob("kek*")]
        self.keys = list(self.masters)
        for path in keys.glob("epochs/*.key"):
            context = f"epoch {path.stem}".encode()
            self.keys += [key for master in self.masters if (key := opened(master, path.read_bytes(), context))]

    def texts(self, data: bytes) -> set[bytes]:
        """Every text that can be read from these bytes."""
        data_keys = {
            (request_id, data_key)
            for wrapped in self._wrapped(data)
            for request_id in self.request_ids
            for key in self.keys
            if (data_key := opened(key, wrapped, request_id.encode()))
        }
        return {
            text[32:]  # behind the nonce of the commitment
            for sealed in self._sealed(data)
            for request_id, data_key in data_keys
            for position in range(4)
            if (text := opened(data_key, sealed, f"{request_id}|record/{position}".encode()))
        }

    def _wrapped(self, data: bytes) -> Iterator[bytes]:
        """Where a wrapped data key may stand: a short varlena of its length, or hex in a dump."""
        for match in re.finditer(b"epoch1", data):
            yield data[match.start() + EPOCH : match.start() + EPOCH + WRAPPED]
        header = bytes([(WRAPPED + 1) << 1 | 1])
        for match in re.finditer(re.escape(header), data):
            yield data[match.end() : match.end() + WRAPPED]
        for value in self._hexadecimal(data):
            yield value[-WRAPPED:]

    def _sealed(self, data: bytes) -> Iterator[bytes]:
        """Where a sealed record may stand: a long varlena at any position, or hex in a dump."""
        for shift in range(4):
            words = numpy.frombuffer(data, "<u4", count=(len(data) - shift) // 4, offset=shift)
            sizes = (words >> 2).astype(numpy.int64) - 4
            for index in numpy.flatnonzero((words & 3 == 0) & (sizes > SHORTEST) & (sizes < LONGEST)):
                start = shift + 4 * int(index) + 4
                yield data[start : start + int(sizes[index])]
        yield from self._hexadecimal(data)

    @staticmethod
    def _hexadecimal(data: bytes) -> Iterator[bytes]:
        """Values of a plain dump."""
        for match in re.finditer(rb"\\\\x((?:[0-9a-f]{2}){60,})", data):
            yield bytes.fromhex(match[1].decode())
