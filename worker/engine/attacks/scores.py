"""What an attack finds, and the test that compares the texts to forget with texts that the model has never seen.

An attack gives each text a score: the higher, the better the model knows it. The control is held-out text under the
same attack. Of each request one window is attacked, because windows of one text are alike. A model that never saw the
requests scores them as it scores held-out text of their length. The test is a permutation test of that hypothesis, with
the greater of two statistics: one sees that the texts as a whole are known better, the other that a few of many are
known very well. Each attack is tested at `LEVEL / number of attacks` (Bonferroni). So a model that never saw the
requests fails any of them with a probability of at most `LEVEL`, as far as held-out text is of their kind. What does
not differ by that test may still differ: few requests or few held-out texts show only large differences, and the
certificate says how many there were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch

LEVEL = 0.05  # family-wise, over all attacks of a job
PERMUTATIONS = 20_000
CHUNK = 1000  # permutations that are drawn at once
CLEARLY = 2  # how far below the level the least p-value must be: permutations are random
FEWEST_UNSEEN = 20  # scores of never-seen text below which nothing can be compared
OFF, NOT_APPLICABLE, TOO_FEW, COULD_NOT = "off", "not_applicable", "too_few_unseen_texts", "could_not_be_run"


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
        partial: Some texts to forget were not scored, so that the means are over fewer.
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
    partial: bool = False


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
        return not_run(name, NOT_APPLICABLE)
    if not all(map(math.isfinite, [*scores.forget, *scores.unseen])):
        return not_run(name, COULD_NOT)
    if too_few(len(scores.forget), len(scores.unseen), level, two_sided=scores.two_sided):
        return not_run(name, TOO_FEW)
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


def least_p_value(forget: int, unseen: int, *, two_sided: bool) -> float:
    """The least p-value that the test can give: all texts to forget score higher than all unseen ones, or lower."""
    return (2 if two_sided else 1) / math.comb(forget + unseen, forget)


def too_few(forget: int, unseen: int, level: float, *, two_sided: bool) -> bool:
    """Whether the test could show nothing: of so few texts even the most unlike scores pass at this level."""
    least = least_p_value(forget, unseen, two_sided=two_sided)
    return unseen < FEWEST_UNSEEN or least > level / CLEARLY


def least_unseen(forget: int, level: float, *, two_sided: bool) -> int:
    """How many never-seen texts the test needs at this level, beside so many texts to forget, one or more."""
    if forget < 1:
        raise ValueError("forget: no test without texts to forget")
    return next(n for n in count(FEWEST_UNSEEN) if not too_few(forget, n, level, two_sided=two_sided))


def auc(forget: Sequence[float], unseen: Sequence[float]) -> float:
    """The share of pairs in which the text to forget scores higher; a tie counts half."""
    ranks = _midranks([*forget, *unseen])[: len(forget)]
    return (sum(ranks) - len(forget) * (len(forget) + 1) / 2) / (len(forget) * len(unseen))


def rank_test(forget: Sequence[float], unseen: Sequence[float], *, two_sided: bool) -> float:
    """p-value of the hypothesis that the two do not differ, by random permutations (Phipson & Smyth 2010: never 0).

    The statistic is the greater of two standardised rank sums: Mann-Whitney's, and that of the squares of exponential
    order scores (Savage 1956), in which the highest ranks count most. A two-sided test takes both in either direction.
    All are greatest where all texts to forget score higher, or all lower, so that the least p-value is that of one.

    Args:
        forget: Scores of the texts to forget.
        unseen: Scores of never-seen texts.
        two_sided: Whether lower scores count as well as higher ones.

    Returns:
        A value in 0..1.
    """
    ranks = torch.tensor(_midranks([*forget, *unseen]), dtype=torch.float64)
    shares = ranks / (len(ranks) + 1)
    high, low = (_standardised(torch.log1p(-share).square()) for share in (shares, 1 - shares))
    middle = _standardised(ranks)
    weights = torch.stack([middle, high, -middle, low] if two_sided else [middle, high])
    observed = weights[:, : len(forget)].sum(-1).amax(0) - 1e-9
    generator = torch.Generator().manual_seed(0)
    extreme = 0
    for start in range(0, PERMUTATIONS, CHUNK):
        drawn = torch.rand(min(CHUNK, PERMUTATIONS - start), len(ranks), generator=generator)
        sums = weights[:, drawn.topk(len(forget), dim=-1).indices].sum(-1)
        extreme += int((sums.amax(0) >= observed).sum())
    return (1 + extreme) / (1 + PERMUTATIONS)


def _standardised(values: torch.Tensor) -> torch.Tensor:
    """Values of mean 0 and length 1; zeros if all are equal. So sums of as many of them vary alike."""
    centred = values - values.mean()
    return torch.nn.functional.normalize(centred, dim=0, eps=1e-300)


def _midranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1; equal values share the mean of their ranks."""
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered)))}
    last = {value: index for index, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 + 1 for value in values]
