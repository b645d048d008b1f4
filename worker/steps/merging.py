"""The merge on files: the change as an adapter, and the parent's weights files with it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from service.delta import ChangedWeights, Delta, write_adapter
from service.low_rank import Array, encode
from service.tensor_file import TensorFile, find_weight
from service.weight_files import SUFFIX, UnreadableWeights, loaded_weights
from worker.engine.adapter import find_targets
from worker.engine.errors import UnmergedModule
from worker.engine.merge import change_factors
from worker.engine.progress import Progress, no_progress
from worker.engine.types import AdapterState, CausalLM


def check_names(source: Path, suffixes: Sequence[str] | None) -> None:
    """Check, before anything is computed, that the files have weights of every module that will be adapted.

    Args:
        source: The parent's folder.
        suffixes: The policy's `target_modules`.

    Raises:
        UnmergedModule: They name one otherwise.
        UnknownPlugin: The model has no such modules.
    """
    present = {tensor for name in loaded_weights(source) for tensor in TensorFile(source / name).tensors}
    try:
        for module in find_targets(_without_weights(source), suffixes):
            find_weight(module, present)
    except UnreadableWeights as error:
        raise UnmergedModule(str(error)) from error


def _without_weights(source: Path) -> CausalLM:
    """The model of a folder, on the device that holds no numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))


def make_candidate(source: Path, target: Path, state: AdapterState, scale: float, progress: Progress) -> None:
    """Make the parent's folder with new weights, and beside it the change; other files are copied unchanged.

    The parent's model card is left out.

    Args:
        source: The parent's folder.
        target: The folder to make; the change is `change/` beside it. Whatever is there is removed.
        state: The result of `Adapter.state`.
        scale: c.
        progress: As in `merge_files`.
    """
    shutil.rmtree(target.parent, ignore_errors=True)
    shutil.copytree(
        source,
        target,
        ignore=lambda folder, names: [
            name for name in names if name.endswith(SUFFIX) or (name == "README.md" and Path(folder) == source)
        ],
    )
    change = target.with_name("change")
    change.mkdir()
    write_change(source, change, state, scale)
    merge_files(source, target, change, progress)


def write_change(source: Path, target: Path, state: AdapterState, scale: float) -> None:
    """Write the change of a run as an adapter: in bfloat16 if the weights are stored so, otherwise in float32.

    Args:
        source: The parent's folder.
        target: An existing folder.
        state: The result of `Adapter.state`.
        scale: c.
    """
    model = _without_weights(source)
    files = [TensorFile(source / name) for name in loaded_weights(source)]
    stored = {tensor: one.dtype for file in files for tensor, one in file.tensors.items()}
    factors = change_factors(state, scale)
    try:
        dtypes = {stored[find_weight(module, stored)] for module in factors}
    except UnreadableWeights as error:
        raise UnmergedModule(str(error)) from error
    dtype = "BF16" if dtypes == {"BF16"} else "F32"
    transposed = {isinstance(model.get_submodule(name), Conv1D) for name in factors}
    if len(transposed) > 1:
        raise UnmergedModule("some adapted modules store their weights transposed, others do not")
    bits = {name: (_bits(b, dtype), _bits(a, dtype)) for name, (b, a) in factors.items()}
    write_adapter(target, bits, dtype, transposed=transposed.pop())


def _bits(factor: Tensor, dtype: str) -> Array:
    """A factor as it is stored."""
    return encode(factor.numpy().astype("<f8"), dtype)


def merge_files(source: Path, target: Path, change: Path, progress: Progress = no_progress) -> None:
    """Write a model's weights files with a change in them, a few rows of one tensor in memory at a time.

    The files keep their names and their form, and every tensor that is not adapted keeps its bytes.

    Args:
        source: The folder of the base.
        target: The folder for the new files, in which all parent folders exist.
        change: The folder with the change.
        progress: Called with the fraction of the files that are written, 0..1.

    Raises:
        UnmergedModule: The files do not hold the weights of a module under its name, or a weight became too large.
    """
    names = loaded_weights(source)
    try:
        weights = ChangedWeights(source, names, Delta(change))
        for index, name in enumerate(names):
            progress(index / len(names))
            with (target / name).open("wb") as file:
                file.writelines(weights.file(name))
    except UnreadableWeights as error:
        raise UnmergedModule(str(error)) from error
