"""Quantised copies of a model's folder in the form of compressed-tensors, which transformers and vLLM load.

No torch is needed. A copy is a function of the model. So it is made where it is needed, and compared with the digests
of a certificate.
"""

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.files import file_sha256
from service.low_rank import STORED, Array
from service.quantised import SCHEMES, Scheme
from service.tensor_file import Stored, TensorFile, copied, file_header, sizes, stored_array
from service.weight_files import INDEX, SUFFIX, UnreadableWeights, loaded_weights

CONFIG, WEIGHT = "config.json", ".weight"
MOST_KEPT = 8  # modules that stay although the scheme fits them: head and embeddings
HEADS = {"lm_head", "embed_out", "output_projection"}  # which have no weights stored if they are the embedding's
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
BLOCK = 1 << 20  # numbers that are rounded at a time


def write_quantised(
    source: Path, target: Path, scheme: str, kept: Collection[str], progress: Callable[[float], None] = lambda _: None
) -> dict[str, str]:
    """Write a quantised copy of a model.

    Args:
        source: The model's folder.
        target: The folder to make.
        scheme: A name in SCHEMES.
        kept: The modules whose weights stay as they are.
        progress: Called with the fraction of the files that are written, 0..1.

    Returns:
        Path -> sha256 of each file that is not a copy of the model's.

    Raises:
        UnreadableWeights: A weights file is unreadable, or a matrix that is not kept cannot be rounded so.
    """
    names = loaded_weights(source)
    _copy_others(source, target)
    where, total = dict[str, str](), 0
    for index, name in enumerate(names):
        progress(index / len(names))
        tensors = _write_file(TensorFile(source / name), target / name, SCHEMES[scheme], kept)
        where |= dict.fromkeys(tensors, name)
        total += sum(stored.end - stored.start for stored in tensors.values())
    if (target / INDEX).is_file():
        contents = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (target / INDEX).write_text(json.dumps(contents, indent=2) + "\n")
    config = json.loads((source / CONFIG).read_bytes())
    config["quantization_config"] = _configuration(SCHEMES[scheme], kept)
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    changed = [*names, CONFIG, *([INDEX] if (target / INDEX).is_file() else [])]
    return {name: file_sha256(target / name) for name in sorted(changed)}


