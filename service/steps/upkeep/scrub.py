"""scrub: hash every published file again, so that a damaged one is known before somebody needs it."""

import hashlib
from collections.abc import Callable

from service.bootstrap import Services
from service.collected import rebuildable
from service.db import diagnostics
from service.observability.logging import get_logger
from service.storage.interface import Storage

logger = get_logger(__name__)
DAY = 86_400  # seconds


def scrub_next(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> bool:
    """Hash the release whose last hash is oldest; false if none is due, or `go_on` said no in between.

    What it finds is in storage, for the doctor and the metrics, and in the log. Workers of two hosts may hash the same
    release.
    """
    with services.db.reading() as session:
        versions = diagnostics.versions_on_disk(session)
    scrubbed, storage = services.storage.scrubbed(), services.storage
    for digest in scrubbed.keys() - {version.digest for version in versions}:
        storage.forget_scrubbed(digest)
    ages = {version.digest: scrubbed.get(version.digest, (float("inf"), []))[0] for version in versions}
    version = max(versions, key=lambda one: ages[one.digest], default=None)
    if version is None or ages[version.digest] < services.settings.scrub_days * DAY:
        return False
    damaged = []
    collectable = rebuildable(version.files)
    for file in version.files:
        actual = _digest(storage, version.digest, file["path"], go_on)
        if actual is None:
            return False
        if actual != file["sha256"] and (actual or file["path"] not in collectable):
            damaged.append(file["path"])
            logger.error("a published file was changed", model=version.model, version=version.number, file=file["path"])
    storage.note_scrubbed(version.digest, damaged)
    return True


def _digest(storage: Storage, release: str, path: str, go_on: Callable[[], bool]) -> str | None:
    """The sha256 of a file of a release, `unreadable` or, if it is missing, empty; None if `go_on` said no."""
    digest = hashlib.sha256()
    try:
        for part in storage.parts(release, path):
            if not go_on():
                return None
            digest.update(part)
    except FileNotFoundError:
        return ""
    except OSError:
        return "unreadable"
    return digest.hexdigest()
