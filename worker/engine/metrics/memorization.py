"""Memorization Accuracy (Tirumala et al. 2022; Jang et al., ACL 2023, Eq. 4).

b: batch, s: sequence
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.data import chunks
from worker.engine.device import measuring
from worker.engine.metrics.predictions import predictions
from worker.engine.types import CausalLM


def memorization_accuracy(model: CausalLM, input_ids: Tensor) -> Tensor:
    """MA(x) = (number of t in 1..T-1 with argmax p(. | x_<t) = x_t) / (T-1), by one forward pass.

    Args:
        model: A causal language model.
        input_ids: [b, s] token ids, no padding, s >= 2.

    Returns:
        float64 [b] on the CPU.
    """
    return torch.tensor([accuracy(row) for row in token_matches(model, input_ids.tolist())], dtype=torch.float64)


def token_matches(model: CausalLM, sequences: Sequence[list[int]]) -> list[list[bool]]:
    """For each sequence, whether each of x_1..x_T-1 is the argmax given the tokens before it."""
    matches: list[list[bool]] = []
    with measuring(model):
        for batch in chunks(sequences, 16):
            for ids, predicted in zip(batch, predictions(model, batch, use_cache=False), strict=True):
                matches.append([p == x for p, x in zip(predicted, ids[1:], strict=True)])
    return matches


def mean_accuracy(model: CausalLM, sequences: Sequence[list[int]]) -> float:
    """Mean MA of sequences of any lengths."""
    rows = token_matches(model, sequences)
    return sum(map(accuracy, rows)) / len(rows)


def accuracy(matches: Sequence[bool]) -> float:
    """The share of true values."""
    return sum(matches) / len(matches)
