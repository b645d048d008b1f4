"""The one bootstrap: it wires the services from settings. Production and tests call the same functions."""

import errno
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from service import extras
from service.config import Settings
from service.confined import Roots
from service.db import key_epochs
from service.db.connection import ANSWER_SECONDS
from service.db.group_commit import GroupCommit
from service.db.intake import NewRequest, request_intake
from service.db.session import Database
from service.domain.errors import CannotStart
from service.evidence.keyring import Keyring
from service.evidence.log_keeper import LogKeeper
from service.evidence.log_memory import BucketMemory, FolderMemory, LogMemory
from service.evidence.opendsr_key import OpenDsrKey
from service.evidence.witnesses import Witnesses
from service.privacy.envelope import FileKeyWrapper, KeyWrapper
from service.privacy.epochs import EpochKeys
from service.privacy.kms import KmsKeyWrapper
from service.queue import Queue
from service.storage.interface import Storage
from service.storage.local import LocalStorage

if TYPE_CHECKING:
    from service.bucket import Bucket

KEK = "kek"


@dataclass
class Services:
    """Everything that a step may need."""

    settings: Settings
    db: Database
    storage: Storage
    queue: Queue
    wrapper: EpochKeys

    @cached_property
    def keyring(self) -> Keyring:
        """The signing keys. No compute worker holds their files."""
        return Keyring(self.settings.keys_dir)

    @cached_property
    def opendsr(self) -> OpenDsrKey:
        """The key that signs OpenDSR answers and callbacks."""
        return OpenDsrKey(self.settings.keys_dir, self.settings.processor_domain)

    @cached_property
    def log(self) -> LogKeeper:
        """The keeper of the transparency log. Only control workers hold the file of the log's key."""
        return LogKeeper(self.db, open_log_memory(self.settings), self.keyring, f"{self.settings.issuer}/log")

    @cached_property
    def witnesses(self) -> Witnesses:
        """Those who cosign the log's checkpoints."""
        return Witnesses(self.settings.witnesses, open_log_memory(self.settings))

    @cached_property
    def intake(self) -> GroupCommit[NewRequest, tuple[UUID, str | None] | None]:
        """Stores new requests. Requests that arrive at the same time share one transaction."""
        return request_intake(self.db)

    @property
    def model_roots(self) -> Roots:
        """The folders in which models may be registered."""
        return self._roots("model_roots")

    @property
    def corpus_roots(self) -> Roots:
        """The folders in which corpora may be registered."""
        return self._roots("corpus_roots")

    @property
    def text_roots(self) -> Roots:
        """The folders in which reference texts may be registered: those of models and those of corpora."""
        return self._roots("model_roots", "corpus_roots")

    def _roots(self, *names: str) -> Roots:
        """The folders that these settings name, without what belongs to the service."""
        settings = self.settings
        key_folders = [settings.keys_dir, epochs_folder(settings)]
        # Each key is listed beside its folder, because a hard link to a key may lie elsewhere.
        keys = [path for folder in key_folders for path in folder.rglob("*")]
        private = [settings.storage_dir, *key_folders, *keys, *split_folders(settings.private_dirs)]
        folders = [folder for name in names for folder in split_folders(getattr(settings, name))]
        return Roots(" or ".join(f"UNLEARND_{name.upper()}" for name in names), folders, private)

    def close(self) -> None:
        """Close the connections."""
        self.queue.close()
        self.db.close()


def build(settings: Settings | None = None, *, create: bool = True, answer_seconds: float = ANSWER_SECONDS) -> Services:
    """Wire the services from settings (default: the environment's).

    Args:
        settings: The settings.
        create: Whether missing folders are made.
        answer_seconds: The most seconds that a call to the database may take.

    Raises:
        CannotStart: A setting that has no usable default is not set.
    """
    settings = settings or Settings()
    settings.require("database_url", "broker_url")
    db = Database(
        settings.database_url,
        pool_size=settings.database_pool,
        answer_seconds=answer_seconds,
        pooler=settings.database_pooler,
    )

    def register(epoch: UUID) -> None:
        with db.transaction() as session:
            key_epochs.insert(session, epoch)

    return Services(
        settings,
        db,
        open_storage(settings, create=create),
        Queue(settings.broker_url),
        EpochKeys(key_wrapper(settings), epochs_folder(settings), settings.epoch_seconds, register),
    )


