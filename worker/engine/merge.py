"""Merging: W' = W + c (B A - B0 A0), once, in float32, from the pristine base: a model in memory, or its files.

d: output features, k: input features, r: rank
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from worker.engine.errors import UnmergedModule
from worker.engine.types import AdapterState, CausalLM

MERGED_MARK = "_unlearnd_merged"


def delta(state: AdapterState, name: str, scale: float) -> Tensor:
    """c (B A - B0 A0) of one module, float32 [d, k]."""
    a, b, a0, b0 = (state[f"{name}|{factor}"] for factor in ("A", "B", "A0", "B0"))
    return scale * (b @ a - b0 @ a0)


def shrunk(state: AdapterState, strength: float) -> AdapterState:
    """The state whose change is `strength` times that of `state`."""
    return {key: value * strength if key.endswith(("|B", "|B0")) else value for key, value in state.items()}


def module_names(state: AdapterState) -> list[str]:
    """The names of the adapted modules in a state, sorted."""
    return sorted({key.rsplit("|", 1)[0] for key in state})


def merge_into(model: CausalLM, state: AdapterState, scale: float) -> None:
    """Add the adapter's change to a freshly loaded base, computing in float32 and rounding once.

    Args:
        model: The pristine base without adapters; its weights are changed in place, in their own dtype.
        state: The result of `Adapter.state`.
        scale: c.

    Raises:
        ValueError: This very model was merged into before; to merge twice is always a mistake.
    """
    if getattr(model, MERGED_MARK, False):
        raise ValueError("this model was merged already; load the base again")
    setattr(model, MERGED_MARK, True)
    with torch.no_grad():
        for name in module_names(state):
            weight = model.get_submodule(name).weight
            weight.copy_(_merged(weight, _change(model, state, name, scale)))


def merge_files(source: Path, target: Path, names: Sequence[str], state: AdapterState, scale: float) -> None:
    """Write a model's weights files with the adapter's change in them, one file in memory at a time.

    The files and their tensors keep their names, dtypes and shapes, and every other tensor keeps its bytes.

    Args:
        source: The folder of the base.
        target: The folder for the new files, in which all parent folders exist.
        names: The weights files that a model is loaded from.
        state: The result of `Adapter.state`.
        scale: c.

    Raises:
        UnmergedModule: The files do not hold the weights of a module under its name.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    prefix = f"{model.base_model_prefix}."  # files of a base model without a head are named without it
    modules = {f"{name}.weight": name for name in module_names(state)}
    modules |= {key.removeprefix(prefix): name for key, name in modules.items()}
    missing = set(module_names(state))
    for file in names:
        with safe_open(source / file, framework="pt") as weights:
            tensors = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118  # it is no mapping
            metadata = weights.metadata()
        for key in tensors.keys() & modules.keys():
            tensors[key] = _merged(tensors[key], _change(model, state, modules[key], scale))
            missing.remove(modules[key])
        save_file(tensors, target / file, metadata)
    if missing:
        raise UnmergedModule(f"{len(missing)} adapted modules have no weights of their name in the files")


def _change(model: CausalLM, state: AdapterState, name: str, scale: float) -> Tensor:
    """The change of one module, in the orientation of its weight."""
    change = delta(state, name, scale)
    return change.T if isinstance(model.get_submodule(name), Conv1D) else change


def _merged(weight: Tensor, change: Tensor) -> Tensor:
    """The weight with its change, computed in float32 and rounded once."""
    return (weight.float() + change.to(weight.device)).to(weight.dtype).contiguous()
