"""Linear layers in float32 on a CPU through oneDNN.

torch gives these matrix products to MKL, which on other makers' processors does not use all of their instructions: on
a Zen 5 oneDNN is 2.2 times faster on every shape of the 125M model (`bench.engine`), on an Intel processor about
equal. torch has oneDNN's product as an operator of its own, made for its compiler; where that operator is missing,
torch's usual product runs.

n: rows, k: input features, d: output features
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from worker.engine.types import CausalLM, GradientContext, LinearLayer

BLOCK = 2**24  # weights in one product: 64 MiB
AVAILABLE: bool = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, without a gradient.

    Args:
        x: [..., k].
        weight: W [d, k], in any layout. A weight of 16 bits is widened for a float32 x, a block at a time.
        bias: [d].

    Returns:
        [..., d], of the dtype of x.
    """
    narrow = x.dtype == torch.float32 and weight.dtype in (torch.bfloat16, torch.float16)
    on_cpu = AVAILABLE and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel()
    if (narrow or on_cpu) and weight.numel() > BLOCK:
        return _linear_in_blocks(x, weight, bias)
    if narrow or (bias is not None and bias.dtype != x.dtype):
        return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if on_cpu:
        x, weight = _without_gaps(x), _without_gaps(weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, bias)


def _linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` on a block of the weight at a time: oneDNN copies a weight into its own layout for each product, and
    blocks bound that copy."""
    size = max(1, BLOCK // min(weight.shape))
    if weight.shape[0] >= weight.shape[1]:
        output = x.new_empty(*x.shape[:-1], weight.shape[0])
        for block in slices(weight.shape[0], size):
            output[..., block] = linear(x, weight[block], None if bias is None else bias[block])
        return output
    products = (linear(x[..., block], weight[:, block]) for block in slices(weight.shape[1], size))
    total = reduce(Tensor.add_, products)
    return total if bias is None else total + bias


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` that reach over `length`."""
    for start in range(0, length, size):
        yield slice(start, start + size)


def _without_gaps(matrix: Tensor) -> Tensor:
    """A copy if there are gaps between the rows: oneDNN is slow on those."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


@contextmanager
def fast_linear_layers(model: CausalLM) -> Iterator[None]:
    """Let the frozen float32 linear modules of a model on a CPU compute by `linear`, forward and backward."""
    plain = [m for m in model.modules() if type(m).forward in (nn.Linear.forward, Conv1D.forward)]
    patched = [m for m in plain if _can_patch(m)] if AVAILABLE else []
    for module in patched:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _can_patch(module: LinearLayer) -> bool:
    """Whether the module has its own forward, and weights on a CPU that are float32, or are when they are gathered."""
    weight = module.weight
    wide = isinstance(weight, nn.Parameter) and weight.dtype == torch.float32  # no view that reads as float32
    return weight.device.type == "cpu" and (wide or isinstance(weight, DTensor)) and "forward" not in vars(module)


def _forward(module: LinearLayer, x: Tensor) -> Tensor:
    """The forward of a patched module; a weight that is trained keeps the module's own forward."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    if torch.is_grad_enabled() and (module.weight.requires_grad or x.dtype != torch.float32):
        own_output: Tensor = type(module).forward(module, x)
        return own_output
    return frozen_linear(x, weight, module.bias)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with the gradient of x [..., k] alone: [..., d]."""
    output: Tensor = _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return output


class _FrozenLinear(torch.autograd.Function):
    """`linear` with the gradient of x alone."""

    @staticmethod
    def forward(ctx: GradientContext, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: GradientContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(grads[0], weight.T), None, None