def build_server(
    settings: Settings | None = None, *, computes: bool = False, answer_seconds: float = ANSWER_SECONDS
) -> Services:
    """Wire the services of a process that runs for long, and check what all its work would fail without.

    A process that `computes` writes the working folders of jobs alone: the rest of storage may be read-only for it. No
    call to the database may take longer than `answer_seconds`.

    Raises:
        CannotStart: A setting or an extra is missing.
        OSError: Storage cannot be written to, or the key-encryption key cannot be read.
    """
    services = build(settings, answer_seconds=answer_seconds)
    settings = services.settings
    written = storage_folder(settings) / "work" if computes else storage_folder(settings)
    if not os.access(written, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", str(written))
    if settings.kms_key_id:
        extras.require("UNLEARND_KMS_KEY_ID", "kms")
    else:
        (settings.keys_dir / KEK).read_bytes()
    if not epochs_folder(settings).is_dir():
        raise CannotStart("There is no folder of epoch keys. Run `unlearnd keys init`, and see UNLEARND_EPOCHS_DIR.")
    return services


def open_bucket(settings: Settings) -> "Bucket | None":
    """The bucket of UNLEARND_STORAGE_URL; None if storage is a folder.

    Raises:
        CannotStart: The extra for it is missing.
    """
    if not settings.storage_url:
        return None
    extras.require("UNLEARND_STORAGE_URL", "objects")
    from service.bucket import Bucket

    return Bucket(settings.storage_url)


def storage_folder(settings: Settings) -> Path:
    """The folder that is storage; with a bucket, the one of this machine's copies."""
    return settings.storage_dir / "copies" if settings.storage_url else settings.storage_dir


def open_storage(settings: Settings, *, create: bool = True) -> Storage:
    """Storage in a folder that all share, or in a bucket with a folder for each machine."""
    bucket = open_bucket(settings)
    if bucket is None:
        return LocalStorage(settings.storage_dir, create=create)
    from service.storage.objects import ObjectStorage

    return ObjectStorage(storage_folder(settings), bucket, presign_seconds=settings.presign_seconds, create=create)


def open_log_memory(settings: Settings) -> LogMemory:
    """The memory of the log, in storage's ledger."""
    bucket = open_bucket(settings)
    return BucketMemory(bucket, "ledger/log") if bucket else FolderMemory(settings.storage_dir / "ledger" / "log")


def epochs_folder(settings: Settings) -> Path:
    """The folder of epoch keys."""
    return settings.keys_dir / "epochs" if settings.epochs_dir == Path() else settings.epochs_dir


def split_folders(setting: str) -> list[Path]:
    """The folders of a setting that separates them by `:`."""
    return [Path(folder) for folder in setting.split(":") if folder]


def key_wrapper(settings: Settings) -> KeyWrapper:
    """The keeper of the key-encryption key: AWS KMS if a KMS key is set, a file otherwise."""
    if settings.kms_key_id:
        return KmsKeyWrapper(settings.kms_key_id, settings.keys_dir)
    return FileKeyWrapper(settings.keys_dir / KEK)


def create_keys(settings: Settings) -> None:
    """Make the key-encryption key and the signing keys, mode 0600. Existing keys stay."""
    key_wrapper(settings).create()
    epochs_folder(settings).mkdir(mode=0o700, parents=True, exist_ok=True)
    Keyring(settings.keys_dir).create()
    OpenDsrKey(settings.keys_dir, settings.processor_domain).create()
