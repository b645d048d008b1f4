"""The change between two versions as a LoRA adapter, and weights files with such a change in them, to the bit.

    delta/adapter_model.safetensors   B [d, R] and A [R, k] of each adapted module; W' = W + B A
    delta/adapter_config.json         what peft needs to load them
    delta/delta.json                  which version they change, and the ranks of the versions on the way
    delta/model_card.md               the model card of the new version
    delta/README.md                   what the folder is for

A version's change has rank 2r: c (B A - B0 A0) = c (B - B0) A + c B0 (A - A0). The changes of the versions since some
base stand side by side in one adapter. The weights were rounded after each version, so they are rebuilt one version
after the other. An adapter on its base is rounded nowhere: it is near the merged weights, and is not them.

d: output features, k: input features, R: the sum of the ranks
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypedDict

import numpy as np

from service.low_rank import Array, LowRank, UndecidedSum, decode
from service.tensor_file import Stored, TensorFile, find_weight, stored_array
from service.weight_files import (
    INDEX,
    SINGLE,
    SUFFIX,
    ChangedFile,
    UnreadableWeights,
    check_unchanged,
    indexed,
    read_unchanged,
)

ADAPTER, CONFIG, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json", "delta.json"
MODEL_CARD = "model_card.md"  # the model card of the version
PREFIX = "base_model.model."  # of a module's name in an adapter of peft
MOST_RANK = 512  # of an adapter; those who serve adapters take no more
BLOCK, LEAST_ROWS = 1 << 18, 64  # numbers that are changed at a time, but in so many rows at least
COPIED = 1 << 22  # bytes that are copied at a time


class Digest(Protocol):
    """What a `hashlib` object does."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""
        ...


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


class ChangedWeights:
    """The weights files of a model with a delta's change in them; tensors that it does not name keep their bytes."""

    def __init__(self, source: Path, names: Iterable[str], delta: Delta) -> None:
        """Read the headers of the files `names` in `source`.

        Raises:
            UnreadableWeights: A file is unreadable, or the files have no weights for a module of the delta.
        """
        self._delta = delta
        self._files = {name: TensorFile(source / name) for name in names}
        present = {tensor for file in self._files.values() for tensor in file.tensors}
        self._modules: dict[str, str] = {}
        for module in delta.modules:
            tensor = find_weight(module, present)
            if tensor in self._modules:
                raise UnreadableWeights("two modules of the change name the same weights")
            self._modules[tensor] = module

    def file(self, name: str, original: Digest | None = None) -> Iterator[bytes]:
        """The bytes of one changed file. `original` takes in the bytes of the file as it is.

        Raises:
            UnreadableWeights: A tensor does not fit the file or its change, or cannot be changed so.
        """
        for before, after in self._parts(self._files[name]):
            if original is not None:
                original.update(before)
            yield after

    def _parts(self, tensors: TensorFile) -> Iterator[tuple[bytes, bytes]]:
        """The file in pieces, before and after the change."""
        with tensors.path.open("rb") as file:
            header = file.read(len(tensors.header))
            yield header, header
            for name, stored in tensors.tensors.items():
                if name in self._modules:
                    yield from _changed_rows(file, name, stored, self._delta.factors(self._modules[name]))
                    continue
                for size in _sizes(stored.end - stored.start, COPIED):
                    data = file.read(size)
                    yield data, data


def _changed_rows(
    file: BinaryIO, name: str, stored: Stored, factors: Sequence[tuple[Array, Array]]
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of one tensor, some at a time, before and after its changes, one version's after the other's."""
    fits = len(stored.shape) == 2 and all((len(b), a.shape[1]) == stored.shape for b, a in factors)
    if not fits or stored.start == stored.end:
        raise UnreadableWeights(f"{name}: the change is of another shape")
    changes = [LowRank(left, right) for left, right in factors]
    (rows, width), begin = stored.shape, 0
    for count in _sizes(rows, max(LEAST_ROWS, BLOCK // width)):
        data = file.read(count * (stored.end - stored.start) // rows)
        bits = stored_array(data, Stored(stored.dtype, (count, width), 0, len(data)), name)
        try:
            for change in changes:
                bits = change.add(bits, stored.dtype, begin)
        except (OverflowError, UndecidedSum) as error:
            raise UnreadableWeights(f"{name}: {error}") from error
        yield data, bits.tobytes()
        begin += count


def _sizes(total: int, most: int) -> Iterator[int]:
    """`total` in parts of at most `most`."""
    for start in range(0, total, most):
        yield min(most, total - start)


def write_adapter(
    folder: Path, factors: Mapping[str, tuple[Array, Array]], dtype: str, *, transposed: bool = False
) -> None:
    """Write an adapter as peft reads it.

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
    members: dict[str, object] = {
        name: {"dtype": dtype, "shape": bits.shape, "data_offsets": ends[index : index + 2]}
        for index, (name, bits) in enumerate(tensors.items())
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **members}).encode()
    header += b" " * (-len(header) % 8)
    with (folder / ADAPTER).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())
    rank = next(iter(factors.values()))[1].shape[0]
    config = {
        "peft_type": "LORA",
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


def is_merged_from(digests: Mapping[str, str], parent: Path, parent_digests: Mapping[str, str], change: Delta) -> bool:
    """Whether a candidate is its parent with a change in its weights, to the bit, and nothing else.

    Every file that is no weights file has the parent's bytes. The model card is left out: control writes it.

    Args:
        digests: Path in the folder -> sha256 of each file of the candidate.
        parent: The parent's model folder.
        parent_digests: The same of the parent, as the database has them. Its weights are checked against them.
        change: The change from the parent.

    Raises:
        ChangedFile: A file of the parent is not the one that the database has.
    """

    def plain(of: Mapping[str, str]) -> dict[str, str]:
        return {path: digest for path, digest in of.items() if not path.endswith(SUFFIX) and path != "README.md"}

    single = SINGLE in parent_digests
    names = [SINGLE] if single else indexed(read_unchanged(parent / INDEX, parent_digests.get(INDEX, "")))
    if plain(digests) != plain(parent_digests) or {path for path in digests if path.endswith(SUFFIX)} != set(names):
        return False
    try:
        weights = ChangedWeights(parent, names, change)
        return all(_is_changed_file(weights, name, digests[name], parent_digests.get(name)) for name in names)
    except UnreadableWeights:
        check_unchanged(parent, {name: parent_digests.get(name, "") for name in names})
        return False


def _is_changed_file(weights: ChangedWeights, name: str, digest: str, original: str | None) -> bool:
    """Whether the changed file has a digest. It is made of the bytes that are checked against `original`."""
    before, after = hashlib.sha256(), hashlib.sha256()
    for part in weights.file(name, before):
        after.update(part)
    if before.hexdigest() != original:
        raise ChangedFile(name)
    return after.hexdigest() == digest
