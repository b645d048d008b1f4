"""Matrix products of float32 on a CPU through oneDNN.

torch gives them to MKL, which on other makers' processors does not use all of their instructions: on a Zen 5 oneDNN
is 2.2 times faster on every shape of the 125M model (`bench.engine`), on an Intel processor about equal. torch
has oneDNN's product as an operator of its own, made for its compiler; where it is missing, torch's usual one runs.

n: rows, k: input features, d: output features
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

BLOCK = 2**24  # weights in one product: 64 MiB
AVAILABLE: bool = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, without a gradient.

    Args:
        x: [..., k].
        weight: W [d, k], in any layout.
        bias: [d].

    Returns:
        [..., d].
    """
    if AVAILABLE and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel():
        if weight.numel() <= BLOCK:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
            return found
        return _in_blocks(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def _in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN copies a weight into its own layout for each product; this bounds the copy."""
    size = max(1, BLOCK // min(weight.shape))
    if weight.shape[0] >= weight.shape[1]:
        found = x.new_empty(*x.shape[:-1], weight.shape[0])
        for part in _slices(weight.shape[0], size):
            found[..., part] = product(x, weight[part], None if bias is None else bias[part])
        return found
    parts = (product(x[..., part], weight[:, part]) for part in _slices(weight.shape[1], size))
    total = reduce(Tensor.add_, parts)
    return total if bias is None else total + bias


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _dense(matrix: Tensor) -> Tensor:
    """A copy if there are gaps between the rows: oneDNN has only slow code for those."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Let the frozen float32 linear modules of a model on a CPU compute by `product`, forward and backward."""
    patched = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D) and _fits(m)] if AVAILABLE else []
    for module in patched:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _fits(module: Any) -> bool:
    weight = module.weight
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and "forward" not in vars(module))


def _forward(module: Any, x: Tensor) -> Tensor:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    if torch.is_grad_enabled() and (module.weight.requires_grad or x.dtype != torch.float32):
        found: Tensor = type(module).forward(module, x)
        return found
    product_of: Tensor = _Product.apply(x, weight, module.bias)  # type: ignore[no-untyped-call]
    return product_of


class _Product(torch.autograd.Function):
    """`product` with the gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(grads[0], weight.T), None, None
