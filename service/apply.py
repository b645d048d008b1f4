"""apply: rebuild a release folder from the version that its delta changes, and check it against its certificate.

Only files are needed: no service, no network, and no torch.
"""

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from service.audit.manifest import DELTA_FOLDER, MODEL_FOLDER, NotPlain, list_paths
from service.audit.schema import schema_problem
from service.audit.verification import CERTIFICATE, ExitCode, VerificationError, open_certificate
from service.audit.verify import Verified, read_file, trusted_keys, verify
from service.changed_weights import ChangedWeights
from service.delta import MODEL_CARD, Delta
from service.domain.errors import ClientError
from service.weight_files import SUFFIX, ChangedFile, UnreadableWeights, check_unchanged


def apply_delta(base: Path, release: Path, target: Path, trust: Path | None = None) -> Verified:
    """Make `target` the release folder that the certificate in `release` lists, or leave nothing.

    A run that was killed leaves a folder `.NAME....` beside it.

    Args:
        base: The release folder of the version that the delta changes, or its model's folder alone.
        release: The new version's release folder; its `model/` is not read, and need not be there.
        target: A folder that does not exist yet, in one that does.
        trust: The issuer's `trust.json`; without it the one in `release` is used, which shows integrity alone.

    Returns:
        What `verify` says of the result.

    Raises:
        ClientError: `target` exists, or cannot be made.
        VerificationError: A file of the delta or the base is not the certified one, or the result is not.
        OSError: A file cannot be read or written.
    """
    target = target.absolute()
    if target.exists() or not target.parent.is_dir():
        raise ClientError(f"{target}: a new folder in an existing one is needed")
    staged = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        listed = _certified(release, trust)
        for path in list_paths(release):
            if not path.startswith(MODEL_FOLDER):
                _copy(release / path, staged / path)
        _rebuild(base / MODEL_FOLDER if (base / MODEL_FOLDER).is_dir() else base, staged, listed)
        verified = verify(staged, trust)
        staged.chmod(0o755)
        staged.rename(target)
        return verified
    except ChangedFile as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{error} differs from the certified file") from error
    except UnreadableWeights as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"the delta does not fit the base: {error}") from error
    except NotPlain as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, str(error)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _certified(release: Path, trust: Path | None) -> dict[str, str]:
    """Path -> sha256 of every file that the certificate lists. The delta's files are unchanged."""
    statement, _ = open_certificate(read_file(release / CERTIFICATE), trusted_keys(release, trust))
    if problem := schema_problem(statement):
        raise VerificationError(ExitCode.MALFORMED, f"the statement does not fit its schema: {problem}")
    listed = {file["name"]: file["digest"]["sha256"] for file in statement["subject"]}
    if not all(map(_lies_inside, listed)):
        raise VerificationError(ExitCode.MALFORMED, "the certificate lists a file outside the folder")
    of_delta = {path: digest for path, digest in listed.items() if path.startswith(DELTA_FOLDER)}
    if not of_delta:
        raise VerificationError(ExitCode.INCOMPLETE, "the certificate lists no delta: download the whole release")
    check_unchanged(release, of_delta)
    return listed


def _lies_inside(path: str) -> bool:
    """Whether a path is relative, leads nowhere else, and is in its shortest form: behind `model/` is no other root."""
    parts = PurePosixPath(path)
    return parts.as_posix() == path and not parts.is_absolute() and ".." not in parts.parts


def _rebuild(base: Path, staged: Path, listed: dict[str, str]) -> None:
    """Write the listed files of the model: weights with the change, the new card, and the base's other files."""
    paths = [path.removeprefix(MODEL_FOLDER) for path in listed if path.startswith(MODEL_FOLDER)]
    names = [path for path in paths if path.endswith(SUFFIX)]
    delta = Delta(staged / DELTA_FOLDER)
    if delta.base is None:
        raise VerificationError(ExitCode.MALFORMED, "the delta does not name its base")
    if missing := [name for name in names if not (base / name).is_file()]:
        raise VerificationError(ExitCode.INCOMPLETE, f"the base has no file {missing[0]}")
    weights = ChangedWeights(base, names, delta)
    for path in paths:
        new = staged / MODEL_FOLDER / path
        if path not in names:
            _copy(staged / DELTA_FOLDER / MODEL_CARD if path == "README.md" else base / path, new)
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with new.open("xb") as file:
            file.writelines(weights.file(path, digest))
        if digest.hexdigest() != delta.base["files"].get(path):
            reason = f"the base's {path} is not that of version {delta.base['version']}, which this delta changes"
            raise VerificationError(ExitCode.ARTEFACT_MISMATCH, reason)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, with the folders that it needs."""
    if not source.is_file():
        raise VerificationError(ExitCode.INCOMPLETE, f"{source.name} is missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
