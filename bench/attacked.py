"""The attacks of the engine as figures of a table."""

from collections.abc import Iterable

from worker.engine.attacks import Subject, run_attacks
from worker.engine.options import DEFAULT_ATTACKS

ATTACKS = [name for name, effect in DEFAULT_ATTACKS.items() if effect != "off"]
MEMBERSHIP = [name for name in ATTACKS if name.startswith("membership")]


def attacked(subject: Subject, names: Iterable[str] = ATTACKS) -> dict[str, float]:
    """The figure of each attack that runs; of membership attacks the AUC."""
    figures: dict[str, float] = {}
    for result in run_attacks(subject, dict.fromkeys(names, "report")):
        if result.status == "RUN" and result.figure is not None and result.auc is not None:
            figures[result.name] = result.auc if result.name in MEMBERSHIP else result.figure
    return figures
