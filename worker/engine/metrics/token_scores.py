"""How likely a model finds each token of a text: what likelihood attacks read. One forward pass.

b: batch, s: sequence, h: hidden, v: vocabulary, n: rows (predicted tokens)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.data import chunks, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.head import Head, hidden_states
from worker.engine.types import CausalLM

BATCH = 16  # sequences in one forward pass


class TokenScores(NamedTuple):
    """The predictions of n tokens x_t; each tensor is [n].

    Attributes:
        log_p: log p(x_t | x_<t), float64.
        z: log_p, centred and scaled by the mean and the standard deviation of log p(v) under p itself (the token score
            of min-k++, Zhang et al., ICLR 2025, arXiv 2404.02936, Eq. 4), float64.
        rank: How many tokens are likelier than x_t.
        entropy: Of the prediction, 0 or more, in nats, float64.
        spread: The standard deviation of log p(v) under p, in nats, float64.
    """

    log_p: Tensor
    z: Tensor
    rank: Tensor
    entropy: Tensor
    spread: Tensor


def token_scores(model: CausalLM, sequences: Sequence[list[int]]) -> list[TokenScores]:
    """The scores of every predicted token of every sequence, teacher-forced, on the CPU.

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each.

    Returns:
        One for each sequence, in order.
    """
    return [TokenScores(*columns) for columns in _columns(model, sequences, scores_of_rows)]


def token_margins(model: CausalLM, sequences: Sequence[list[int]]) -> list[Tensor]:
    """By how much each true token is likelier than any other one: [T-1] in nats for each sequence, on the CPU."""
    return [
        margins for (margins,) in _columns(model, sequences, lambda logits, targets: (margin_rows(logits, targets),))
    ]


def margin_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """By how much the true token is likelier than any other one: [n] in nats, of logits [n, v] and targets [n]."""
    two, tokens = logits.topk(2, dim=-1)
    at_target = logits.gather(-1, targets[:, None]).squeeze(-1)
    return at_target - torch.where(tokens[:, 0] == targets, two[:, 1], two[:, 0])


def _columns(
    model: CausalLM, sequences: Sequence[list[int]], of_rows: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> Iterator[tuple[Tensor, ...]]:
    """For each sequence of T tokens what `of_rows` makes of its logits [n, v] and targets [n], [T-1] each."""
    with measuring(model):
        head, device = Head(model), model_device(model)
        for batch in chunks(sequences, BATCH):
            input_ids, mask, _ = pad_batch(batch)
            hidden = hidden_states(model, input_ids.to(device), mask.to(device), use_cache=False)
            rows = torch.cat([hidden[i, : len(ids) - 1] for i, ids in enumerate(batch)])
            targets = torch.tensor([token for ids in batch for token in ids[1:]], device=device)
            parts = [of_rows(head(part), targets[start : start + len(part)]) for start, part in head.chunks(rows)]
            lengths = [len(ids) - 1 for ids in batch]
            columns = (torch.split(torch.cat(column).cpu(), lengths) for column in zip(*parts, strict=True))
            yield from zip(*columns, strict=True)


def scores_of_rows(logits: Tensor, targets: Tensor) -> TokenScores:
    """The scores of logits [n, v] and targets [n], on their device."""
    log_p = torch.log_softmax(logits, dim=-1)
    at_target = log_p.gather(-1, targets[:, None])
    rank = (log_p > at_target).sum(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1, keepdim=True)
    spread = log_p.sub_(mean).square_().mul_(p).sum(-1, keepdim=True).clamp(min=1e-12).sqrt()  # few arrays of [n, v]
    z = (at_target - mean) / spread
    true, z, entropy, spread = (values.squeeze(-1).double() for values in (at_target, z, -mean, spread))
    return TokenScores(true, z, rank, entropy, spread)
