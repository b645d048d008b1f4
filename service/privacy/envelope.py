"""Envelope encryption: each request has a random data key, which is sealed under a key-encryption key.

All encryption is AES-256-GCM. The associated data names the request and the item, so a ciphertext that was moved to
another row does not open. Between data keys and the key-encryption key stand epoch keys: see `privacy.epochs`.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.files import CachedFile, destroy_file, fsync, write_atomically, write_private
from service.privacy.randomness import random_bytes

NONCE_BYTES, KEY_BYTES = 12, 32
HASH_KEYS = "hash-keys"
HASH_CONTEXT = b"hash keys"
FIRST_PURPOSES = ("body", "idempotency", "subject index", "webhook")  # hashed under the first key-encryption key


class Wrapper(Protocol):
    """Wraps keys under a key that never leaves the wrapper, and hashes under another one."""

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


class KeyWrapper(Wrapper, Protocol):
    """Holds the key-encryption key."""

    def create(self) -> None:
        """Make the keys that are missing; existing keys stay."""
        ...


class FileKeyWrapper:
    """A key-encryption key in a file with mode 0600; for the embedded stack and for single hosts.

    Keyed hashes must survive a rotation of the key. So they use keys of their own, which lie in `hash-keys` beside it,
    sealed. The key that replaces the present one is at first in a file with `.next` at its end.
    """

    def __init__(self, path: Path) -> None:
        """Use the 32 bytes at `path`; they are read when they are first needed, and again after a change."""
        self._path, self.next_path = path, path.with_name(f"{path.name}.next")
        self._hash_file = path.with_name(HASH_KEYS)
        self._key, self._next = CachedFile(path, _checked_key), CachedFile(self.next_path, _checked_key)
        self._hash_keys = CachedFile(self._hash_file, self._open_hash_keys)

    def create(self) -> None:
        """Make a random key and the keys for hashes, unless their files exist."""
        write_private(self._path, random_bytes(KEY_BYTES))
        if not self._hash_file.exists():
            first = {purpose: _derived(self._key(), purpose).hex() for purpose in FIRST_PURPOSES}
            keys = {**first, "": random_bytes(KEY_BYTES).hex()}  # "": the root for every other purpose
            write_private(self._hash_file, self.wrap(json.dumps(keys).encode(), HASH_CONTEXT))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key."""
        return seal(AESGCM(self._key()), key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key. During a rotation, the next key may have sealed it."""
        for key in (self._key, self._next):
            with suppress(InvalidTag, FileNotFoundError):
                return open_sealed(AESGCM(key()), wrapped, context)
        return open_sealed(AESGCM(self._key()), wrapped, context)  # it may have been replaced meanwhile

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key of this purpose.

        Raises:
            FileNotFoundError: The keys for hashes were not made yet: `unlearnd keys init` makes them.
        """
        try:
            keys = self._hash_keys()
        except FileNotFoundError:
            if purpose not in FIRST_PURPOSES:
                raise
            return derived_hash(self._key(), purpose, data)  # as before there was such a file
        if purpose not in keys:
            keys[purpose] = _derived(keys[""], purpose)
        return _mac(keys[purpose], data)

    def _open_hash_keys(self, sealed: bytes) -> dict[str, bytes]:
        """Purpose -> key."""
        keys = json.loads(self.unwrap(sealed, HASH_CONTEXT))
        return {purpose: bytes.fromhex(key) for purpose, key in keys.items()}

    def begin_rotation(self) -> "FileKeyWrapper":
        """The wrapper with the next key, which is made now, or was made by a rotation that did not end."""
        write_private(self.next_path, random_bytes(KEY_BYTES))
        return FileKeyWrapper(self.next_path)

    def end_rotation(self) -> None:
        """Replace the key by the next one, and destroy it. Everything must be sealed under the next key by now."""
        retired = self._path.with_name(f"{self._path.name}.retired")
        if self.next_path.exists():
            keys = self.unwrap(self._hash_file.read_bytes(), HASH_CONTEXT)
            write_atomically(self._hash_file, seal(AESGCM(self._next()), keys, HASH_CONTEXT), mode=0o600)
            destroy_file(retired)
            os.link(self._path, retired)
            self.next_path.replace(self._path)
            fsync(self._path.parent)
        destroy_file(retired)


def _checked_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key-encryption key is {KEY_BYTES} bytes")
    return key


def derived_hash(root: bytes, purpose: str, data: bytes) -> bytes:
    """HMAC-SHA256 of `data` under the key that HKDF derives from `root` for this purpose."""
    return _mac(_derived(root, purpose), data)


def _mac(key: bytes, data: bytes) -> bytes:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def _derived(root: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, f"unlearnd/{purpose}".encode()).derive(root)


class DataKey:
    """The unwrapped data key of one request."""

    def __init__(self, request_id: UUID, key: bytes) -> None:
        """Use `key` to seal and open the items of this request."""
        self._key, self._aead, self._request = key, AESGCM(key), request_id

    @classmethod
    def create(cls, request_id: UUID, wrapper: Wrapper) -> tuple["DataKey", bytes]:
        """A new data key, unwrapped and wrapped."""
        key = random_bytes(32)
        return cls(request_id, key), wrapper.wrap(key, str(request_id).encode())

    @classmethod
    def unwrap(cls, request_id: UUID, wrapped: bytes, wrapper: Wrapper) -> "DataKey":
        """Open the wrapped data key of a request."""
        return cls(request_id, wrapper.unwrap(wrapped, str(request_id).encode()))

    def seal(self, item: str, data: bytes) -> bytes:
        """Encrypt one item; the ciphertext opens only under the same item name."""
        return seal(self._aead, data, self._context(item))

    def open(self, item: str, sealed: bytes) -> bytes:
        """Decrypt one item.

        Raises:
            cryptography.exceptions.InvalidTag: It was changed, or sealed for another item, request or key.
        """
        return open_sealed(self._aead, sealed, self._context(item))

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """A hash that nobody can compute any more once the data key is destroyed."""
        return derived_hash(self._key, purpose, data)

    def _context(self, item: str) -> bytes:
        """The associated data of an item."""
        return f"{self._request}|{item}".encode()


def seal(aead: AESGCM, data: bytes, context: bytes) -> bytes:
    """Encrypt under a fresh nonce, which stands before the ciphertext."""
    nonce = random_bytes(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, data, context)


def open_sealed(aead: AESGCM, sealed: bytes, context: bytes) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        cryptography.exceptions.InvalidTag: The key or the context is another one, or a byte was changed.
    """
    return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
