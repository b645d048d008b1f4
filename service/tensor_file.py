"""A safetensors file whose tensors are read one at a time, as their stored bits. No torch is needed."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.low_rank import STORED, Array
from service.weight_files import MOST_HEADER, UnreadableWeights, loaded_weights

COPIED = 1 << 22  # bytes that are copied at a time
ALIGNMENT = 8  # of the first tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file: its dtype, its shape, and where its bytes begin and end behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file whose tensors are read one at a time."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UnreadableWeights: It is no header of such a file, or the tensors do not fill the rest of the file.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                length = file.read(8)
                size = int.from_bytes(length, "little")
                self.header = length + file.read(size if size <= MOST_HEADER else 0)
            members = {name: one for name, one in json.loads(self.header[8:]).items() if name != "__metadata__"}
            self.tensors = dict(sorted(map(_stored, members.items()), key=lambda item: (item[1].start, item[1].end)))
            rest = path.stat().st_size - len(self.header)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnreadableWeights(path.name) from error
        ends = [stored.end for stored in self.tensors.values()]
        if [stored.start for stored in self.tensors.values()] != [0, *ends][: len(ends)] or rest != (ends or [0])[-1]:
            raise UnreadableWeights(path.name)

    def read(self, name: str) -> Array:
        """One tensor, as its stored bits.

        Raises:
            UnreadableWeights: Its dtype is none that is changed, or the file ends too early.
        """
        stored = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(len(self.header) + stored.start)
            return stored_array(file.read(stored.end - stored.start), stored, self.path.name)


def file_header(tensors: Mapping[str, Stored]) -> bytes:
    """The header of a file with these tensors, its length included."""
    members: dict[str, object] = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": (one.start, one.end)}
        for name, one in tensors.items()
    }
    content = json.dumps({"__metadata__": {"format": "pt"}, **members}).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return len(content).to_bytes(8, "little") + content


def tensor_files(folder: Path) -> list[TensorFile]:
    """The weights files that transformers loads from a model's folder.

    Raises:
        UnreadableWeights: There are none, or one of them is unreadable.
    """
    return [TensorFile(folder / name) for name in loaded_weights(folder)]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Name -> what the header says of each tensor of these files.

    Raises:
        UnreadableWeights: There are none, or one of them is unreadable.
    """
    return {name: one for file in tensor_files(folder) for name, one in file.tensors.items()}


def _stored(member: tuple[str, dict[str, object]]) -> tuple[str, Stored]:
    """A tensor's name, and what the header says of it.

    Raises:
        ValueError, KeyError, TypeError: It says something else.
    """
    name, given = member
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or not isinstance(dtype, str):
        raise TypeError(name)
    start, end = offsets
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)) or start > end:
        raise ValueError(name)
    return name, Stored(dtype, tuple(shape), start, end)


def stored_array(data: bytes, stored: Stored, name: str) -> Array:
    """Bytes of a tensor, as an array of its shape.

    Raises:
        UnreadableWeights: They are too few or too many, or of a dtype that is not changed.
    """
    if stored.dtype not in STORED or len(data) != math.prod(stored.shape) * np.dtype(STORED[stored.dtype]).itemsize:
        raise UnreadableWeights(name)
    return np.frombuffer(data, STORED[stored.dtype]).reshape(stored.shape)


def copied(file: BinaryIO, stored: Stored) -> Iterator[bytes]:
    """The bytes of a tensor as they are, in pieces, from where a file is read next."""
    return (file.read(size) for size in sizes(stored.end - stored.start, COPIED))


def sizes(total: int, most: int) -> Iterator[int]:
    """`total` in parts of at most `most`."""
    return (min(most, total - start) for start in range(0, total, most))


def find_weight(module: str, present: Collection[str]) -> tuple[str, int | None]:
    """The name of a module's weights among those of the files.

    Args:
        module: Its name; `experts.down_proj.3` is also the matrix 3 of a tensor `experts.down_proj`.
        present: The names of the files' tensors.

    Returns:
        The name; of stacked matrices with the index of one.

    Raises:
        UnreadableWeights: It is not there.
    """
    # Files of a base model without a head are named without the first part of a module's name, which is a word.
    first, _, rest = module.partition(".")
    for name in (module, *([rest] if re.fullmatch(r"[a-z][a-z0-9_]{0,19}", first) else [])):
        if f"{name}.weight" in present:
            return f"{name}.weight", None
        stack, _, index = name.rpartition(".")
        for tensor in (stack, f"{stack}.weight"):
            if re.fullmatch(r"0|[1-9][0-9]{0,5}", index) and tensor in present:
                return tensor, int(index)
    raise UnreadableWeights("the files have no weights of one of the modules")
