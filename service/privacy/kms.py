"""A key-encryption key in AWS KMS, or in a service with the same API; it wraps data keys there and never leaves."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag

from service.files import write_atomically, write_private
from service.privacy.envelope import derived_hash

HASH_KEY = "hash-key.kms"
HASH_CONTEXT = b"hash key"
# KMS's words for another key or context; of a key in another account it says that access is denied.
NOT_OPENED = ("InvalidCiphertextException", "IncorrectKeyException", "AccessDeniedException")


class _KmsClient(Protocol):
    """The operations of boto3's KMS client that we call; boto3 itself is not typed."""

    generate_data_key_without_plaintext: Callable[..., dict[str, bytes]]
    encrypt: Callable[..., dict[str, bytes]]
    decrypt: Callable[..., dict[str, bytes]]


class KmsKeyWrapper:
    """Wraps with a symmetric KMS key; region, endpoint and credentials are boto3's own settings (AWS_...).

    A KMS call for each hash would be slow. So hashes use another key, which KMS makes and wraps. It lies wrapped in
    the keys folder, and each process opens it once.
    """

    def __init__(self, key_id: str, keys_dir: Path) -> None:
        """Use the KMS key with this id, ARN or alias."""
        self._key_id, self._path = key_id, keys_dir / HASH_KEY

    @cached_property
    def _kms(self) -> _KmsClient:
        import boto3  # the extra unlearnd[kms]

        client: _KmsClient = boto3.client("kms")
        return client

    @cached_property
    def _hash_key(self) -> bytes:
        return self.unwrap(self._path.read_bytes(), HASH_CONTEXT)

    def create(self) -> None:
        """Make the wrapped key for hashes, unless its file exists."""
        answer = self._kms.generate_data_key_without_plaintext(
            KeyId=self._key_id, NumberOfBytes=32, EncryptionContext=_context(HASH_CONTEXT)
        )
        write_private(self._path, answer["CiphertextBlob"])

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key. KMS binds the context and logs it; it is only the id of a request."""
        answer = self._kms.encrypt(KeyId=self._key_id, Plaintext=key, EncryptionContext=_context(context))
        return answer["CiphertextBlob"]

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key."""
        from botocore.exceptions import ClientError

        try:
            answer = self._kms.decrypt(KeyId=self._key_id, CiphertextBlob=wrapped, EncryptionContext=_context(context))
        except ClientError as error:
            if error.response["Error"]["Code"] in NOT_OPENED:
                raise InvalidTag from error
            raise
        return answer["Plaintext"]

    def rotate_hash_key(self, new: "KmsKeyWrapper") -> None:
        """Wrap the key for hashes under another KMS key; a second call changes nothing."""
        write_atomically(self._path, new.wrap(self._hash_key, HASH_CONTEXT), mode=0o600)

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key that is derived for this purpose."""
        return derived_hash(self._hash_key, purpose, data)


def _context(context: bytes) -> dict[str, str]:
    """A context in the form that KMS takes."""
    return {"unlearnd": context.decode()}
