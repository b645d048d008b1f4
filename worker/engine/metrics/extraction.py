"""Extraction Likelihood (Jang et al., ACL 2023, arXiv 2210.01504, Eq. 2 and 3).

b: batch, s: sequence
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from worker.engine.metrics.decode import GreedyDecoding, greedy_continuations
from worker.engine.types import CausalLM


def extraction_likelihood(
    model: CausalLM,
    input_ids: Tensor,
    *,
    n: int = 10,
    eos_token_id: int | Collection[int] | None = None,
    row_budget: int = 256,
) -> Tensor:
    """EL_n(x) = 1/(T-n) * sum over t = 1..T-n of OVERLAP_n(f(x_<t), x_>=t), exactly.

    f is the greedy continuation of length T-t; OVERLAP_n counts the continuation's n-grams, with
    multiplicity, that occur in the label, over the number of n-grams of the label.

    Args:
        model: A causal language model.
        input_ids: [b, s] token ids, no padding, s > n.
        n: Length of the n-grams.
        eos_token_id: Generation stops there; may be several; None never stops early.
        row_budget: Prefixes decoded at once.

    Returns:
        float64 [b] on the CPU.
    """
    greedy = greedy_continuations(model, input_ids.tolist(), eos_token_id=eos_token_id, n=n, row_budget=row_budget)
    return torch.tensor([likelihood(g.input_ids, g.continuations, n) for g in greedy], dtype=torch.float64)


def fitting_n(length: int, n: int) -> int:
    """The n for a sequence of `length` tokens: `n`, or half of the number of predicted tokens if that is less.

    EL_n needs T > n, and with T barely above n it averages one or two prefixes. n <= (T-1)/2 keeps at least
    half of the prefixes in the mean: 12 tokens are verified with n = 5, 21 and more with the paper's 10.
    """
    return max(1, min(n, (length - 1) // 2))


def likelihood(input_ids: Sequence[int], continuations: Sequence[Sequence[int]], n: int) -> float:
    """EL_n of x from the continuations of its prefixes.

    `input_ids` may be a prefix of the sequence that the continuations were made on: greedy continuations of length
    T-t begin with those of a shorter T, so one generation serves every length.

    Args:
        input_ids: x, more than n tokens.
        continuations: f(x_<t) for t = 1.. , each T-t tokens or more unless EOS came first.
        n: Length of the n-grams.

    Returns:
        A value in 0..1.
    """
    length, last, total = len(input_ids), _last_starts(input_ids, n), 0.0
    for t in range(1, length - n + 1):
        total += sum(1 for _ in _hits(continuations[t - 1][: length - t], last, t, n)) / (length - t - n + 1)
    return total / (length - n)


def _last_starts(input_ids: Sequence[int], n: int) -> dict[tuple[int, ...], int]:
    """Where each n-gram of x last begins."""
    return {tuple(input_ids[i : i + n]): i for i in range(len(input_ids) - n + 1)}


def _hits(tokens: Sequence[int], last: Mapping[tuple[int, ...], int], t: int, n: int) -> Iterator[int]:
    """Where in a continuation of x_<t an n-gram of x_>=t begins."""
    tokens = tuple(tokens)
    return (i for i in range(len(tokens) - n + 1) if last.get(tokens[i : i + n], -1) >= t)


def extracted_chains(decoding: GreedyDecoding, n: int) -> list[list[int]]:
    """For each prefix whose continuation says an n-gram of the rest of x: both, up to the end of the first one."""
    ids, chains = decoding.input_ids, []
    last = _last_starts(ids, n)
    for t, continuation in enumerate(decoding.continuations, start=1):
        tokens = continuation[: len(ids) - t]
        if (first := next(_hits(tokens, last, t, n), None)) is not None:
            chains.append([*ids[:t], *tokens[: first + n]])
    return chains


def lower_bound(matches: Sequence[bool], n: int) -> float:
    """A lower bound of EL_n, from the teacher-forced pass alone.

    Where the model predicts x_t .. x_t+k-1 in turn, the continuation of x_<t begins with them: k - n + 1 hits.

    Args:
        matches: Whether each of x_1..x_T-1 is the argmax given the tokens before it.
        n: Length of the n-grams.

    Returns:
        A value in 0..EL_n.
    """
    length, run, total = len(matches) + 1, 0, 0.0
    for t in range(length - 1, 0, -1):
        run = run + 1 if matches[t - 1] else 0
        if t <= length - n:
            total += max(0, run - n + 1) / (length - t - n + 1)
    return total / (length - n)