def _configuration(scheme: Scheme, kept: Collection[str]) -> dict[str, object]:
    """What loaders of compressed-tensors read."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if scheme.group else "channel",
        "group_size": scheme.group,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": sorted(kept),
    }


def _is_rounded(name: str, stored: Stored, kept: Collection[str]) -> bool:
    """Whether a tensor is rounded: it is the matrix of a module that is not kept."""
    return name.endswith(WEIGHT) and len(stored.shape) == 2 and name.removesuffix(WEIGHT) not in kept


def _write_file(source: TensorFile, target: Path, scheme: Scheme, kept: Collection[str]) -> dict[str, Stored]:
    """Write one weights file; returns its tensors."""
    rounded = {name for name, stored in source.tensors.items() if _is_rounded(name, stored, kept)}
    tensors = _laid_out(source.tensors, rounded, scheme)
    header = file_header(tensors)
    with source.path.open("rb") as old, target.open("xb") as new:
        new.write(header)
        for name, stored in source.tensors.items():
            old.seek(len(source.header) + stored.start)
            if name not in rounded:
                new.seek(len(header) + tensors[name].start)
                new.writelines(copied(old, stored))
                continue
            module = name.removesuffix(WEIGHT)
            scales = []
            new.seek(len(header) + tensors[module + PACKED].start)
            for bits in _blocks(old, stored, name):
                try:
                    words, of_block = scheme.packed(bits, stored.dtype)
                except ValueError as error:
                    raise UnreadableWeights(f"{name}: {error}") from error
                new.write(words.tobytes())
                scales.append(of_block.tobytes())
            new.seek(len(header) + tensors[module + SCALE].start)
            new.writelines(scales)
            new.seek(len(header) + tensors[module + SHAPE].start)
            new.write(np.array(stored.shape, "<i8").tobytes())
    return tensors


def write_rounded(
    source: Path, quantised: Path, target: Path, scheme: str, progress: Callable[[float], None] = lambda _: None
) -> None:
    """Write the model that a quantised copy stands for: the source's folder, with the rounded weights in its dtype.

    Args:
        source: The model's folder.
        quantised: What `write_quantised` made of it.
        target: The folder to make.
        scheme: A name in SCHEMES.
        progress: Called with the fraction of the files that are written, 0..1.
    """
    _copy_others(source, target)
    names = loaded_weights(source)
    for index, name in enumerate(names):
        progress(index / len(names))
        before, after = TensorFile(source / name), TensorFile(quantised / name)
        with before.path.open("rb") as old, after.path.open("rb") as packed, (target / name).open("xb") as new:
            new.write(before.header)
            for tensor, stored in before.tensors.items():
                if tensor in after.tensors:
                    old.seek(len(before.header) + stored.start)
                    new.writelines(copied(old, stored))
                else:
                    new.writelines(_unpacked(packed, after, tensor.removesuffix(WEIGHT), stored, SCHEMES[scheme]))


def _copy_others(source: Path, target: Path) -> None:
    """Make a copy of a folder without its weights files."""
    weights = shutil.ignore_patterns(f"*{SUFFIX}")
    shutil.copytree(source, target, ignore=weights, copy_function=shutil.copyfile)  # a copy can be written to


def _unpacked(file: BinaryIO, tensors: TensorFile, module: str, stored: Stored, scheme: Scheme) -> Iterator[bytes]:
    """The rows of a rounded matrix as its dtype stores them, some at a time."""
    words, scales = (tensors.tensors[module + part] for part in (PACKED, SCALE))
    file.seek(len(tensors.header) + scales.start)
    of_rows = stored_array(file.read(scales.end - scales.start), scales, module)
    file.seek(len(tensors.header) + words.start)
    (rows, width), begin = stored.shape, 0
    for count in sizes(rows, max(1, BLOCK // width)):
        block = np.frombuffer(file.read(count * 4 * words.shape[1]), "<i4").reshape(count, -1)
        yield scheme.unpacked(block, of_rows[begin : begin + count], stored.dtype, width).tobytes()
        begin += count


def _laid_out(source: Mapping[str, Stored], rounded: Collection[str], scheme: Scheme) -> dict[str, Stored]:
    """The tensors of a quantised file, each at a multiple of its numbers' size: those of the largest numbers first."""
    parts: list[tuple[int, str, str, tuple[int, ...], int]] = []
    for name, stored in source.items():
        if name not in rounded:
            size = stored.end - stored.start
            parts.append((size // max(1, math.prod(stored.shape)), name, stored.dtype, stored.shape, size))
            continue
        if not scheme.fits(stored):
            raise UnreadableWeights(f"{name}: the scheme does not fit its shape or dtype")
        module, (rows, width) = name.removesuffix(WEIGHT), stored.shape
        number = np.dtype(STORED[stored.dtype]).itemsize
        groups, words = scheme.groups(width), scheme.words(width)
        parts.append((4, module + PACKED, "I32", (rows, words), 4 * rows * words))
        parts.append((number, module + SCALE, stored.dtype, (rows, groups), number * rows * groups))
        parts.append((8, module + SHAPE, "I64", (2,), 16))
    tensors, start = dict[str, Stored](), 0
    for _, name, dtype, shape, size in sorted(parts, key=lambda part: (-part[0], part[1])):
        tensors[name] = Stored(dtype, shape, start, start + size)
        start += size
    return tensors


def _blocks(file: BinaryIO, stored: Stored, name: str) -> Iterator[Array]:
    """The rows of a matrix as they are stored, some at a time."""
    rows, width = stored.shape
    for count in sizes(rows, max(1, BLOCK // width)):
        data = file.read(count * (stored.end - stored.start) // rows)
        yield stored_array(data, Stored(stored.dtype, (count, width), 0, len(data)), name)
