"""Weights files of a model's folder, as far as their headers say: no tensor is read, and no torch is needed.

Control compares what the compute child merged with the parent, before it signs anything.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from service.files import file_sha256

MOST_HEADER = 100_000_000  # bytes; the library reads no longer one
SINGLE, INDEX, SUFFIX = "model.safetensors", "model.safetensors.index.json", ".safetensors"
Header: TypeAlias = "tuple[dict[str, tuple[str, list[int]]], dict[str, str] | None]"


class UnreadableWeights(ValueError):
    """The file is not a complete safetensors file, or the index names files that are not there."""


class ChangedFile(Exception):
    """A file of a version is missing, or is not the file that the database lists."""


def header(path: Path) -> Header:
    """(tensor name -> its dtype and shape, the file's metadata).

    Raises:
        UnreadableWeights: The library does not read the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  # it is no mapping
            tensors = {name: (str(part.get_dtype()), list(part.get_shape())) for name, part in slices.items()}
            return tensors, weights.metadata()
    except (SafetensorError, OSError) as error:
        raise UnreadableWeights(path.name) from error


def loaded_weights(folder: Path) -> list[str]:
    """The names of the weights files that transformers loads from a model's folder, sorted; it ignores any other.

    Raises:
        UnreadableWeights: There are none, or the index is not readable.
    """
    if (folder / SINGLE).is_file():
        return [SINGLE]
    try:
        return indexed((folder / INDEX).read_bytes())
    except OSError as error:
        raise UnreadableWeights(INDEX) from error


def indexed(index: bytes) -> list[str]:
    """The names of the weights files that an index lists, sorted; each is a plain name."""
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
        if not all(name.endswith(SUFFIX) and Path(name).name == name for name in names):
            raise UnreadableWeights(INDEX)
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableWeights(INDEX) from error


def read_unchanged(path: Path, sha256: str) -> bytes:
    """The content of a small file that must have this digest.

    Raises:
        ChangedFile: It is missing, or has another digest.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChangedFile(path.name) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ChangedFile(path.name)
    return content


def check_unchanged(folder: Path, digests: Mapping[str, str]) -> None:
    """Check files against their digests, by name.

    Raises:
        ChangedFile: One is missing, or has another digest.
    """
    for name, digest in digests.items():
        try:
            unchanged = file_sha256(folder / name) == digest
        except OSError:
            unchanged = False
        if not unchanged:
            raise ChangedFile(name)
