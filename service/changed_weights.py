"""Weights files with a delta's change in them, to the bit: a few rows of one tensor in memory at a time.

d: output features, k: input features, e: matrices in a stack
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from service.delta import Delta
from service.low_rank import Array, LowRank, UndecidedSum
from service.tensor_file import Stored, TensorFile, copied, find_weight, sizes, stored_array
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

BLOCK, LEAST_ROWS = 1 << 18, 64  # numbers that are changed at a time, but in so many rows at least


class Digest(Protocol):
    """What a `hashlib` object does."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""
        ...


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
        self._modules: dict[str, dict[int | None, str]] = {}
        for module in delta.modules:
            tensor, index = find_weight(module, present)
            if index in self._modules.setdefault(tensor, {}):
                raise UnreadableWeights("two modules of the change name the same weights")
            self._modules[tensor][index] = module

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
                changed = self._modules.get(name, {})
                for index, part in _matrices(name, stored, changed):
                    if index in changed:
                        yield from _changed_rows(file, name, part, self._delta.factors(changed[index]))
                        continue
                    yield from ((data, data) for data in copied(file, part))


def _matrices(name: str, stored: Stored, changed: Collection[int | None]) -> Iterator[tuple[int | None, Stored]]:
    """A tensor, or (index, matrix) of stacked matrices [e, d, k] of which some are changed."""
    stack = [index for index in changed if index is not None]
    if not stack:
        yield None, stored
        return
    if len(stored.shape) != 3 or max(stack) >= stored.shape[0] or None in changed:
        raise UnreadableWeights(f"{name}: the change is of another shape")
    size, rest = divmod(stored.end - stored.start, stored.shape[0])
    if rest:
        raise UnreadableWeights(f"{name}: its bytes are not those of its shape")
    for index in range(stored.shape[0]):
        start = stored.start + index * size
        yield index, Stored(stored.dtype, stored.shape[1:], start, start + size)


def _changed_rows(
    file: BinaryIO, name: str, stored: Stored, factors: Sequence[tuple[Array, Array]]
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of one tensor, some at a time, before and after its changes, one version's after the other's."""
    fits = len(stored.shape) == 2 and all((len(b), a.shape[1]) == stored.shape for b, a in factors)
    if not fits or stored.start == stored.end:
        raise UnreadableWeights(f"{name}: the change is of another shape")
    changes = [LowRank(left, right) for left, right in factors]
    (rows, width), begin = stored.shape, 0
    for count in sizes(rows, max(LEAST_ROWS, BLOCK // width)):
        data = file.read(count * (stored.end - stored.start) // rows)
        bits = stored_array(data, Stored(stored.dtype, (count, width), 0, len(data)), name)
        try:
            for change in changes:
                bits = change.add(bits, stored.dtype, begin)
        except (OverflowError, UndecidedSum) as error:
            raise UnreadableWeights(f"{name}: {error}") from error
        yield data, bits.tobytes()
        begin += count


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
