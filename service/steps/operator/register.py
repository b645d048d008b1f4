"""register: check a model's folder, copy it as version 0, copy the reference texts."""

import csv
import json
import re
import shutil
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError

from service.audit.manifest import manifest, manifest_digest
from service.audit.wording import problem_in
from service.bootstrap import Services
from service.db import log_entries, models
from service.db.tables import Model, ReferenceTexts, Version
from service.domain.errors import Conflict, Invalid
from service.text_files import UnreadableTexts, read_texts

MIN_HELDOUT = 20  # as in the engine: fewer texts have no 95th percentile
COPIED = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".msgpack"}
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
) -> str:
    """Register `path` as version 0 of a new model; returns its name.

    Raises:
        Invalid: The folder is not a safe Hugging Face model, or a file has too few reference texts.
        Conflict: The name is taken.
    """
    if problem_in([name, policy]):
        raise Invalid("A certificate must not contain this name or policy.", field="name")
    with services.db.transaction() as session:
        if models.by_name(session, name):
            raise Conflict(f"There is a model named {name} already.", field="name")
    source = _local_folder(path)
    check_model_folder(source)
    retain = _store_reference_texts(services, "retain_path", retain_path, 1)
    heldout = _store_reference_texts(services, "heldout_path", heldout_path, MIN_HELDOUT)
    staged = services.storage.staging(f"register-{uuid4()}")
    _copy_model(source, staged / "model")
    files = manifest(staged)
    digest = manifest_digest(files)
    folder = services.storage.publish(staged, digest)
    try:
        with services.db.transaction() as session:
            model = Model(name=name, policy=policy, retain=retain, heldout=heldout)
            session.add(model)
            session.flush()
            models.add_policy(session, model, policy, 1, api_key_id)
            session.add(Version(model_id=model.id, number=0, digest=digest, files=list(files), metrics=None))
            models.block_collection(session)
            stored = [services.storage.reference_texts(texts["sha256"]) for texts in (retain, heldout)]
            if not all(path.exists() for path in (folder, *stored)):
                raise Conflict("The garbage collector removed the copies meanwhile; try again.")
            texts, key = {"retain": retain, "heldout": heldout}, str(api_key_id)
            log_entries.append(session, "model.registered", model=name, digest=digest, **texts, key=key)
    except IntegrityError as error:
        raise Conflict(f"There is a model named {name} already.", field="name") from error
    return name


def _local_folder(path: str) -> Path:
    """The local folder of a path, or of a hub id after a download."""
    folder = Path(path)
    if folder.is_dir():
        return folder.resolve()
    if not HUB_ID.match(path):
        raise Invalid("There is no such folder on the server.", field="path")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise Invalid("Hub ids need the extra unlearnd[hub] on the server.", field="path") from error
    patterns = [f"*{suffix}" for suffix in sorted(COPIED)]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns, local_dir=None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid("The hub refuses to give this model, or cannot be reached.", field="path") from error


def _copy_model(source: Path, target: Path) -> None:
    """Copy a model's files. The files of a hub cache are links: this copies the files that they point to."""
    for path in sorted(source.rglob("*")):
        file = path.relative_to(source)
        if path.is_file() and _is_copied(file):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / file)


def _is_copied(file: Path) -> bool:
    """Whether a file belongs into version 0: configuration, tokenizer, weights, licences; no hidden files."""
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and (file.suffix in COPIED or file.name.startswith(("LICENSE", "NOTICE")))


def check_model_folder(folder: Path) -> None:
    """Check that a folder is a plain safetensors model, which loads without foreign code.

    Raises:
        Invalid: It is not. The error names the file.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names):
        if Path(name).suffix.lower() in PICKLES:
            raise Invalid(f"{name} may be a pickle, which runs code when loaded; use safetensors.", field="path")
        if name.endswith(".py"):
            raise Invalid(f"{name}: the service refuses models with code of their own.", field="path")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_config(folder, name, required=name == "config.json"):
            raise Invalid(f"{name} asks for remote code (auto_map), which the service refuses.", field="path")
    if not any(name in names for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise Invalid("The folder has no tokenizer.", field="path")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise Invalid("The folder has no safetensors weights.", field="path")
    for name in weights:
        if not _is_safetensors(folder / name):
            raise Invalid(f"{name} is not a complete safetensors file.", field="path")


def _read_config(folder: Path, name: str, *, required: bool) -> dict[str, object]:
    """A JSON object in the folder; empty if the file is missing and not required."""
    path = folder / name
    if not path.exists() and not required:
        return {}
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError(name)
    except (OSError, ValueError) as error:
        raise Invalid(f"{name} is missing or not a JSON object.", field="path") from error
    return config


def _is_safetensors(path: Path) -> bool:
    """Whether the library reads the file, and the file holds a tensor. Only the header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as weights:
            return bool(weights.keys())
    except (SafetensorError, OSError):
        return False


def _store_reference_texts(services: Services, field: str, path: str, min_count: int) -> ReferenceTexts:
    """Copy reference texts into storage as JSON lines."""
    file = Path(path)
    if not file.is_file():
        raise Invalid("There is no such file on the server.", field=field)
    try:
        lines = (json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in read_texts(file))
        digest, count = services.storage.add_reference_texts(lines)
    except (ValueError, csv.Error) as error:
        message = str(error) if isinstance(error, UnreadableTexts) else "The file is not UTF-8 text in a known form."
        raise Invalid(message, field=field) from error
    if count < min_count:
        raise Invalid(f"The file holds {count} texts; at least {min_count} are needed.", field=field)
    return {"sha256": digest, "records": count}
