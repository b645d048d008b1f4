"""Losses that never hold all logits: a closed-form gradient on some rows at a time.

A *row rule* takes logits [n, v] and targets [n] and returns each row's loss and its gradient on the logits, in
closed form. From it come two functions: `of_logits`, for logits that are there already, and `of_hidden`, which runs
the model's head on a chunk of hidden states, takes the chunk's gradient back to them at once, and lets its logits
go. Nothing is computed twice: the two matrix products a head needs (logits, gradient of the hidden states) are all.

b: batch, s: sequence, h: hidden, v: vocabulary, n: rows (predicted tokens)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker.engine.head import Head

IGNORE_INDEX = -100
RowRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # [n, v], [n] -> loss [n], its gradient [n, v]


def of_logits(logits: Tensor, labels: Tensor, rule: RowRule, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean of a rule over all predicted tokens.

    Args:
        logits: [b, s, v], of the positions in order; the shift by one happens here.
        labels: [b, s], the input ids; `ignore_index` where there is nothing to predict.
        rule: The row rule.
        ignore_index: The label that marks positions without a prediction.

    Returns:
        A scalar, float32 or wider; 0 if no label counts.
    """
    targets = labels[:, 1:].reshape(-1)
    counted = targets != ignore_index
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])[counted]
    total: Tensor = _OfLogits.apply(rows, targets[counted], rule)  # type: ignore[no-untyped-call]
    return total / max(int(counted.sum()), 1)


def of_hidden(head: Head, hidden: Tensor, labels: Tensor, rule: RowRule) -> Tensor:
    """Sum of a rule over all predicted tokens, from hidden states; the head's own weights get no gradient.

    Args:
        head: The model's head.
        hidden: [b, s, h], the last hidden states.
        labels: [b, s], the input ids; IGNORE_INDEX where there is nothing to predict.
        rule: The row rule.

    Returns:
        A scalar, float32 or wider.
    """
    targets = labels[:, 1:].reshape(-1)
    counted = targets != IGNORE_INDEX
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])[counted]
    total: Tensor = _OfHidden.apply(rows, targets[counted], head, rule)  # type: ignore[no-untyped-call]
    return total


class _OfLogits(torch.autograd.Function):
    """Sum of a rule over rows of logits [n, v]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, rule: RowRule) -> Tensor:
        losses, gradient = rule(rows if rows.dtype == torch.float64 else rows.float(), targets)
        ctx.save_for_backward(gradient.to(rows.dtype))
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


class _OfHidden(torch.autograd.Function):
    """Sum of a rule over rows of hidden states [n, h]; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, head: Head, rule: RowRule) -> Tensor:
        gradient = torch.empty_like(rows)
        total = torch.zeros((), dtype=torch.float64)
        for start, chunk in head.chunks(rows):
            part = slice(start, start + chunk.shape[0])
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_(ctx.needs_input_grad[0])
                logits = head(leaf)
            losses, on_logits = rule(logits.detach(), targets[part])
            if ctx.needs_input_grad[0]:
                gradient[part] = torch.autograd.grad(logits, leaf, on_logits)[0]
            total += losses.sum().double().cpu()
        ctx.save_for_backward(gradient)
        return total.to(torch.promote_types(rows.dtype, torch.float32)).to(rows.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None
