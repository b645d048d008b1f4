"""rotate: replace the key-encryption key: every epoch key is wrapped under the new one, and the old one destroyed."""

from service.bootstrap import Services
from service.db import log_entries
from service.domain.errors import Conflict
from service.privacy.envelope import FileKeyWrapper
from service.privacy.kms import KmsKeyWrapper
from service.rewrap import Rewrap


def rotate_master_key(services: Services, kms_key_id: str | None = None) -> int:
    """Replace the key-encryption key; returns how many epoch keys are wrapped under the new one.

    Requests from before there were epochs are moved into one first. A call after a crash goes on where it stopped.

    Args:
        services: The services of this process.
        kms_key_id: With a key in KMS: the new one. The setting must name it from then on.

    Raises:
        Conflict: The key lies in KMS and no new one is named, or the other way round.
    """
    master = services.wrapper.master
    rewrap = Rewrap(services)
    rewrap.move_requests(None)
    rewrap.end()
    if isinstance(master, FileKeyWrapper) and kms_key_id is None:
        count = services.wrapper.rewrap(master.begin_rotation(), master.end_rotation)
    elif isinstance(master, KmsKeyWrapper) and kms_key_id is not None:
        new = KmsKeyWrapper(kms_key_id, services.settings.keys_dir)
        count = services.wrapper.rewrap(new, lambda: master.rotate_hash_key(new))
    else:
        raise Conflict("A key in KMS is replaced by the KMS key that --kms-key-id names; a file needs no such option.")
    with services.db.transaction() as session:
        log_entries.append(session, "key.rotated", role="key-encryption")
    return count
