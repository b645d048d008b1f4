"""Attacks: ways to get forgotten texts out of a model, or to tell that it knew them. One line each here.

An attack takes a `Subject` and a `Progress`, and returns `Scores` of the texts to forget and of never-seen texts under
the same attack. `scores.judged` compares the two. The cost is bounded: one window is scored of a request, of 256
requests at most, and nothing where there are too few texts for the level.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from worker.engine.attacks.addresses import exposure_addresses, exposure_emails
from worker.engine.attacks.exposure import exposure, exposure_dates
from worker.engine.attacks.likelihood import extraction_strength, loss, min_k, min_k_pp, sampled
from worker.engine.attacks.prompts import prompts
from worker.engine.attacks.quantised import quantised
from worker.engine.attacks.relearned import relearned
from worker.engine.attacks.scores import (
    COULD_NOT,
    LEVEL,
    NOT_APPLICABLE,
    OFF,
    TOO_FEW,
    AttackResult,
    Scores,
    judged,
    least_unseen,
    not_run,
    too_few,
)
from worker.engine.attacks.subject import Subject
from worker.engine.errors import is_out_of_memory
from worker.engine.progress import Progress, no_progress, partial_progress

__all__ = [
    "ATTACKS",
    "MEMBERSHIP",
    "AttackResult",
    "Subject",
    "run_attacks",
    "unseen_needed",
]

logger = logging.getLogger(__name__)
ATTACKS: dict[str, Callable[[Subject, Progress], Scores]] = {
    "sampled": sampled,
    "extraction_strength": extraction_strength,
    "membership_loss": loss,
    "membership_min_k": min_k,
    "membership_min_k_pp": min_k_pp,
    "exposure": exposure,
    "exposure_dates": exposure_dates,
    "exposure_addresses": exposure_addresses,
    "exposure_emails": exposure_emails,
    "prompts": prompts,
    "quantised": quantised,
    "relearned": relearned,
}
MEMBERSHIP = ("membership_loss", "membership_min_k", "membership_min_k_pp")
OF_EVERY_TEXT = ("sampled", "extraction_strength", *MEMBERSHIP, "quantised", "relearned")  # all score the same texts
TWO_SIDED = (*MEMBERSHIP, "exposure", "exposure_dates", "exposure_addresses", "exposure_emails")


def level_for(policy: Mapping[str, str]) -> float:
    """The level of each attack's test: LEVEL, divided among those that are not off (Bonferroni)."""
    return LEVEL / max(1, sum(policy.get(name, "off") != "off" for name in ATTACKS))


def unseen_needed(forget: int, policy: Mapping[str, str], names: Collection[str] = tuple(ATTACKS)) -> int:
    """How many never-seen texts the attacks among `names` that block need beside so many texts to forget; or 0."""
    sides = {name in TWO_SIDED for name in names if forget and policy.get(name) == "block"}
    return max((least_unseen(forget, level_for(policy), two_sided=side) for side in sides), default=0)


def _tried(name: str, subject: Subject, level: float, progress: Progress) -> AttackResult:
    """The result of an attack. One that a library refuses, for whatever reason, must not cost the job."""
    sides = len(subject.forget), len(subject.unseen)
    if name in OF_EVERY_TEXT and too_few(*sides, level, two_sided=name in TWO_SIDED):
        return not_run(name, TOO_FEW)
    try:
        scores = ATTACKS[name](subject, progress)
        return replace(judged(name, scores, level), partial=len(scores.forget) < len(subject.forget))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.warning("the attack %s could not be run: %s", name, type(error).__name__)
        return not_run(name, COULD_NOT)


def run_attacks(subject: Subject, policy: Mapping[str, str], progress: Progress = no_progress) -> list[AttackResult]:
    """Run every attack that the policy does not switch off.

    Args:
        subject: What they work on.
        policy: Attack -> "block", "report" or "off".
        progress: Called with the fraction done, 0..1.

    Returns:
        The result of every attack, in the order of ATTACKS. One that a library refuses is NOT_RUN.
    """
    level = level_for(policy)
    results = []
    for done, name in enumerate(ATTACKS):
        progress(done / len(ATTACKS))
        if policy.get(name, "off") == "off":
            results.append(not_run(name, OFF))
        elif not subject.forget:
            results.append(not_run(name, NOT_APPLICABLE))
        else:
            results.append(
                _tried(name, subject, level, partial_progress(progress, done / len(ATTACKS), 1 / len(ATTACKS)))
            )
    progress(1.0)
    return results
