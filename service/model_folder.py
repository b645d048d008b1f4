"""What the folder of a model may hold: safetensors, a tokenizer, a decoder's configuration, and no code."""

import json
from collections.abc import Mapping
from pathlib import Path

from service.domain.errors import Invalid
from service.domain.families import family_problem
from service.weight_files import UnreadableWeights, header, loaded_weights

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".msgpack"}
ADAPTER = "adapter_config.json"
CAUSAL = ("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "GenerationDecoder")  # ends of architectures' names
SENSES = ("vision_config", "audio_config")
LEGACY_FILES = {"special_tokens_map_file", "added_tokens_file"}  # of tokenizer_config.json; no library reads them


def check_names(names: list[str]) -> None:
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
    config = read_object(folder, "config.json", required=True)
    tokenizer_config = read_object(folder, "tokenizer_config.json", required=False)
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
        weight_map = read_object(folder, name, required=True).get("weight_map")
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


def read_object(folder: Path, name: str, *, required: bool) -> dict[str, object]:
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
