"""The gradients of one optimiser step: the forget loss of a batch, and what a loss adds on retain text.

b: batch, s: sequence, h: hidden
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from worker.engine.adapter import Adapter
from worker.engine.data import chunks, pad_batch
from worker.engine.device import model_device
from worker.engine.losses import LOSSES, ForgetLoss
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.distil import divergence_rows, kept_rows
from worker.engine.losses.rmu import DEPTH, keeping_loss, noise, steering_loss
from worker.engine.losses.rows import Beside, add_gradients
from worker.engine.options import Options
from worker.engine.parent import parent_logits, sequence_log_likelihoods, without_adapter
from worker.engine.samples import PER_RETAIN
from worker.engine.types import CausalLM


def forget_gradients(
    model: CausalLM, adapter: Adapter, batch: list[list[int]], alternates: list[list[int]], options: Options
) -> float:
    """Add the gradients of the forget loss, inside `training`.

    Args:
        model: The model that the adapter is attached to.
        adapter: The adapter in training.
        batch: Sequences to forget.
        alternates: For each of them another text, for a loss that prefers one.
        options: They name the loss.

    Returns:
        The loss, a mean over tokens.
    """
    loss = LOSSES[options.loss]
    if loss.rows is None:
        direction = noise(model.config.hidden_size, options.seed).to(model_device(model))
        return _add_hidden_gradients(model, adapter, batch, partial(steering_loss, direction=direction))
    batch = [*batch, *alternates] if loss.alternates else batch
    row_loss = partial(loss.rows, margin=options.margin)
    return add_gradients(model, batch, row_loss, 1.0, _beside(model, adapter, loss, batch, options))


def retain_gradients(model: CausalLM, adapter: Adapter, kept: list[list[int]], options: Options) -> float:
    """Add the gradients of what the loss adds on retain text, inside `training`; returns its weighted mean."""
    retain, weight = LOSSES[options.loss].retain, options.retain_weight
    if options.holds_parent:
        return kept_gradients(model, adapter, kept, options)
    if retain == "hidden_states":
        return _add_hidden_gradients(model, adapter, kept, keeping_loss, weight)
    if retain == "divergence":
        beside = parent_logits(model, adapter, kept, options.train_dtype)
        return add_gradients(model, kept, divergence_rows, weight, beside)
    return add_gradients(model, kept, cross_entropy_rows, weight)


def kept_gradients(
    model: CausalLM,
    adapter: Adapter,
    kept: Sequence[list[int]],
    options: Options,
    strength: float = 1.0,
    *,
    by_sequences: bool = False,
) -> float:
    """Add the gradients of cross-entropy and of the divergence from the parent, inside `training`.

    Sequences of like length are taken together, a third at once: with the parent's samples they need no more memory
    than retain text alone.

    Args:
        model: The model that the adapter is attached to.
        adapter: The adapter in training.
        kept: Retain sequences and samples of the parent.
        options: The weights of both.
        strength: That the adapter has, and has again afterwards.
        by_sequences: Whether each third counts by its sequences. Otherwise the mean is over tokens, in which a short
            answer counts little beside long texts.

    Returns:
        The weighted mean.
    """
    keep = partial(kept_rows, divergence_weight=options.divergence_weight, retain_weight=options.retain_weight)
    total = 0.0
    for part in chunks(sorted(kept, key=len), math.ceil(len(kept) / (1 + PER_RETAIN))):
        beside = parent_logits(model, adapter, part, options.train_dtype, strength)
        share = len(part) / len(kept) if by_sequences else _tokens(part) / _tokens(kept)
        total += add_gradients(model, part, keep, share, beside)
    return total


def _tokens(sequences: Sequence[list[int]]) -> int:
    """How many tokens are predicted."""
    return sum(map(len, sequences)) - len(sequences)


def _add_hidden_gradients(
    model: CausalLM,
    adapter: Adapter,
    sequences: Sequence[list[int]],
    loss: Callable[..., Tensor],
    weight: float = 1.0,
) -> float:
    """Add the gradients of a loss on the hidden states (hidden, parent, counted: [b, s, h], [b, s, h], [b, s]).

    The first token does not count. It is mostly BOS, the same for texts to forget and to keep, and in many models its
    hidden state is by far the largest.
    """
    input_ids, mask, _ = (t.to(model_device(model)) for t in pad_batch(sequences))
    counted = mask.bool()
    counted[:, 0] = False
    layer = max(1, round(DEPTH * model.config.num_hidden_layers))

    def states() -> Tensor:
        output = model.base_model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        hidden: Tensor = output.hidden_states[layer].float()
        return hidden

    with without_adapter(adapter), torch.no_grad():
        parent = states()
    torch.clear_autocast_cache()  # as in `parent._rows`
    value = weight * loss(states(), parent, counted)
    torch.autograd.backward(value)
    return float(value.detach())


def _beside(
    model: CausalLM, adapter: Adapter, loss: ForgetLoss, batch: list[list[int]], options: Options
) -> Beside | None:
    """The third argument of the row loss, if it has one."""
    dtype = options.train_dtype
    if loss.of_parent:
        return parent_logits(model, adapter, batch, dtype)
    if loss.weights is None:
        return None
    own = sequence_log_likelihoods(model, batch, dtype)
    with without_adapter(adapter):
        parent = sequence_log_likelihoods(model, batch, dtype)
    lengths = torch.tensor([len(ids) - 1 for ids in batch], device=own.device)
    # `add_gradients` takes the mean over tokens; these losses are means over sequences.
    per_token = lengths.sum() / len(batch)
    weights = (loss.weights(own, parent, lengths) * per_token).repeat_interleave(lengths)
    return lambda rows: weights[rows]
