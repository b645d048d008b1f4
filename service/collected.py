"""Old versions whose weights are not on the disk: their delta rebuilds them from an earlier version, to the bit.

The newest `keep` versions of a model, by its policy, and version 0 keep their weights. Those of any other version go,
once its delta was seen to rebuild them; what the delta changes is on the disk, or is rebuilt in the same way. Nothing
marks such a version: whoever finds weights missing has them rebuilt, whatever removed them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from service.audit.manifest import DELTA_FOLDER, MODEL_FOLDER, FileEntry, sha256_by_path
from service.bootstrap import Services
from service.changed_weights import ChangedWeights
from service.db import jobs, models
from service.db.tables import Model, Version
from service.delta import Delta
from service.domain.errors import Unavailable
from service.failpoints import reach
from service.observability.logging import get_logger
from service.storage.interface import Storage
from service.weight_files import SUFFIX, ChangedFile, UnreadableWeights

logger = get_logger(__name__)
GoOn = Callable[[], bool]


class Rebuilding(Unavailable):
    """The weights of an old version are not on the disk, and are rebuilt now."""

    code = "rebuilding"

    def __init__(self) -> None:
        """Ask the caller to come again."""
        super().__init__("The weights of this old version are being rebuilt. Try again later.")


class Stopped(Exception):
    """This process is to end."""


def weights_files(files: Mapping[str, str]) -> dict[str, str]:
    """Of a release's files, path -> sha256, the weights files of the model."""
    return {path: digest for path, digest in files.items() if path.startswith(MODEL_FOLDER) and path.endswith(SUFFIX)}


def rebuildable(files: Sequence[FileEntry]) -> set[str]:
    """The paths of a release that may be missing, because its delta rebuilds them."""
    has_delta = any(entry["path"].startswith(DELTA_FOLDER) for entry in files)
    return set(weights_files(sha256_by_path(files))) if has_delta else set()


def is_collected(storage: Storage, version: Version) -> bool:
    """Whether weights of a version that its delta rebuilds are not on the disk."""
    paths = rebuildable(version.files)
    return bool(paths) and not paths <= storage.files(version.digest).keys()


def is_complete(storage: Storage, digest: str, files: Sequence[FileEntry]) -> bool:
    """Whether storage has every file of a release but those of its delta, each with its size."""
    stored = storage.files(digest)
    needed = [entry for entry in files if not entry["path"].startswith(DELTA_FOLDER)]
    return all(entry["path"] in stored and stored[entry["path"]].size == entry["size"] for entry in needed)


def released_file(services: Services, version: Version, path: str) -> Path:
    """A published file, to be read.

    Raises:
        Rebuilding: It is one of the weights files that were removed; it will be there again.
    """
    file = services.storage.file(version.digest, path)
    if path in rebuildable(version.files) and not file.is_file():
        services.queue.wake("rebuild", version.id)
        raise Rebuilding
    return file


def check_released(services: Services, version: Version, paths: Iterable[str]) -> None:
    """Check that the files of a version that somebody is to have are there.

    Raises:
        Rebuilding: Some are weights files that were removed; they will be there again.
    """
    if rebuildable(version.files) & (set(paths) - services.storage.files(version.digest).keys()):
        services.queue.wake("rebuild", version.id)
        raise Rebuilding


def released_address(services: Services, version: Version, path: str) -> str | None:
    """Where a published file can be read for a while without a key; None if this process is to send it.

    Raises:
        Rebuilding: It is one of the weights files that were removed; it will be there again.
    """
    try:
        return services.storage.address(version.digest, path)
    except FileNotFoundError:
        if path not in rebuildable(version.files):
            raise
        services.queue.wake("rebuild", version.id)
        raise Rebuilding from None


def collect_weights(services: Services, model_id: UUID, go_on: GoOn = lambda: True) -> list[int]:
    """Remove the weights of a model's old versions, if its policy has `keep`; returns the versions' numbers.

    A version that is to have its weights, and does not, is rebuilt.
    """
    collected = []
    with services.db.reading() as session:
        model = models.by_id(session, model_id)
        needed, versions = _needed(services, session, model), models.all_versions(session, model)
    for version in reversed(versions):  # what a delta changes is there while it is tried
        if version.id in needed:
            if is_collected(services.storage, version):
                services.queue.wake("rebuild", version.id)
        elif go_on() and _spare(services, version) and _collect(services, model_id, version, go_on):
            collected.append(version.number)
    return collected


def _needed(services: Services, session: Session, model: Model) -> set[UUID]:
    """The versions that keep their weights: the newest, now and a while ago, and those that jobs begin from."""
    keep, remaining = model.policy.get("keep"), models.remaining_versions(session, model)
    if not isinstance(keep, int):
        return {version.id for version in models.all_versions(session, model)}
    then = datetime.now(UTC) - timedelta(seconds=services.settings.orphan_seconds)
    newest = [*remaining[:keep], *[version for version in remaining if version.created_at < then][:keep]]
    young = [version for version in remaining if version.created_at >= then]
    return {version.id for version in (*newest, *young)} | jobs.parents_in_use(session, model.id)


