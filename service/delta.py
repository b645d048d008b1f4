"""The change between two versions as a LoRA adapter.

    delta/adapter_model.safetensors   B [d, R] and A [R, k] of each adapted module, W' = W + B A, by the names that
                                      weights files have; `experts.down_proj.3` is one of several matrices in a tensor
    delta/adapter_config.json         what peft needs to load them
    delta/delta.json                  which version they change, and the ranks of the versions on the way
    delta/model_card.md               the model card of the new version
    delta/README.md                   what the folder is for

A version's change has rank 2r: c (B A - B0 A0) = c (B - B0) A + c B0 (A - A0). The changes of the versions since some
base stand side by side in one adapter. The weights were rounded after each version, so they are rebuilt one version
after the other. An adapter on its base is rounded nowhere: it is near the merged weights, and is not them.

d: output features, k: input features, R: the sum of the ranks
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from service.low_rank import Array, decode
from service.tensor_file import Stored, TensorFile, file_header
from service.weight_files import UnreadableWeights

ADAPTER, CONFIG, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json", "delta.json"
MODEL_CARD = "model_card.md"  # the model card of the version
PREFIX = "base_model.model."  # of a module's name in an adapter of peft
MOST_RANK = 512  # of an adapter; those who serve adapters take no more
PEFT, OTHER = "LORA", "UNLEARND"  # the type of an adapter that peft reads, and of one that it must not


class Base(TypedDict):
    """The version that a delta changes: its number, and the sha256 of each of its weights files."""

    version: int
    files: dict[str, str]


class Delta:
    """A folder with an adapter: a delta with its base, or the change from a parent alone."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            UnreadableWeights: It is none that this module has written.
        """
        self._file = TensorFile(folder / ADAPTER)
        try:
            config = json.loads((folder / CONFIG).read_bytes())
            self.transposed, self.rank = bool(config["fan_in_fan_out"]), int(config["r"])
            path = folder / DESCRIPTION
            description = json.loads(path.read_bytes() if path.is_file() else b"{}")
            self.for_peft = config["peft_type"] == PEFT
            self.base: Base | None = description.get("base")
            self.ranks = [int(rank) for rank in description.get("ranks", [self.rank])]
            if self.base is not None:
                self.base = {"version": int(self.base["version"]), "files": dict(self.base["files"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UnreadableWeights(CONFIG) from error
        names = self._file.tensors.keys()
        self.modules = sorted({name.removeprefix(PREFIX).rsplit(".", 2)[0] for name in names})
        pairs = {f"{PREFIX}{module}.lora_{letter}.weight" for module in self.modules for letter in "AB"}
        dtypes = {stored.dtype for stored in self._file.tensors.values()}
        if not names or names != pairs or dtypes not in ({"F32"}, {"BF16"}):
            raise UnreadableWeights(ADAPTER)
        if sum(self.ranks) != self.rank or min(self.ranks, default=0) < 1:
            raise UnreadableWeights(DESCRIPTION)
        (self.dtype,) = dtypes

    def stored(self, module: str) -> tuple[Array, Array]:
        """B [d, R] and A [R, k] of a module, as their stored bits.

        Raises:
            UnreadableWeights: They do not fit each other.
        """
        b, a = (self._file.read(f"{PREFIX}{module}.lora_{letter}.weight") for letter in "BA")
        if b.ndim != 2 or a.ndim != 2 or not b.shape[1] == a.shape[0] == self.rank:
            raise UnreadableWeights(ADAPTER)
        return b, a

    def factors(self, module: str) -> list[tuple[Array, Array]]:
        """The factors of a module's change for each version on the way that changes it, float32, as it is stored."""
        b, a = (decode(bits, self.dtype) for bits in self.stored(module))
        ends = np.cumsum(self.ranks)[:-1]
        pairs = zip(np.split(b, ends, axis=1), np.split(a, ends), strict=True)
        steps = [(left, right) for left, right in pairs if left.any() and right.any()]
        return [(right.T, left.T) if self.transposed else (left, right) for left, right in steps]


def write_adapter(
    folder: Path,
    factors: Mapping[str, tuple[Array, Array]],
    dtype: str,
    *,
    transposed: bool = False,
) -> None:
    """Write an adapter in the form that peft reads.

    Args:
        folder: An existing folder.
        factors: Module name -> (B [d, R], A [R, k]), as bits of `dtype`; R is the same for all.
        dtype: F32 or BF16.
        transposed: The model stores its weights as [k, d], as GPT-2's Conv1D.
    """
    tensors = {
        f"{PREFIX}{module}.lora_{letter}.weight": bits
        for module, pair in sorted(factors.items())
        for letter, bits in zip("BA", pair, strict=True)
    }
    ends = np.cumsum([0, *(bits.nbytes for bits in tensors.values())]).tolist()
    places = {
        name: Stored(dtype, bits.shape, *ends[index : index + 2]) for index, (name, bits) in enumerate(tensors.items())
    }
    with (folder / ADAPTER).open("wb") as file:
        file.write(file_header(places))
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())
    rank = next(iter(factors.values()))[1].shape[0]
    config = {
        "peft_type": PEFT,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "target_modules": sorted(factors),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def deny_peft(folder: Path) -> None:
    """Let an adapter say that it is none of peft's, which would serve a part of it: it finds no module for the rest."""
    config = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps({**config, "peft_type": OTHER}, indent=2) + "\n")


def write_delta(folder: Path, change: Delta, parent: Base, before: Delta | None) -> None:
    """Write the delta of a version: its own change behind those of the versions before it, since some base.

    Where the rank would pass MOST_RANK, the parent is the new base.

    Args:
        folder: An existing folder.
        change: The change from the parent alone.
        parent: The parent.
        before: The parent's own delta, if it has one.
    """
    if before is not None and (
        before.rank + change.rank > MOST_RANK or (before.dtype, before.transposed) != (change.dtype, change.transposed)
    ):
        before = None
    deltas = [*([before] if before else []), change]
    modules = sorted({module for delta in deltas for module in delta.modules})
    factors = {module: _side_by_side(deltas, module) for module in modules}
    write_adapter(folder, factors, change.dtype, transposed=change.transposed)
    if not all(delta.for_peft for delta in deltas):
        deny_peft(folder)
    base = before.base if before else parent
    description = {"base": base, "ranks": [rank for delta in deltas for rank in delta.ranks]}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def _side_by_side(deltas: Sequence[Delta], module: str) -> tuple[Array, Array]:
    """B [d, R] and A [R, k] of a module, of several deltas together; zeros for those that leave it as it is."""
    known = {delta: delta.stored(module) for delta in deltas if module in delta.modules}
    b, a = next(iter(known.values()))
    parts = [
        known.get(delta) or (np.zeros((len(b), delta.rank), b.dtype), np.zeros((delta.rank, a.shape[1]), a.dtype))
        for delta in deltas
    ]
    return np.hstack([b for b, _ in parts]), np.vstack([a for _, a in parts])
