"""Envelope encryption: each request has a random data key, which is sealed under a key-encryption key.

All encryption is AES-256-GCM. The associated data names the request and the item, so a ciphertext that was moved to
another row does not open. Destroying the wrapped data key makes everything unreadable that was sealed with it.
"""

from functools import cache, cached_property
from pathlib import Path
from typing import Protocol
from uuid import UUID

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.files import write_private
from service.privacy.randomness import random_bytes

NONCE_BYTES = 12


class KeyWrapper(Protocol):
    """Wraps data keys under a key-encryption key, which never leaves the wrapper."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key; opening it needs the same `context`."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key.

        Raises:
            cryptography.exceptions.InvalidTag: The key or the context is another one, or a byte was changed.
        """
        ...

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """A 32-byte hash that cannot be computed without the key."""
        ...

    def create(self) -> None:
        """Make the keys that are missing; existing keys stay."""
        ...


class FileKeyWrapper:
    """A key-encryption key in a file with mode 0600; for the embedded stack and for single hosts."""

    def __init__(self, path: Path) -> None:
        """Use the 32 bytes at `path`; they are read when they are first needed."""
        self._path = path

    @cached_property
    def _root(self) -> bytes:
        key = self._path.read_bytes()
        if len(key) != 32:
            raise ValueError(f"{self._path}: a key-encryption key is 32 bytes")
        return key

    @cached_property
    def _aead(self) -> AESGCM:
        return AESGCM(self._root)

    def create(self) -> None:
        """Make a random key, unless the file exists."""
        write_private(self._path, random_bytes(32))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key."""
        return _seal(self._aead, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key."""
        return _open(self._aead, wrapped, context)

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key that is derived for this purpose."""
        return derived_hash(self._root, purpose, data)


def derived_hash(root: bytes, purpose: str, data: bytes) -> bytes:
    """HMAC-SHA256 of `data` under the key that HKDF derives from `root` for this purpose."""
    mac = hmac.HMAC(_derived(root, purpose), hashes.SHA256())
    mac.update(data)
    return mac.finalize()


@cache
def _derived(root: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, f"unlearnd/{purpose}".encode()).derive(root)


class DataKey:
    """The unwrapped data key of one request."""

    def __init__(self, request_id: UUID, key: bytes) -> None:
        """Use `key` to seal and open the items of this request."""
        self._aead, self._request = AESGCM(key), request_id

    @classmethod
    def create(cls, request_id: UUID, wrapper: KeyWrapper) -> tuple["DataKey", bytes]:
        """A new data key, unwrapped and wrapped."""
        key = random_bytes(32)
        return cls(request_id, key), wrapper.wrap(key, str(request_id).encode())

    @classmethod
    def unwrap(cls, request_id: UUID, wrapped: bytes, wrapper: KeyWrapper) -> "DataKey":
        """Open the wrapped data key of a request."""
        return cls(request_id, wrapper.unwrap(wrapped, str(request_id).encode()))

    def seal(self, item: str, data: bytes) -> bytes:
        """Encrypt one item; the ciphertext opens only under the same item name."""
        return _seal(self._aead, data, self._context(item))

    def open(self, item: str, sealed: bytes) -> bytes:
        """Decrypt one item.

        Raises:
            cryptography.exceptions.InvalidTag: It was changed, or sealed for another item, request or key.
        """
        return _open(self._aead, sealed, self._context(item))

    def _context(self, item: str) -> bytes:
        """The associated data of an item."""
        return f"{self._request}|{item}".encode()


def _seal(aead: AESGCM, data: bytes, context: bytes) -> bytes:
    nonce = random_bytes(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, data, context)


def _open(aead: AESGCM, sealed: bytes, context: bytes) -> bytes:
    return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
