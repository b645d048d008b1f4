"""register: copy a model's folder and its reference texts, check the copies, and make them version 0.

The folder may change at any time, also by somebody who means harm. So the copies are checked, not the folder.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
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
from service.domain.families import family_problem
from service.reference_files import store_neighbours, store_retain_and_heldout
from service.weight_files import UnreadableWeights, header, loaded_weights

COPIED = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".msgpack"}
ADAPTER = "adapter_config.json"
CAUSAL = ("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "GenerationDecoder")  # ends of architectures' names
SENSES = ("vision_config", "audio_config")
LOGGED = ("sha256", "records", "overlap")  # of held-out texts
LEGACY_FILES = {"special_tokens_map_file", "added_tokens_file"}  # of tokenizer_config.json; no library reads them
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
    return str(_read_config(staged / "model", "config.json", required=True)["model_type"])


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
    path = f"{MODEL_FOLDER}config.json"
    sizes = [
        _read_config(file.parent, file.name, required=True).get("vocab_size")
        for file in (staged / path, services.storage.file(base, path))
    ]
    if sizes[0] != sizes[1]:
        raise Invalid("The base has another vocabulary than the model.", field="base_path")


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
    _check_names([name.as_posix() for name in names])
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


def _check_names(names: list[str]) -> None:
    """Check by the names of its files that a model is safetensors with a tokenizer, and needs no foreign code.

    Raises:
        Invalid: It is not. The error names the file.
    """
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            raise Invalid(f"{name} may be a pickle, which runs code when loaded; use safetensors.", field="path")
        if name.endswith(".py"):
            raise Invalid(f"{name}: the service refuses models with code of their own.", field="path")
    if ADAPTER in names:  # it names the folder of another model, from which weights would be read
        raise Invalid(f"{ADAPTER}: merge the adapter into the model first.", field="path")
    if not any(name in names for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise Invalid("The folder has no tokenizer.", field="path")
    if not any(name.endswith(".safetensors") for name in names):
        raise Invalid("The folder has no safetensors weights.", field="path")


def check_model_folder(folder: Path) -> None:
    """Check the content of a copied model: it asks for no code and no file elsewhere, and its weights are safetensors.

    Raises:
        Invalid: They are not. The error names the file.
    """
    config = _read_config(folder, "config.json", required=True)
    tokenizer_config = _read_config(folder, "tokenizer_config.json", required=False)
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if "auto_map" in content:
            raise Invalid(f"{name} asks for remote code (auto_map), which the service refuses.", field="path")
    _check_named_files(folder, config, tokenizer_config)
    _check_kind(config)
    for path in sorted(folder.rglob("*.safetensors")):
        if not _is_safetensors(path):
            name = path.relative_to(folder).as_posix()
            raise Invalid(f"{name} is not a complete safetensors file.", field="path")
    try:
        missing = [name for name in loaded_weights(folder) if not (folder / name).is_file()]
    except UnreadableWeights as error:
        raise Invalid("The folder has no model.safetensors, and no usable index of its parts.", field="path") from error
    if missing:
        raise Invalid("The index of the weights names a file that is missing.", field="path")


def _check_named_files(folder: Path, config: Mapping[str, object], tokenizer_config: Mapping[str, object]) -> None:
    """Check that the files which a file names lie beside it. By `../` a worker would read files of others.

    Raises:
        Invalid: They lie elsewhere, or are missing. The error names the file.
    """
    if "transformers_weights" in config:
        raise Invalid("config.json names its weights; rename them to model.safetensors.", field="path")
    named: dict[str, list[object]] = {}
    for key, value in tokenizer_config.items():
        if key.endswith(("_file", "_files")) and key not in LEGACY_FILES and value is not None:
            named.setdefault("tokenizer_config.json", []).extend(value if isinstance(value, list) else [value])
    for path in sorted(folder.rglob("*.index.json")):
        name = path.relative_to(folder).as_posix()
        weight_map = _read_config(folder, name, required=True).get("weight_map")
        named[name] = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    for name, weights in named.items():
        beside = [path.name for path in (folder / name).parent.iterdir()]
        if not all(weight in beside for weight in weights):
            raise Invalid(f"{name} names files that are not beside it.", field="path")


def _check_kind(config: Mapping[str, object]) -> None:
    """Check that a model is a decoder with plain weights. Of any other a part would be taken for the whole.

    Raises:
        Invalid: It is not. The error says what it is.
    """
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(str(name).endswith(CAUSAL) for name in architectures):
        raise Invalid(
            "config.json: `architectures` names no causal language model (a name that ends in ForCausalLM or "
            "LMHeadModel). Of a model with an encoder, or with images or sound, register the language model alone.",
            field="path",
        )
    if any(config.get(name) for name in SENSES):
        raise Invalid("config.json: of a model with images or sound register the language model alone.", field="path")
    if config.get("is_encoder_decoder"):
        raise Invalid("config.json: an encoder-decoder cannot be unlearned, only a decoder.", field="path")
    if problem := family_problem(config.get("model_type")):
        raise Invalid(f"config.json: {problem}", field="path")
    if config.get("quantization_config") is not None:
        raise Invalid("config.json: the weights are quantised. Register those that they were made of.", field="path")


def _read_config(folder: Path, name: str, *, required: bool) -> dict[str, object]:
    """A JSON object in the folder; empty if the file is missing and not required."""
    path = folder / name
    if not path.exists() and not required:
        return {}
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError(name)
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"{name} is missing or not a JSON object.", field="path") from error
    return config


def _is_safetensors(path: Path) -> bool:
    """Whether the library reads the file, and the file holds a tensor. Only the header is read."""
    try:
        return bool(header(path)[0])
    except UnreadableWeights:
        return False
