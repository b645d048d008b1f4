"""A key-encryption key in AWS KMS, or whatever speaks its API: data keys are wrapped there, and it never leaves."""

from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag

from service.files import write_private
from service.privacy.envelope import derived_hash

HASH_KEY = "hash-key.kms"


class KmsKeyWrapper:
    """Wraps with a symmetric KMS key; region, endpoint and credentials are boto3's own settings (AWS_...).

    Hashes would need a call each: they use a key of their own, made and wrapped by KMS, that lies in the keys folder
    and is opened once a process.
    """

    def __init__(self, key_id: str, keys_dir: Path) -> None:
        """Use the KMS key of that id, ARN or alias."""
        self._key_id, self._path = key_id, keys_dir / HASH_KEY

    @cached_property
    def _kms(self) -> Any:
        import boto3  # the extra unlearnd[kms]

        return boto3.client("kms")

    @cached_property
    def _hash_key(self) -> bytes:
        return self.unwrap(self._path.read_bytes(), b"hash key")

    def create(self) -> None:
        """Make the key for hashes, wrapped, unless there is one."""
        made = self._kms.generate_data_key_without_plaintext(
            KeyId=self._key_id, NumberOfBytes=32, EncryptionContext=_context(b"hash key")
        )
        write_private(self._path, made["CiphertextBlob"])

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a data key; KMS binds the context and logs it: it is a request's id, and nothing else."""
        answer = self._kms.encrypt(KeyId=self._key_id, Plaintext=key, EncryptionContext=_context(context))
        wrapped: bytes = answer["CiphertextBlob"]
        return wrapped

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open a data key."""
        from botocore.exceptions import ClientError

        try:
            answer = self._kms.decrypt(KeyId=self._key_id, CiphertextBlob=wrapped, EncryptionContext=_context(context))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("InvalidCiphertextException", "IncorrectKeyException"):
                raise InvalidTag from error
            raise
        key: bytes = answer["Plaintext"]
        return key

    def keyed_hash(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key derived for this purpose."""
        return derived_hash(self._hash_key, purpose, data)


def _context(context: bytes) -> dict[str, str]:
    return {"unlearnd": context.decode()}
