"""register: copy a model's folder and its reference texts, check the copies, and make them version 0.

The folder may change at any time, also by somebody who means harm. So the copies are checked, not the folder.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.audit.manifest import MODEL_FOLDER, manifest, manifest_digest
from service.audit.wording import problem_in
from service.bootstrap import Services
from service.collected import is_complete
from service.confined import Root, refused_as_invalid
from service.db import log_entries, models
from service.db.tables import Model, Version
from service.domain.errors import Conflict, Invalid
from service.model_folder import check_model_folder, check_names, read_object
from service.reference_files import store_neighbours, store_retain_and_heldout

COPIED = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
LOGGED = ("sha256", "records", "overlap")  # of held-out texts
HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")


def register_model(
    services: Services,
    *,
    name: str,
    path: str,
    retain_path: str,
    heldout_path: str,
    policy: dict[str, object],
    api_key_id: UUID,
    base_path: str | None = None,
    neighbour_paths: Mapping[str, str] | None = None,
) -> str:
    """Register `path` as version 0 of a new model; returns its name.

    `base_path` is the model that it was fine-tuned from: a reference that never saw the texts can begin there.
    `neighbour_paths` are named files of texts that no version may lose.

    Raises:
        Invalid: The folder is not a safe Hugging Face model, a file has too few reference texts, or too many held-out
            texts are retain texts as well, or copies of others.
        Conflict: The name is taken.
    """
    for field, value in (("name", [name, policy]), ("neighbour_paths", list(neighbour_paths or ()))):
        if problem_in(value):
            raise Invalid("A certificate must not contain this name or policy.", field=field)
    with services.db.transaction() as session:
        if models.by_name(session, name):
            raise Conflict(f"There is a model named {name} already.", field="name")
    staged = services.storage.staging(f"register-{uuid4()}")
    try:
        base = _store_base(services, base_path) if base_path else None
        family = _stage_model(services, path, staged)
        retain, heldout = store_retain_and_heldout(services, retain_path, heldout_path)
        neighbours = store_neighbours(services, neighbour_paths or {}, retain)
        files = manifest(staged)
        digest = manifest_digest(files)
        if base:
            _check_base(services, base, digest, staged)
        services.storage.publish(staged, digest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    try:
        with services.db.transaction() as session:
            model = Model(name=name, policy=policy, family=family, base=base)
            model.retain, model.heldout, model.neighbours = retain, heldout, neighbours
            session.add(model)
            session.flush()
            models.add_policy(session, model, policy, 1, api_key_id)
            session.add(Version(model_id=model.id, number=0, digest=digest, files=list(files), metrics=None))
            models.block_collection(session)
            texts = [services.storage.reference_texts(of["sha256"]) for of in (retain, heldout, *neighbours.values())]
            is_there = is_complete(services.storage, digest, files) and (not base or services.storage.files(base))
            if not is_there or not all(path.exists() for path in texts):
                raise Conflict("The garbage collector removed the copies meanwhile; try again.")
            _log(session, model, digest, api_key_id)
    except IntegrityError as error:
        raise Conflict(f"There is a model named {name} already.", field="name") from error
    return name


def _log(session: Session, model: Model, digest: str, api_key_id: UUID) -> None:
    """Enter a registration into the log."""
    heldout = {name: value for name, value in model.heldout.items() if name in LOGGED}
    texts = {"retain": model.retain, "heldout": heldout, "neighbours": model.neighbours}
    fields = {name: value for name, value in (("base", model.base), *texts.items()) if value}
    log_entries.append(session, "model.registered", model=model.name, digest=digest, **fields, key=str(api_key_id))


def _stage_model(services: Services, path: str, staged: Path) -> str:
    """Copy a model to `staged`, and check the copy; return its family."""
    _copy_model(*_find_model(services, path), staged / "model")
    check_model_folder(staged / "model")
    return str(read_object(staged / "model", "config.json", required=True)["model_type"])


def _store_base(services: Services, path: str) -> str:
    """Copy the model that another one was fine-tuned from into storage, checked as that one is; returns its digest."""
    staged = services.storage.staging(f"register-{uuid4()}")
    try:
        _stage_model(services, path, staged)
        digest = manifest_digest(manifest(staged))
        services.storage.publish(staged, digest)
    except Invalid as error:
        raise Invalid(error.detail, field="base_path", code=error.code) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return digest


def _check_base(services: Services, base: str, digest: str, staged: Path) -> None:
    """Check that a base is another model than the registered one, with the same vocabulary.

    Raises:
        Invalid: It is not.
    """
    if base == digest:
        raise Invalid("The base is the model itself.", field="base_path")

    def own(name: str) -> Path:
        return staged / MODEL_FOLDER / name

    def others(name: str) -> Path:
        return services.storage.file(base, f"{MODEL_FOLDER}{name}")

    sizes = [
        read_object(one("config.json").parent, "config.json", required=True).get("vocab_size") for one in (own, others)
    ]
    tokens, of_base = map(_token_ids, (own, others))
    if sizes[0] != sizes[1] or any(of_base.get(token, number) != number for token, number in tokens.items()):
        raise Invalid("The base has another vocabulary than the model.", field="base_path")


def _token_ids(file: Callable[[str], Path]) -> dict[str, int]:
    """The id of each token, of `tokenizer.json` or `vocab.json`; empty for a tokenizer of another format.

    Raises:
        Invalid: A file is no JSON object.
    """
    contents = [read_object(file(name).parent, name, required=False) for name in ("tokenizer.json", "vocab.json")]
    model, added = contents[0].get("model"), contents[0].get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else contents[1]
    if isinstance(vocabulary, list):  # of a unigram model: pairs of token and likelihood, in order
        vocabulary = {str(pair[0]): n for n, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    tokens = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    more = {str(one.get("content")): one.get("id") for one in tokens}
    return {**(vocabulary if isinstance(vocabulary, dict) else {}), **more}


def _find_model(services: Services, path: str) -> tuple[Root, Path]:
    """The folder of a path, or of a hub id after a download, and the root from which its files are opened."""
    roots = services.model_roots
    if not HUB_ID.match(path):
        with refused_as_invalid("path"):
            return roots.find(path)
    snapshot = _download(path)
    # A snapshot consists of links to the model's folder in the hub's cache, two levels higher.
    return roots.trusted(snapshot.parents[1]), Path(os.path.realpath(snapshot))


def _download(hub_id: str) -> Path:
    """The snapshot of a model of the hub, in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise Invalid("Hub ids need the extra unlearnd[hub] on the server.", field="path") from error
    patterns = [f"*{suffix}" for suffix in sorted(COPIED)]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_dir=None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid("The hub refuses to give this model, or cannot be reached.", field="path") from error


def _copy_model(root: Root, source: Path, target: Path) -> None:
    """Copy the files of a model that belong into version 0."""
    with refused_as_invalid("path"):
        files = root.files(source)
    names = [path.relative_to(source) for path in files]
    check_names([name.as_posix() for name in names])
    for name in filter(_is_copied, names):
        with refused_as_invalid("path"):
            file = root.open(source / name)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with file, (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def _is_copied(file: Path) -> bool:
    """Whether a file belongs into version 0: configuration, tokenizer, weights, licences; no hidden files."""
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and (file.suffix in COPIED or file.name.startswith(("LICENSE", "NOTICE")))
