"""Where and in which precision a model runs, and argmax decided in float32.

b: batch, s: sequence, h: hidden, v: vocabulary
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def resolve_device(name: str = "auto") -> torch.device:
    """The device a policy names; "auto" takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype a policy names; "auto" is bfloat16 on CUDA that has it, float32 otherwise."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def measuring(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and the output head computed in float32.

    bfloat16 logits tie often and change with the batch's shape; the head alone in float32 settles the
    argmax (METHOD, metrics). Whatever follows the head (soft-capping, scaling) then runs in float32 too.
    """
    head, training = model.get_output_embeddings(), model.training

    def in_float32(module: nn.Linear, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.float()
        return nn.functional.linear(args[0].float(), module.weight.float(), bias)

    needed = isinstance(head, nn.Linear) and head.weight.dtype != torch.float32
    hook = head.register_forward_hook(in_float32) if needed else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        if hook is not None:
            hook.remove()
