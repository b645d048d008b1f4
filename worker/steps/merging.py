"""The merge on files: the change as an adapter, and the parent's weights files with it."""

import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from service.changed_weights import ChangedWeights
from service.delta import Delta, deny_peft, write_adapter
from service.low_rank import Array, encode
from service.tensor_file import find_weight, stored_tensors
from service.weight_files import SUFFIX, UnreadableWeights, loaded_weights
from worker.engine.adapter import find_targets, target_weights
from worker.engine.errors import UnmergedModule
from worker.engine.experts import separate_experts
from worker.engine.merge import change_factors
from worker.engine.progress import Progress, no_progress
from worker.engine.types import AdapterState, CausalLM
from worker.steps.places import Place, stored_places

logger = logging.getLogger(__name__)


def check_names(source: Path, suffixes: Sequence[str] | None) -> None:
    """Check, before anything is computed, that the files have weights of every module that will be adapted, as large.

    Args:
        source: The parent's folder.
        suffixes: The policy's `target_modules`.

    Raises:
        UnmergedModule: They name one otherwise.
        UnknownPlugin: The model has no such modules.
    """
    stored = stored_tensors(source)
    model = without_weights(source)
    weights = target_weights(model, find_targets(model, suffixes))
    try:
        for module, places in stored_places(model, list(weights)).items():
            for place in places:
                tensor, index = find_weight(place.name, stored)
                shape = stored[tensor].shape[0 if index is None else 1 :]
                if sorted(shape) != sorted(place.part(weights[module]).shape):
                    raise UnmergedModule(f"target_modules: {module} has another shape in the model's files")
    except UnreadableWeights as error:
        raise UnmergedModule(str(error)) from error


def without_weights(source: Path, *, separate: bool = True) -> CausalLM:
    """The model of a folder, on the device that holds no numbers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    if separate:
        separate_experts(model)
    return model


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
    model = without_weights(source)
    stored = {tensor: one.dtype for tensor, one in stored_tensors(source).items()}
    changes = change_factors(state, scale)
    transposed = {isinstance(model.get_submodule(name), Conv1D) for name in changes}
    if len(transposed) > 1:
        raise UnmergedModule("some adapted modules store their weights transposed, others do not")
    factors = {
        place.name: _part(place, *changes[name])
        for name, places in stored_places(model, list(changes)).items()
        for place in places
    }
    try:
        dtypes = {stored[find_weight(name, stored)[0]] for name in factors}
    except UnreadableWeights as error:
        raise UnmergedModule(str(error)) from error
    dtype = "BF16" if dtypes == {"BF16"} else "F32"
    bits = {name: (_bits(b, dtype), _bits(a, dtype)) for name, (b, a) in factors.items()}
    write_adapter(target, bits, dtype, transposed=transposed.pop())
    if not _peft_reads(source, target):
        deny_peft(target)


def _peft_reads(source: Path, adapter: Path) -> bool:
    """Whether peft finds a module of the model for each factor. It does not where files name weights otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the numbers of a model without memory are not loaded
            served = PeftModel(without_weights(source, separate=False), LoraConfig.from_pretrained(adapter))
            return not served.load_adapter(adapter, "default", torch_device="cpu").unexpected_keys
    except Exception as error:  # whatever it raises for a family whose experts it cannot take apart
        logger.info("peft does not read this change: %s", type(error).__name__)
        return False


def _part(place: Place, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """B [d, R] and A [R, k] of what is kept in one place, of a module's."""
    return (a.T, place.part(b).T) if place.transposed else (place.part(b), a)


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
