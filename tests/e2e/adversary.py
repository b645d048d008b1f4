"""An adversary who has bytes of the database (heap, WAL or a dump) and today's keys, and looks for texts in them.

It needs nothing of the service but the formats: a wrapped data key is AES-GCM under an epoch key or under the
key-encryption key, bound to the request's id; a record is AES-GCM under the data key, bound to id and position. It
tries every byte position where PostgreSQL may have put such a value.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE, TAG, KEY = 12, 16, 32
WRAPPED = NONCE + KEY + TAG
EPOCH = len(b"epoch1") + 16
MAX_SEALED = 20_000


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
            text[NONCE + 20 :]  # behind the 32 bytes of the commitment's nonce
            for sealed in self._sealed(data)
            for request_id, data_key in data_keys
            for position in range(4)
            if (text := opened(data_key, sealed, f"{request_id}|record/{position}".encode()))
        }

    def _wrapped(self, data: bytes) -> Iterator[bytes]:
        """Where a wrapped data key may stand: a short varlena of its length, or hex in a dump."""
        for size in (WRAPPED, EPOCH + WRAPPED):
            header = bytes([(size + 1) << 1 | 1])
            for match in re.finditer(re.escape(header), data):
                value = data[match.end() : match.end() + size]
                if len(value) == size and (size == WRAPPED or value.startswith(b"epoch1")):
                    yield value[-WRAPPED:]
        for value in self._hexadecimal(data):
            if len(value) in (WRAPPED, EPOCH + WRAPPED):
                yield value[-WRAPPED:]

    def _sealed(self, data: bytes) -> Iterator[bytes]:
        """Where a sealed record may stand: a short varlena, a long one, or hex in a dump."""
        for start in range(len(data) - 4):
            first = data[start]
            if first & 1 and first > 1:
                size = (first >> 1) - 1
                if size > NONCE + TAG + 32:
                    yield data[start + 1 : start + 1 + size]
            elif not first & 3:
                size = (int.from_bytes(data[start : start + 4], "little") >> 2) - 4
                if 100 < size < MAX_SEALED:
                    yield data[start + 4 : start + 4 + size]
        yield from self._hexadecimal(data)

    @staticmethod
    def _hexadecimal(data: bytes) -> Iterator[bytes]:
        """Values of a plain dump."""
        for match in re.finditer(rb"\\\\x([0-9a-f]{60,})", data):
            if len(match[1]) % 2 == 0:
                yield bytes.fromhex(match[1].decode())
