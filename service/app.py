"""The one bootstrap: settings in, the wired parts out. Production and tests call the same."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from service.audit.signing import CertificateSigner, create_key, log_trusted, trust_json
from service.config import Settings
from service.db.session import Database
from service.log import LogKeeper
from service.privacy.envelope import FileKeyWrapper, KeyWrapper
from service.queue import Queue
from service.storage.interface import Storage
from service.storage.local import LocalStorage

KEK, CERTIFICATE_KEY, LOG_KEY = "kek", "certificate.pem", "log.pem"


@dataclass
class Services:
    """Everything a step may need."""

    settings: Settings
    db: Database
    storage: Storage
    queue: Queue
    wrapper: KeyWrapper

    @cached_property
    def signer(self) -> CertificateSigner:
        """The certificate key; only control workers hold its file."""
        return CertificateSigner(self.settings.keys_dir / CERTIFICATE_KEY)

    @cached_property
    def log(self) -> LogKeeper:
        """The keeper of the log; only control workers hold its key's file."""
        folder = self.settings.storage_dir / "ledger" / "log"
        return LogKeeper(self.db, folder, self.settings.keys_dir / LOG_KEY, f"{self.settings.issuer}/log")

    def trust(self) -> bytes:
        """`trust.json`: the keys whose certificates and checkpoints count."""
        return trust_json([self.signer.trusted(), log_trusted(self.settings.keys_dir / LOG_KEY, self.log.origin)])

    def close(self) -> None:
        """Give connections back."""
        self.queue.close()
        self.db.close()


def build(settings: Settings | None = None, *, create: bool = True) -> Services:
    """Wire the parts from settings (by default, those of the environment); `create` makes missing folders."""
    settings = settings or Settings()
    for name in ("database_url", "broker_url"):
        if not getattr(settings, name):
            raise SystemExit(f"UNLEARND_{name.upper()} is not set")
    return Services(
        settings,
        Database(settings.database_url, pool_size=settings.database_pool),
        LocalStorage(settings.storage_dir, create=create),
        Queue(settings.broker_url),
        FileKeyWrapper(settings.keys_dir / KEK),
    )


def create_keys(keys_dir: Path) -> None:
    """Make the key-encryption key, the certificate key and the log's key, mode 0600, unless they exist."""
    FileKeyWrapper.create(keys_dir / KEK)
    for name in (CERTIFICATE_KEY, LOG_KEY):
        create_key(keys_dir / name)
