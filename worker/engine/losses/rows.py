"""Losses that never hold all logits: a closed-form gradient on some rows at a time.

A *row loss* takes logits [n, v] and targets [n] and returns each row's loss and its gradient on the logits, in closed
form. Two functions apply it. `loss_mean` takes logits that are there already. `loss_sum` runs the model's head on a
chunk of hidden states, takes the chunk's gradient back to them at once, and drops its logits. Nothing is computed
twice: the two matrix products that a head needs (logits, gradient of the hidden states) are all. A row loss that
compares with another model, or weights its rows, takes a third tensor with a row for each row.

b: batch, s: sequence, h: hidden, v: vocabulary, n: rows (predicted tokens)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker.engine.data import IGNORE_INDEX, pad_batch
from worker.engine.device import model_device
from worker.engine.head import Head, hidden_states
from worker.engine.types import CausalLM, GradientContext

RowLoss = Callable[..., tuple[Tensor, Tensor]]  # [n, v], [n] and perhaps [n, ...] -> loss [n], its gradient [n, v]
Beside = Callable[[slice], Tensor]  # some rows -> what the row loss takes as its third argument for them


def loss_mean(logits: Tensor, labels: Tensor, row_loss: RowLoss, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean of a row loss over all predicted tokens, from logits.

    Args:
        logits: [b, s, v], of the positions in order; the shift by one happens here.
        labels: [b, s], the input ids; `ignore_index` where there is nothing to predict.
        row_loss: The row loss.
        ignore_index: The label that marks positions without a prediction.

    Returns:
        A scalar, float32 or wider; 0 if no label counts.
    """
    targets = labels[:, 1:].reshape(-1)
    counted = targets != ignore_index
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])[counted]
    total: Tensor = _SumOverLogits.apply(rows, targets[counted], row_loss)  # type: ignore[no-untyped-call]
    return total / max(int(counted.sum()), 1)


def loss_sum(head: Head, hidden: Tensor, labels: Tensor, row_loss: RowLoss, beside: Beside | None = None) -> Tensor:
    """Sum of a row loss over all predicted tokens, from hidden states; the head's own weights get no gradient.

    Args:
        head: The model's head.
        hidden: [b, s, h], the last hidden states.
        labels: [b, s], the input ids; IGNORE_INDEX where there is nothing to predict.
        row_loss: The row loss.
        beside: Gives the third argument of a row loss that has one, for some of the rows that are predicted.

    Returns:
        A scalar, float32 or wider.
    """
    rows, targets = predicted_rows(hidden, labels)
    total: Tensor = _SumOverHiddenStates.apply(rows, targets, head, row_loss, beside)  # type: ignore[no-untyped-call]
    return total


def add_gradients(
    model: CausalLM,
    sequences: Sequence[Sequence[int]],
    row_loss: RowLoss,
    weight: float = 1.0,
    beside: Beside | None = None,
    starts: Sequence[int] | None = None,
    rows: Sequence[Sequence[int]] | None = None,
) -> float:
    """Add the gradients of the mean of a row loss over the predicted tokens of these sequences, inside `training`.

    Args:
        model: The model.
        sequences: Token ids, two or more each.
        row_loss: The row loss.
        weight: Of the mean.
        beside: As `loss_sum` takes it.
        starts: For each sequence the first token, 1 or later, whose prediction counts; None counts all.
        rows: For each sequence the rows that count, row r predicting token r + 1; None counts all.

    Returns:
        The weighted mean.
    """
    input_ids, mask, labels = (t.to(model_device(model)) for t in pad_batch(sequences))
    for sequence, start in enumerate(starts or ()):
        labels[sequence, :start] = IGNORE_INDEX
    for sequence, counted in enumerate(rows or ()):
        ignored = torch.ones_like(labels[sequence], dtype=torch.bool)
        ignored[[row + 1 for row in counted]] = False
        labels[sequence, ignored] = IGNORE_INDEX
    hidden = hidden_states(model, input_ids, mask, use_cache=False)
    count = int((labels[:, 1:] != IGNORE_INDEX).sum())
    value = loss_sum(Head(model), hidden, labels, row_loss, beside) * (weight / count)
    torch.autograd.backward(value)
    return float(value.detach())


def predicted_rows(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states [n, h] that predict a token, and these tokens [n], of [b, s, h] and labels [b, s]."""
    targets = labels[:, 1:].reshape(-1)
    counted = targets != IGNORE_INDEX
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])[counted], targets[counted]


class _SumOverLogits(torch.autograd.Function):
    """Sum of a row loss over rows of logits [n, v]."""

    @staticmethod
    def forward(ctx: GradientContext, rows: Tensor, targets: Tensor, row_loss: RowLoss) -> Tensor:
        losses, gradient = row_loss(rows if rows.dtype == torch.float64 else rows.float(), targets)
        ctx.save_for_backward(gradient.to(rows.dtype))
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: GradientContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


class _SumOverHiddenStates(torch.autograd.Function):
    """Sum of a row loss over rows of hidden states [n, h]; the forward pass computes the gradient, too."""

    @staticmethod
    def forward(
        ctx: GradientContext, rows: Tensor, targets: Tensor, head: Head, row_loss: RowLoss, beside: Beside | None
    ) -> Tensor:
        gradient = torch.empty_like(rows)
        total = torch.zeros((), dtype=torch.float64)
        for start, chunk in head.chunks(rows):
            in_chunk = slice(start, start + chunk.shape[0])
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_(ctx.needs_input_grad[0])
                logits = head(leaf)
            third = () if beside is None else (beside(in_chunk),)
            losses, logits_gradient = row_loss(logits.detach(), targets[in_chunk], *third)
            if ctx.needs_input_grad[0]:
                gradient[in_chunk] = torch.autograd.grad(logits, leaf, logits_gradient)[0]
            total += losses.sum().double().cpu()
        ctx.save_for_backward(gradient)
        return total.to(torch.promote_types(rows.dtype, torch.float32)).to(rows.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: GradientContext, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None
