"""scrub: hash every published file again, so that a damaged one is known before somebody needs it."""

from collections.abc import Callable

from service.bootstrap import Services
from service.db import diagnostics
from service.observability.logging import get_logger
from service.weight_files import ChangedFile, check_unchanged

logger = get_logger(__name__)
DAY = 86_400  # seconds


def scrub_next(services: Services, *, go_on: Callable[[], bool] = lambda: True) -> bool:
    """Hash the release whose last hash is oldest; false if none is due, or `go_on` said no in between.

    What it finds is in storage, for the doctor and the metrics, and in the log. Two workers may hash the same release.
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
    for file in version.files:
        if not go_on():
            return False
        try:
            check_unchanged(storage.release(version.digest), {file["path"]: file["sha256"]})
        except ChangedFile:
            damaged.append(file["path"])
            logger.error("a published file was changed", model=version.model, version=version.number, file=file["path"])
    storage.note_scrubbed(version.digest, damaged)
    return True
