"""The attacks of the engine as figures of a table."""

from collections.abc import Iterable

from worker.engine.attacks import MEMBERSHIP, Subject, run_attacks
from worker.engine.options import DEFAULT_ATTACKS

ATTACKS = [name for name, effect in DEFAULT_ATTACKS.items() if effect != "off"]


def attacked(subject: Subject, names: Iterable[str] = ATTACKS) -> dict[str, float]:
    """The figure of each attack that runs, for membership the AUC; its figure of unseen texts; how many fail.

    An attack fails if it tells the texts from unseen ones at LEVEL, divided among these attacks. With few texts it may
    not be able to, and is not run.
    """
    figures: dict[str, float] = {"failed": 0, "not run": 0}
    for result in run_attacks(subject, dict.fromkeys(names, "report")):
        if result.figure is not None and result.auc is not None and result.control is not None:
            figures[result.name] = result.auc if result.name in MEMBERSHIP else result.figure
            figures[f"{result.name}, unseen"] = result.control
            figures["failed"] += not result.passed
        else:
            figures["not run"] += 1
    return figures
