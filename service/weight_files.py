"""Weights files of a model's folder, as far as their headers say: no tensor is read, and no torch is needed.

Control compares what the compute child merged with the parent, before it signs anything.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

SINGLE, INDEX, SUFFIX = "model.safetensors", "model.safetensors.index.json", ".safetensors"
Header: TypeAlias = "tuple[dict[str, tuple[str, list[int]]], dict[str, str] | None]"


class UnreadableWeights(ValueError):
    """The file is not a complete safetensors file, or the index names files that are not there."""


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
        return sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableWeights(INDEX) from error


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
        parent_digests: The same of the parent, as the database has them.
    """

    def plain(of: Mapping[str, str]) -> dict[str, str]:
        return {path: digest for path, digest in of.items() if not path.endswith(SUFFIX) and path != "README.md"}

    try:
        weights = loaded_weights(parent)
        return (
            plain(digests) == plain(parent_digests)
            and {path for path in digests if path.endswith(SUFFIX)} == set(weights)
            and all(header(candidate / name) == header(parent / name) for name in weights)
        )
    except UnreadableWeights:
        return False
