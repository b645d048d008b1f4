"""Attacks: ways to get forgotten texts out of a model, or to tell that it knew them. One line each here.

An attack takes a `Subject` and returns `Scores` of the texts to forget and of never-seen texts under the same attack.
`scores.judged` compares the two. Each attack has a stated, bounded cost.
"""

from collections.abc import Callable, Mapping

from worker.engine.attacks.exposure import exposure
from worker.engine.attacks.likelihood import extraction_strength, loss, min_k, min_k_pp, sampled
from worker.engine.attacks.prompts import prompts
from worker.engine.attacks.quantised import quantised
from worker.engine.attacks.relearned import relearned
from worker.engine.attacks.scores import LEVEL, AttackResult, Scores, judged, not_run
from worker.engine.attacks.subject import Subject, cut_alike
from worker.engine.progress import Progress, no_progress

__all__ = ["ATTACKS", "AttackResult", "Subject", "cut_alike", "run_attacks"]

ATTACKS: dict[str, Callable[[Subject], Scores]] = {
    "sampled": sampled,
    "extraction_strength": extraction_strength,
    "membership_loss": loss,
    "membership_min_k": min_k,
    "membership_min_k_pp": min_k_pp,
    "exposure": exposure,
    "prompts": prompts,
    "quantised": quantised,
    "relearned": relearned,
}


def run_attacks(subject: Subject, policy: Mapping[str, str], progress: Progress = no_progress) -> list[AttackResult]:
    """Run every attack that the policy does not switch off.

    Args:
        subject: What they work on.
        policy: Attack -> "block", "report" or "off".
        progress: Called with the fraction done, 0..1.

    Returns:
        The result of every attack, in the order of ATTACKS. One that a library refuses is NOT_RUN.
    """
    level = LEVEL / max(1, sum(policy.get(name, "off") != "off" for name in ATTACKS))
    results = []
    for done, (name, attack) in enumerate(ATTACKS.items()):
        progress(done / len(ATTACKS))
        if policy.get(name, "off") == "off":
            results.append(not_run(name, "off"))
            continue
        try:
            results.append(judged(name, attack(subject), level))
        except (IndexError, RuntimeError, ValueError):  # of a library, for a model or a text that it cannot take
            results.append(not_run(name, "could_not_be_run"))
    progress(1.0)
    return results
