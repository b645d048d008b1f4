"""Merging: W' = W + c (B A - B0 A0), once, in float32, from the pristine base.

d: output features, k: input features, r: rank
"""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

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
            module = model.get_submodule(name)
            change = delta(state, name, scale).to(module.weight.device)
            module.weight.copy_(module.weight.float() + (change.T if isinstance(module, Conv1D) else change))


def change_factors(state: AdapterState, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The change as a plain LoRA of twice the rank: c (B A - B0 A0) = c (B - B0) A + c B0 (A - A0).

    Written so, a rounding of the factors changes the result relative to the change; in B A - B0 A0 it would be relative
    to the far larger B A.

    Args:
        state: The result of `Adapter.state`.
        scale: c.

    Returns:
        Module name -> (B [d, 2r], A [2r, k]), float32.
    """
    factors = {}
    for name in module_names(state):
        a, b, a0, b0 = (state[f"{name}|{factor}"] for factor in ("A", "B", "A0", "B0"))
        factors[name] = (torch.cat([scale * (b - b0), scale * b0], 1), torch.cat([a, a - a0]))
    return factors