def _spare(services: Services, version: Version) -> bool:
    """Whether a version has weights that were not written a short time ago, and a smaller delta that rebuilds them."""
    paths, stored = rebuildable(version.files), services.storage.files(version.digest)
    present = [stored[path] for path in paths if path in stored]
    sizes = {entry["path"]: entry["size"] for entry in version.files}
    delta = sum(size for path, size in sizes.items() if path.startswith(DELTA_FOLDER))
    young = any(file.age <= services.settings.orphan_seconds for file in present)
    return bool(present) and not young and delta < sum(sizes[path] for path in paths)


def _collect(services: Services, model_id: UUID, version: Version, go_on: GoOn) -> bool:
    """Remove a version's weights, unless its delta does not rebuild them, or somebody needs them by now."""
    storage, files = services.storage, weights_files(sha256_by_path(version.files))
    storage.drop_copy(version.digest)  # what is tried is what storage has
    try:
        for _ in write_weights(_base(services, version, go_on), storage.release(version.digest), None, files, go_on):
            pass
        with services.db.transaction() as session:
            model = models.lock(session, model_id)
            if model is None or version.id in _needed(services, session, model):
                return False
            storage.remove_files(version.digest, rebuildable(version.files))
        return True
    except Stopped:
        return False
    except ChangedFile as error:
        _report(storage, version, error)
        return False


def rebuild(services: Services, version_id: UUID, go_on: GoOn = lambda: True) -> None:
    """Rebuild the weights of a version that are missing, and first those that its delta changes.

    Nothing is rebuilt if a file of the delta or of what it changes is damaged; the doctor says so.
    """
    with services.db.reading() as session:
        version = session.get_one(Version, version_id)
    if not is_collected(services.storage, version):
        return
    files = weights_files(sha256_by_path(version.files))
    try:
        write_back(services.storage, _base(services, version, go_on), version.digest, files, go_on)
    except Stopped:
        return
    except ChangedFile as error:
        _report(services.storage, version, error)


def _report(storage: Storage, version: Version, error: ChangedFile) -> None:
    """Let the log, the doctor and the metrics say that a version's weights cannot be rebuilt."""
    logger.error("a delta does not rebuild its version", version=version.number, file=str(error))
    storage.note_scrubbed(version.digest, [f"{DELTA_FOLDER} ({error})"])


def _base(services: Services, version: Version, go_on: GoOn) -> Path:
    """The release folder of the version that a version's delta changes, with its weights.

    Raises:
        ChangedFile: There is none.
    """
    with services.db.reading() as session:
        base = base_version(session, services.storage, models.by_id(session, version.model_id), version)
    if base is None:
        raise ChangedFile(DELTA_FOLDER)
    rebuild(services, base.id, go_on)
    return services.storage.release(base.digest)


def base_version(session: Session, storage: Storage, model: Model, version: Version) -> Version | None:
    """The version that a version's delta changes; None if it has no readable delta."""
    try:
        base = Delta(storage.release(version.digest) / DELTA_FOLDER).base
    except UnreadableWeights:
        return None
    return models.version(session, model, base["version"]) if base else None


def write_back(storage: Storage, base: Path, digest: str, files: Mapping[str, str], go_on: GoOn = lambda: True) -> None:
    """Rebuild weights files of a release in its folder, each in one step.

    Args:
        storage: It has the release.
        base: The release folder of the version that its delta changes.
        digest: Of the release.
        files: Path -> sha256 of each weights file.
        go_on: Asked now and then.

    Raises:
        ChangedFile: One would not have its sha256.
        Stopped: `go_on` said no.
    """
    release, staged = storage.release(digest), storage.staging(f"rebuild-{uuid4()}")
    try:
        for path in write_weights(base, release, staged, files, go_on):
            storage.add_file(digest, path, staged / path)
            reach("rebuild.moved")
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_weights(
    base: Path, release: Path, target: Path | None, files: Mapping[str, str], go_on: GoOn = lambda: True
) -> Iterator[str]:
    """Write the weights files of a release, from the release that its delta changes.

    Args:
        base: The release folder of that version.
        release: The release folder, with its delta.
        target: A folder; None writes nothing, and only compares.
        files: Path -> sha256 of each weights file.
        go_on: Asked now and then.

    Yields:
        str: The path of each file, once it is there and has its sha256.

    Raises:
        ChangedFile: One would not have its sha256.
        Stopped: `go_on` said no.
    """
    try:
        names = [path.removeprefix(MODEL_FOLDER) for path in files]
        weights = ChangedWeights(base / MODEL_FOLDER, names, Delta(release / DELTA_FOLDER))
        for path, sha256 in files.items():
            _write(weights.file(path.removeprefix(MODEL_FOLDER)), target / path if target else None, sha256, go_on)
            yield path
    except UnreadableWeights as error:
        raise ChangedFile(str(error)) from error


def _write(parts: Iterator[bytes], target: Path | None, sha256: str, go_on: GoOn) -> None:
    """Write a file that must have this sha256, or only compare."""
    digest = hashlib.sha256()
    if target is None:
        for part in parts:
            _check(go_on)
            digest.update(part)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for part in parts:
                _check(go_on)
                digest.update(part)
                file.write(part)
        target.chmod(0o644)
    if digest.hexdigest() != sha256:
        raise ChangedFile("a rebuilt file is not the one that was published")


def _check(go_on: GoOn) -> None:
    """End a rebuilding if this process is to end."""
    if not go_on():
        raise Stopped
