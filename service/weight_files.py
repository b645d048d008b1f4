"""Weights files of a model's folder, as far as their headers say: no tensor is read, and no torch is needed.

Control compares what the compute child merged with the parent, before it signs anything.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

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
        return _indexed((folder / INDEX).read_bytes())
    except OSError as error:
        raise UnreadableWeights(INDEX) from error


def _indexed(index: bytes) -> list[str]:
    """The names of the weights files that an index lists, sorted."""
    try:
        return sorted(set(json.loads(index)["weight_map"].values()))
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


def header_unchanged(path: Path, sha256: str) -> Header:
    """The same as `header`, of a file that must have this digest. The bytes that are hashed are the bytes that count.

    Raises:
        ChangedFile: The file is missing, or has another digest.
    """
    try:
        with path.open("rb") as handle:
            length = handle.read(8)
            content = handle.read(min(int.from_bytes(length, "little"), MOST_HEADER))
            digest = hashlib.sha256(length + content)
            while part := handle.read(2**20):
                digest.update(part)
    except OSError as error:
        raise ChangedFile(path.name) from error
    if digest.hexdigest() != sha256:
        raise ChangedFile(path.name)
    members = json.loads(content)
    metadata = members.pop("__metadata__", None)
    return {name: (member["dtype"], member["shape"]) for name, member in members.items()}, metadata


def is_merged_from(
    candidate: Path, digests: Mapping[str, str], parent: Path, parent_digests: Mapping[str, str]
) -> bool:
    """Whether a candidate is its parent with other values in its tensors, and nothing else.

    Every file that is no weights file has the parent's bytes. The weights files have the parent's names, and in them
    the tensors have the parent's names, dtypes and shapes. The model card is left out: control writes it.

    Args:
        candidate: The candidate's model folder.
        digests: Path in the folder -> sha256 of each file of the candidate.
        parent: The parent's model folder.
        parent_digests: The same of the parent, as the database has them. Its weights are checked against them first.

    Raises:
        ChangedFile: A file of the parent is not the one that the database has.
    """

    def plain(of: Mapping[str, str]) -> dict[str, str]:
        return {path: digest for path, digest in of.items() if not path.endswith(SUFFIX) and path != "README.md"}

    try:
        single = SINGLE in parent_digests
        weights = [SINGLE] if single else _indexed(read_unchanged(parent / INDEX, parent_digests.get(INDEX, "")))
        headers = {name: header_unchanged(parent / name, parent_digests.get(name, "")) for name in weights}
        return (
            plain(digests) == plain(parent_digests)
            and {path for path in digests if path.endswith(SUFFIX)} == set(weights)
            and all(header(candidate / name) == headers[name] for name in weights)
        )
    except UnreadableWeights:
        return False
