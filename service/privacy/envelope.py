"""Envelope encryption: one random data key a request, sealed under a key-encryption key.

AES-256-GCM throughout. The associated data names the request and the item, so a ciphertext moved to another
row does not open. Destroying the wrapped data key makes everything sealed with it unreadable.
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

NONCE = 12


class KeyWrapper(Protocol):
    """Wraps data keys under a key-encryption key that never leaves its keeper."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key; `context` must be the same to open it."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key.

        Raises:
            cryptography.exceptions.InvalidTag: Another key, another context, or a changed byte.
        """
        ...

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """A 32-byte hash that nobody can recompute without the key."""
        ...

    def create(self) -> None:
        """Make what is missing of its keys; what is there stays."""
        ...


class FileKeyWrapper:
    """A key-encryption key in a file, mode 0600; for the embedded stack and single hosts."""

    def __init__(self, path: Path) -> None:
        """Read the 32 bytes at `path` when they are needed first."""
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
        """Make a random key unless there is one."""
        write_private(self._path, random_bytes(32))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key."""
        return _seal(self._aead, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key."""
        return _open(self._aead, wrapped, context)

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key derived for this purpose."""
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
    """The data key of one request, open in memory."""

    def __init__(self, request_id: UUID, key: bytes) -> None:
        """Use `key` for the items of this request."""
        self._aead, self._request = AESGCM(key), request_id

    @classmethod
    def create(cls, request_id: UUID, wrapper: KeyWrapper) -> tuple["DataKey", bytes]:
        """A fresh data key, open and wrapped."""
        key = random_bytes(32)
        return cls(request_id, key), wrapper.wrap(key, str(request_id).encode())

    @classmethod
    def unwrap(cls, request_id: UUID, wrapped: bytes, wrapper: KeyWrapper) -> "DataKey":
        """Open a request's data key."""
        return cls(request_id, wrapper.unwrap(wrapped, str(request_id).encode()))

    def seal(self, item: str, data: bytes) -> bytes:
        """Encrypt one item; its name is bound."""
        return _seal(self._aead, data, self._context(item))

    def open(self, item: str, sealed: bytes) -> bytes:
        """Decrypt one item.

        Raises:
            cryptography.exceptions.InvalidTag: It was sealed for another item, request or key, or changed.
        """
        return _open(self._aead, sealed, self._context(item))

    def _context(self, item: str) -> bytes:
        return f"{self._request}|{item}".encode()


def _seal(aead: AESGCM, data: bytes, context: bytes) -> bytes:
    nonce = random_bytes(NONCE)
    return nonce + aead.encrypt(nonce, data, context)


def _open(aead: AESGCM, sealed: bytes, context: bytes) -> bytes:
    return aead.decrypt(sealed[:NONCE], sealed[NONCE:], context)
