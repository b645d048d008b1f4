"""Old versions whose weights are not on the disk: their delta rebuilds them from an earlier version, to the bit.

The newest `keep` versions of a model, by its policy, and version 0 keep their weights. Of any other version with a
delta they may go: what the delta changes is on the disk, or is rebuilt in the same way. So every version can be rebuilt
whatever was removed. A mark in storage comes before the removal, and goes after a rebuilding; in between the rebuilt
files are checked against the version's manifest.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from service.audit.manifest import DELTA_FOLDER, MODEL_FOLDER, FileEntry
from service.bootstrap import Services
from service.db import jobs, models
from service.db.tables import Model, Version
from service.delta import ChangedWeights, Delta
from service.domain.errors import Unavailable
from service.failpoints import reach
from service.files import age_seconds, fsync
from service.storage.interface import Storage
from service.weight_files import SUFFIX, ChangedFile, UnreadableWeights


class Rebuilding(Unavailable):
    """The weights of an old version are not on the disk, and are rebuilt now."""

    code = "rebuilding"

    def __init__(self) -> None:
        """Ask the caller to come again."""
        super().__init__("The weights of this old version are being rebuilt. Try again later.")


def released_file(services: Services, version: Version, path: str) -> Path:
    """A published file, to be read.

    Raises:
        Rebuilding: It is one of the weights files that were removed; it will be there again.
    """
    file = services.storage.release(version.digest) / path
    if path in missing_files(services.storage, version.digest, version.files):
        services.queue.wake("rebuild", version.id)
        raise Rebuilding
    return file


def weights_files(files: Mapping[str, str]) -> dict[str, str]:
    """Of a release's files, path -> sha256, the weights files of the model."""
    return {path: digest for path, digest in files.items() if path.startswith(MODEL_FOLDER) and path.endswith(SUFFIX)}


def missing_files(storage: Storage, digest: str, files: Sequence[FileEntry]) -> set[str]:
    """The paths of a release that may be missing, because its weights were removed."""
    return set(weights_files(digests(files))) if storage.is_collected(digest) else set()


def digests(files: Sequence[FileEntry]) -> dict[str, str]:
    """Path -> sha256."""
    return {entry["path"]: entry["sha256"] for entry in files}


def collect_weights(services: Services, model_id: UUID) -> list[int]:
    """Remove the weights of a model's old versions, if its policy has `keep`; returns the versions' numbers.

    Those that were written, or rebuilt, a short time ago stay: somebody may be reading them.
    """
    storage, collected = services.storage, []
    with services.db.transaction() as session:
        model = models.lock(session, model_id)
        if model is None or not isinstance(keep := model.policy.get("keep"), int):
            return []
        needed = {version.id for version in models.remaining_versions(session, model)[:keep]}
        needed |= jobs.parents_in_use(session, model.id)
        for version in models.all_versions(session, model):
            paths = [storage.release(version.digest) / path for path in weights_files(digests(version.files))]
            present = [path for path in paths if path.is_file()]
            young = any(age_seconds(path) <= services.settings.orphan_seconds for path in present)
            if version.id in needed or not present or young or base_version(session, storage, model, version) is None:
                continue
            storage.note_collected(version.digest)
            reach("collect.marked")
            for path in present:
                path.unlink()
            collected.append(version.number)
    return collected


def base_version(session: Session, storage: Storage, model: Model, version: Version) -> Version | None:
    """The version that a version's delta changes; None if it has no delta, or a damaged one."""
    if not any(entry["path"].startswith(DELTA_FOLDER) for entry in version.files):
        return None
    try:
        base = Delta(storage.release(version.digest) / DELTA_FOLDER).base
    except UnreadableWeights:
        return None
    return models.version(session, model, base["version"]) if base else None


def rebuild(services: Services, version_id: UUID) -> None:
    """Rebuild the weights of a version that were removed, and first those that its delta changes.

    Raises:
        ChangedFile: The result is not what was published: a file of the delta or of its base is damaged.
    """
    storage = services.storage
    with services.db.reading() as session:
        version = session.get_one(Version, version_id)
        model = models.by_id(session, version.model_id)
        base = base_version(session, storage, model, version)
    if not storage.is_collected(version.digest):
        return
    if base is None:
        raise ChangedFile(DELTA_FOLDER)
    rebuild(services, base.id)
    folder, staged = storage.release(version.digest), storage.staging(f"rebuild-{uuid4()}")
    try:
        write_weights(storage.release(base.digest), folder, staged, weights_files(digests(version.files)))
        with services.db.transaction() as session:
            models.lock(session, model.id)  # nobody removes them meanwhile
            put_back(storage, version.digest, staged)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_weights(base: Path, release: Path, target: Path, files: Mapping[str, str]) -> None:
    """Write the weights files of a release, from the release that its delta changes.

    Args:
        base: The release folder of that version.
        release: The release folder, with its delta.
        target: An empty folder.
        files: Path -> sha256 of each weights file.

    Raises:
        ChangedFile: One would not have its sha256.
    """
    names = [path.removeprefix(MODEL_FOLDER) for path in files]
    try:
        weights = ChangedWeights(base / MODEL_FOLDER, names, Delta(release / DELTA_FOLDER))
        for path, sha256 in files.items():
            digest = hashlib.sha256()
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with (target / path).open("wb") as file:
                for part in weights.file(path.removeprefix(MODEL_FOLDER)):
                    digest.update(part)
                    file.write(part)
            if digest.hexdigest() != sha256:
                raise ChangedFile(path)
            fsync(target / path)
    except UnreadableWeights as error:
        raise ChangedFile(str(error)) from error


def put_back(storage: Storage, digest: str, staged: Path) -> None:
    """Move rebuilt files into their release folder, and remove the mark."""
    folder = storage.release(digest)
    for path in staged.rglob(f"*{SUFFIX}"):
        path.replace(folder / path.relative_to(staged))
    fsync(folder / MODEL_FOLDER)
    reach("rebuild.moved")
    storage.forget_collected(digest)
