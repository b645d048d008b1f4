"""What an attack finds, and the test that compares the texts to forget with texts that the model has never seen.

An attack gives each text a score: the higher, the better the model knows it. The control is held-out text under the
same attack. A model that never saw the texts scores them as it scores held-out text, so the scores of both come from
one distribution. The test is the Mann-Whitney test of that hypothesis, exact in its ranks, by permutation. Each attack
is tested at `LEVEL / number of attacks` (Bonferroni), so that a model that never saw the texts fails any of them with a
probability of at most `LEVEL`. What does not differ by that test may still differ by a little: a small forget set or
few held-out texts show only large differences, and the certificate says how many there were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEVEL = 0.05  # family-wise, over all attacks of a job
PERMUTATIONS = 20_000
FEWEST_UNSEEN = 20  # scores of never-seen text below which nothing can be compared


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores that an attack gives.

    Attributes:
        forget: One for each text to forget that the attack applies to.
        unseen: The same for never-seen texts.
        two_sided: A text that is *less* known than unseen ones tells, too.
    """

    forget: list[float]
    unseen: list[float]
    two_sided: bool = False


@dataclass(frozen=True, slots=True)
class AttackResult:
    """The result of one attack.

    Attributes:
        name: The attack, a name in `ATTACKS`.
        status: RUN, or NOT_RUN.
        why: Why it was not run, a code.
        figure: Mean score of the texts to forget.
        control: Mean score of the never-seen texts.
        auc: The probability that a text to forget scores higher than an unseen one; 0.5 if they do not differ.
        p_value: Of the test that they do not differ.
        level: The least p-value that passes.
        texts: How many texts to forget were scored.
        unseen: How many never-seen texts.
        passed: They do not differ at that level; None if it was not run.
    """

    name: str
    status: str
    why: str | None = None
    figure: float | None = None
    control: float | None = None
    auc: float | None = None
    p_value: float | None = None
    level: float | None = None
    texts: int = 0
    unseen: int = 0
    passed: bool | None = None


def not_run(name: str, why: str) -> AttackResult:
    """The result of an attack that was not run."""
    return AttackResult(name, "NOT_RUN", why)


def judged(name: str, scores: Scores, level: float) -> AttackResult:
    """The result of an attack from its scores.

    Args:
        name: The attack.
        scores: What it found.
        level: The least p-value that passes.

    Returns:
        The result; NOT_RUN if there is nothing to compare, or too little for this level.
    """
    if not scores.forget:
        return not_run(name, "not_applicable")
    if len(scores.unseen) < FEWEST_UNSEEN or least_p_value(len(scores.forget), len(scores.unseen)) > level:
        return not_run(name, "too_few_unseen_texts")
    p_value = rank_test(scores.forget, scores.unseen, two_sided=scores.two_sided)
    return AttackResult(
        name,
        "RUN",
        figure=sum(scores.forget) / len(scores.forget),
        control=sum(scores.unseen) / len(scores.unseen),
        auc=auc(scores.forget, scores.unseen),
        p_value=p_value,
        level=level,
        texts=len(scores.forget),
        unseen=len(scores.unseen),
        passed=p_value >= level,
    )


def least_p_value(forget: int, unseen: int) -> float:
    """The least p-value that the test can give: all texts to forget score higher than all unseen ones."""
    return 1 / math.comb(forget + unseen, forget)


def auc(forget: Sequence[float], unseen: Sequence[float]) -> float:
    """The share of pairs in which the text to forget scores higher; a tie counts half."""
    ranks = _midranks([*forget, *unseen])[: len(forget)]
    return (sum(ranks) - len(forget) * (len(forget) + 1) / 2) / (len(forget) * len(unseen))


def rank_test(forget: Sequence[float], unseen: Sequence[float], *, two_sided: bool) -> float:
    """p-value of the Mann-Whitney test, by random permutations of the labels (Phipson & Smyth 2010: never 0).

    Args:
        forget: Scores of the texts to forget.
        unseen: Scores of never-seen texts.
        two_sided: Whether lower scores count as well as higher ones.

    Returns:
        A value in 0..1.
    """
    ranks = torch.tensor(_midranks([*forget, *unseen]), dtype=torch.float64)
    centred = ranks - ranks.mean()
    observed = float(centred[: len(forget)].sum())
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(PERMUTATIONS, len(ranks), generator=generator).topk(len(forget), dim=-1).indices
    sums = centred[drawn].sum(-1)
    extreme = (sums.abs() >= abs(observed) - 1e-9) if two_sided else (sums >= observed - 1e-9)
    return (1 + int(extreme.sum())) / (1 + PERMUTATIONS)


def _midranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1; equal values share the mean of their ranks."""
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered)))}
    last = {value: index for index, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 + 1 for value in values]
