"""What control checks of a candidate before it signs anything, and what it adds to make a release of it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.audit.card import delta_card, model_card
from service.audit.manifest import DELTA_FOLDER, MODEL_FOLDER, FileEntry, manifest, sha256_by_path
from service.audit.verify import MODEL_SIGNATURE
from service.bootstrap import Services
from service.changed_weights import ChangedWeights, is_merged_from
from service.confined import NotAFile
from service.db import models
from service.db.tables import Job, Version
from service.delta import MODEL_CARD, MOST_RANK, Base, Delta, write_delta
from service.domain.errors import PermanentJobError
from service.domain.quantised import QuantisedFinding
from service.domain.states import Outcome
from service.evidence.keyring import TRUST
from service.gguf import gguf_name
from service.quantised import SCHEMES
from service.quantised_files import CONFIG, HEADS, MOST_KEPT, WEIGHT
from service.tensor_file import stored_tensors
from service.weight_files import (
    INDEX,
    SUFFIX,
    ChangedFile,
    UnreadableWeights,
    check_unchanged,
    loaded_weights,
    read_unchanged,
)

CARD = f"{MODEL_FOLDER}README.md"
CHANGE_FOLDER = "change/"  # of a candidate: the change from its parent, as an adapter
ADDED = (TRUST, CARD, MODEL_SIGNATURE)  # what control adds to a candidate


def released_files(services: Services, job: Job, staged: Path) -> list[FileEntry]:
    """The manifest of the release folder without its certificate: the model, its card and signature, trust.json.

    Whoever computed may still have the candidate's files open. So control copies them to `staged` first, and the copy
    is what it checks, signs and later publishes. The release key signs only a model that passed.
    """
    assert job.report is not None
    findings = job.report.findings
    try:
        services.storage.copy_candidate(job.id, job.report.fence, staged)
    except NotAFile as error:
        raise PermanentJobError("candidate_unlike_parent") from error
    with services.db.reading() as session:
        number = models.next_number(session, job.model_id)
    base, parent = _base_card(services, job), job.parent_version.number
    card = model_card(base, job.model.name, number, parent, findings, job.report.contributors, job.policy)
    for name in ADDED:
        (staged / name).unlink(missing_ok=True)
    digests = sha256_by_path(manifest(staged))
    if digests != findings.files:
        raise PermanentJobError("candidate_changed")
    _check_merged_from_parent(services, job, staged, digests)
    _check_copies(findings.quantised, staged / MODEL_FOLDER)
    (staged / TRUST).write_bytes(services.keyring.trust())
    (staged / CARD).write_bytes(card)
    if job.outcome == Outcome.PASSED:
        services.keyring.sign_model(staged / MODEL_FOLDER, staged / MODEL_SIGNATURE)
        _add_delta(services, job.parent_version, staged, job.model.name, number)
    shutil.rmtree(staged / CHANGE_FOLDER)
    return manifest(staged)


def _base_card(services: Services, job: Job) -> bytes:
    """The model card of the base model, version 0; empty if it has none.

    Raises:
        PermanentJobError: The card in storage is not the one that was registered.
    """
    with services.db.reading() as session:
        base = models.version(session, job.model, 0)
    assert base is not None
    digest = next((entry["sha256"] for entry in base.files if entry["path"] == CARD), None)
    try:
        return read_unchanged(services.storage.file(base.digest, CARD), digest) if digest else b""
    except ChangedFile as error:
        raise PermanentJobError("parent_changed") from error


def _check_merged_from_parent(services: Services, job: Job, candidate: Path, digests: Mapping[str, str]) -> None:
    """Check that the candidate is the parent with the given change in its weights, whatever compute reported.

    Raises:
        PermanentJobError: It is not, or the parent's weights in storage are not those that were published.
    """
    parent = services.storage.release(job.parent_version.digest)
    of_parent = sha256_by_path(job.parent_version.files)
    of_models = [
        {path.removeprefix(MODEL_FOLDER): digest for path, digest in files.items() if path.startswith(MODEL_FOLDER)}
        for files in (digests, of_parent)
    ]
    outside = any(not path.startswith((MODEL_FOLDER, CHANGE_FOLDER)) for path in digests)
    try:
        change = Delta(candidate / CHANGE_FOLDER)
        if outside or not is_merged_from(of_models[0], parent / MODEL_FOLDER, of_models[1], change):
            raise PermanentJobError("candidate_unlike_parent")
    except UnreadableWeights as error:
        raise PermanentJobError("candidate_unlike_parent") from error
    except ChangedFile as error:
        raise PermanentJobError("parent_changed") from error


def _check_copies(copies: Sequence[QuantisedFinding], model: Path) -> None:
    """Check what compute says of quantised copies: modules and files of the model in order, and no choice among many.

    Digests are not computed again: whoever makes a copy compares them.

    Raises:
        PermanentJobError: It says something else.
    """
    names = loaded_weights(model)
    modules = {tensor.removesuffix(WEIGHT): one for tensor, one in stored_tensors(model).items()}
    for copy in copies:
        scheme, own = SCHEMES.get(copy.scheme), {CONFIG, *names, *([INDEX] if (model / INDEX).is_file() else [])}
        files, most = (own, MOST_KEPT) if scheme else ({gguf_name(copy.scheme)}, 0)
        known = modules.keys() | HEADS >= set(copy.kept) and copy.kept == sorted(set(copy.kept))
        chosen = [name for name in copy.kept if name not in modules or scheme is None or scheme.fits(modules[name])]
        if not known or copy.digests.keys() != (files if copy.status == "RUN" else set()) or len(chosen) > most:
            raise PermanentJobError("candidate_unlike_parent")


def _add_delta(services: Services, parent: Version, staged: Path, model: str, number: int) -> None:
    """Write the delta of the new version: the change that made it, behind those of its parent's delta.

    The parent is the base if a version on the way was withdrawn: its change would still be in the delta. A change of a
    rank that no adapter may have is left out.

    Raises:
        PermanentJobError: The parent's delta in storage is not the one that was published.
    """
    of_parent = sha256_by_path(parent.files)
    released = services.storage.release(parent.digest)
    published = {path: digest for path, digest in of_parent.items() if path.startswith(DELTA_FOLDER)}
    try:
        check_unchanged(released, published)
    except ChangedFile as error:
        raise PermanentJobError("parent_changed") from error
    weights = {
        path.removeprefix(MODEL_FOLDER): digest
        for path, digest in of_parent.items()
        if path.startswith(MODEL_FOLDER) and path.endswith(SUFFIX)
    }
    base: Base = {"version": parent.number, "files": weights}
    names = [path for path in weights if (staged / MODEL_FOLDER / path).is_file()]  # those that are loaded
    folder, change = staged / DELTA_FOLDER, Delta(staged / CHANGE_FOLDER)
    if change.rank > MOST_RANK:
        return
    folder.mkdir()
    before = Delta(released / DELTA_FOLDER) if published else None
    if before is not None and before.base is not None:
        with services.db.reading() as session:
            if models.any_withdrawn(session, parent.model_id, before.base["version"], parent.number):
                before = None
    write_delta(folder, change, base, before)
    try:
        ChangedWeights(released / MODEL_FOLDER, names, Delta(folder))
    except UnreadableWeights:  # the modules of this change have other names than those of the chain
        write_delta(folder, change, base, None)
    delta = Delta(folder)
    written = delta.base or base
    (folder / "README.md").write_text(delta_card(model, number, written["version"], for_peft=delta.for_peft))
    shutil.copyfile(staged / CARD, folder / MODEL_CARD)
