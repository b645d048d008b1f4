"""Perplexity: exp of the mean next-token negative log-likelihood over all tokens."""

import math
from collections.abc import Sequence

from worker.engine.data import chunks, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.head import Head, hidden_states
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import loss_sum
from worker.engine.types import CausalLM

MOST_NATS = 700.0  # whose exponential is a number: a ruined model is over its budget, and no error


def perplexity(model: CausalLM, sequences: Sequence[list[int]]) -> float:
    """Perplexity of the model on these sequences, each token counted once: a value of 1 or more, and finite."""
    return math.exp(mean_loss(model, sequences))


def mean_loss(model: CausalLM, sequences: Sequence[list[int]]) -> float:
    """Mean negative log-likelihood of the tokens of these sequences, each token counted once.

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each.

    Returns:
        A value of 0 to MOST_NATS, in nats; that of a ruined model is the latter.
    """
    total, count = 0.0, 0
    device = model_device(model)
    with measuring(model):
        for batch in chunks(sequences, 8):
            input_ids, mask, labels = (t.to(device) for t in pad_batch(batch))
            hidden = hidden_states(model, input_ids, mask, use_cache=False)
            total += float(loss_sum(Head(model), hidden, labels, cross_entropy_rows))
            count += sum(len(ids) - 1 for ids in batch)
    return total / count if total / count < MOST_NATS else MOST_NATS  # nor is it NaN
