"""Perplexity: exp of the mean next-token negative log-likelihood over all tokens."""

import math
from collections.abc import Sequence
from typing import Any

from worker.engine.data import chunks, pad_batch
from worker.engine.device import device_of, measuring
from worker.engine.losses.ascent import cross_entropy
from worker.engine.metrics.decode import prefill_batch


def perplexity(model: Any, sequences: Sequence[list[int]]) -> float:
    """Perplexity of the model on these sequences, each token counted once.

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each.

    Returns:
        A value of 1 or more.
    """
    total, count = 0.0, 0
    device = device_of(model)
    for part in chunks(sequences, min(8, prefill_batch(sequences, model.config.vocab_size))):
        input_ids, mask, labels = (t.to(device) for t in pad_batch(part))
        predicted = sum(len(ids) - 1 for ids in part)
        with measuring(model):
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            total += float(cross_entropy(logits, labels)) * predicted
        count += predicted
    return math.exp(total / count)
