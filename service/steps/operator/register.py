"""Registering a model: check the folder, copy it as version 0, copy the corpora."""

import csv
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy.exc import IntegrityError

from service.audit.manifest import manifest, manifest_digest
from service.audit.wording import problem_in
from service.bootstrap import Services
from service.db import log_entries, models
from service.db.tables import Model, Version
from service.domain.errors import Conflict, Invalid
from service.text_files import UnreadableTexts, read_texts

MIN_HELDOUT = 20  # the engine's: fewer texts have no 95th percentile
KEPT = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".msgpack"}
HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")


def register_model(
    services: Services, *, name: str, path: str, retain_path: str, heldout_path: str, policy: dict[str, Any]
) -> str:
    """Register `path` as version 0 of a new model; returns its name.

    Raises:
        Invalid: Names the field: the folder is not a safe Hugging Face model, or a corpus has too few texts.
        Conflict: The name is taken.
    """
    if problem_in([name, policy]):
        raise Invalid("A certificate could not carry this name or policy.", field="name")
    with services.db.transaction() as session:
        if models.by_name(session, name):
            raise Conflict(f"There is a model named {name} already.", field="name")
    source = _folder(path)
    check_model_folder(source)
    retain = _corpus(services, "retain_path", retain_path, 1)
    heldout = _corpus(services, "heldout_path", heldout_path, MIN_HELDOUT)
    staged = services.storage.staging(f"register-{uuid4()}")
    for file in sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()):
        if _kept(file):  # a hub cache's files are links: what they point to is copied
            target = staged / "model" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target)
    files = manifest(staged)
    digest = manifest_digest(files)
    folder = services.storage.publish(staged, digest)
    try:
        with services.db.transaction() as session:
            model = Model(name=name, policy=policy, retain=retain, heldout=heldout)
            session.add(model)
            session.flush()
            session.add(Version(model_id=model.id, number=0, digest=digest, files=list(files), metrics=None))
            models.block_collection(session)
            kept = [services.storage.reference_texts(corpus["sha256"]) for corpus in (retain, heldout)]
            if not all(path.exists() for path in (folder, *kept)):
                raise Conflict("Storage was cleaned up meanwhile; try again.")
            log_entries.append(session, "model.registered", model=name, digest=digest, retain=retain, heldout=heldout)
    except IntegrityError as error:
        raise Conflict(f"There is a model named {name} already.", field="name") from error
    return name


def _folder(path: str) -> Path:
    """The local folder of a path or hub id."""
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
    wanted = [f"*{suffix}" for suffix in sorted(KEPT)]
    try:
        return Path(snapshot_download(path, allow_patterns=wanted, local_dir=None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid("The hub does not give this model, or cannot be reached.", field="path") from error


def _kept(file: str) -> bool:
    parts = Path(file).parts
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and (Path(file).suffix in KEPT or parts[-1].startswith(("LICENSE", "NOTICE")))


def check_model_folder(folder: Path) -> None:
    """Refuse what is not a plain safetensors model that loads without foreign code.

    Raises:
        Invalid: Names `path` and the file.
    """
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    for name in sorted(names):
        if Path(name).suffix.lower() in PICKLES:
            raise Invalid(f"{name} may be a pickle, which runs code when loaded; use safetensors.", field="path")
        if name.endswith(".py"):
            raise Invalid(f"{name}: models that bring their own code are refused.", field="path")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_config(folder, name, required=name == "config.json"):
            raise Invalid(f"{name} asks for remote code (auto_map), which is refused.", field="path")
    if not any(n in names for n in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise Invalid("The folder has no tokenizer.", field="path")
    weights = [n for n in names if n.endswith(".safetensors")]
    if not weights:
        raise Invalid("The folder has no safetensors weights.", field="path")
    for name in weights:
        if not _is_safetensors(folder / name):
            raise Invalid(f"{name} is not a whole safetensors file.", field="path")


def _read_config(folder: Path, name: str, *, required: bool) -> dict[str, Any]:
    path = folder / name
    if not path.exists() and not required:
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(name)
    except (OSError, ValueError) as error:
        raise Invalid(f"{name} is missing or not a JSON object.", field="path") from error
    return found


def _is_safetensors(path: Path) -> bool:
    """Whether the header reads and the data it speaks of fills the file exactly."""
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size - 8:
                return False
            header = json.loads(handle.read(length))
        ends = [spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(ends) and max(ends) == size - 8 - length


def _corpus(services: Services, field: str, path: str, least: int) -> dict[str, Any]:
    """Copy a corpus into storage as JSON lines."""
    file = Path(path)
    if not file.is_file():
        raise Invalid("There is no such file on the server.", field=field)
    try:
        lines = (json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in read_texts(file))
        digest, count = services.storage.add_reference_texts(lines)
    except (ValueError, csv.Error) as error:
        message = str(error) if isinstance(error, UnreadableTexts) else "It is not UTF-8 text in a known form."
        raise Invalid(message, field=field) from error
    if count < least:
        raise Invalid(f"It holds {count} texts; at least {least} are needed.", field=field)
    return {"sha256": digest, "records": count}
