"""Attacks that read token probabilities alone: leakage by sampling, membership, Extraction Strength."""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.metrics.token_scores import TokenScores
from worker.engine.progress import Progress, no_progress

SAMPLES = 1000  # answers that somebody samples
SPAN = 10  # tokens in a row that one of them must say
LOWEST = 0.2  # share of the tokens that min-k reads


def sampled(subject: Subject, progress: Progress = no_progress) -> Scores:
    """leak@k: how probable it is that one of k sampled answers says the next tokens; the mean over prefixes.

    A span of probability p is in k samples with probability `1 - (1 - p)^k`. So nothing has to be sampled.
    """
    return _scores(subject, progress, _leakage, two_sided=False)


def extraction_strength(subject: Subject, progress: Progress = no_progress) -> Scores:
    """Extraction Strength (Carlini et al., USENIX Security 2021): how much of a text's end greedy decoding says.

    It is the longest end of the text that the model says by itself after all that stands before it, as a share.
    """
    return _scores(subject, progress, strength, two_sided=False)


def loss(subject: Subject, progress: Progress = no_progress) -> Scores:
    """Membership by the loss (Yeom et al., CSF 2018): the mean log-likelihood of a text."""
    return _scores(subject, progress, lambda scores: float(scores.log_p.mean()), two_sided=True)


def min_k(subject: Subject, progress: Progress = no_progress) -> Scores:
    """Membership by min-k (Shi et al., ICLR 2024, arXiv 2310.16789): the mean of the least likely tokens."""
    return _scores(subject, progress, lambda scores: mean_of_lowest(scores.log_p), two_sided=True)


def min_k_pp(subject: Subject, progress: Progress = no_progress) -> Scores:
    """Membership by min-k++ (Zhang et al., ICLR 2025, arXiv 2404.02936): each token on its own distribution's scale."""
    return _scores(subject, progress, lambda scores: mean_of_lowest(scores.z), two_sided=True)


def _scores(subject: Subject, progress: Progress, score: Callable[[TokenScores], float], *, two_sided: bool) -> Scores:
    forget, unseen = subject.scores(progress)
    return Scores([score(s) for s in forget], [score(s) for s in unseen], two_sided)


def _leakage(scores: TokenScores) -> float:
    """The mean over all spans of SPAN tokens, or over the one span of a shorter text."""
    spans = scores.log_p.unfold(0, min(SPAN, len(scores.log_p)), 1).sum(-1).clamp(max=-1e-12)
    return float(-torch.expm1(SAMPLES * torch.log1p(-spans.exp())).mean())


def strength(scores: TokenScores) -> float:
    """The longest end of a text that greedy decoding says after the rest of it, as a share of the text: 0..1."""
    missed = (scores.rank > 0).nonzero()
    said = len(scores.rank) - (int(missed[-1]) + 1 if len(missed) else 0)
    return said / len(scores.rank)


def mean_of_lowest(values: Tensor, share: float = LOWEST) -> float:
    """The mean of a share of the values [n], the lowest; of one at least."""
    return float(values.sort().values[: max(1, int(share * len(values)))].mean())
