"""The plots of a run: how its training went, and its attacks beside their controls."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from service.console import plots


def scores(history: Sequence[Mapping[str, Any]]) -> Markup:
    """MA and EL of each epoch, with their limits; what is not shown to the reader is no number."""
    lines = []
    for name in ("ma", "el"):
        values = [(epoch["epoch"], epoch[name]) for epoch in history if isinstance(epoch.get(name), (int, float))]
        limits = [epoch.get(f"{name}_limit") for epoch in history]
        limit = limits[-1] if limits and isinstance(limits[-1], (int, float)) else None
        lines.append(plots.Line(name.upper(), values, limit))
    return plots.lines("MA and EL after each epoch, and their limits", lines, x_name="epoch")


def perplexity(history: Sequence[Mapping[str, Any]], utility: Mapping[str, Any] | None) -> Markup:
    """Held-out perplexity of each epoch, with the budget."""
    values = [(epoch["epoch"], epoch["perplexity"]) for epoch in history if epoch.get("perplexity") is not None]
    budget = None
    if utility and utility.get("max_ratio") and utility.get("heldout_perplexity_before"):
        budget = utility["heldout_perplexity_before"] * utility["max_ratio"]
    line = plots.Line("perplexity", values, budget)
    return plots.lines("Held-out perplexity after each epoch, and the budget", [line], x_name="epoch", from_zero=False)


def beside_controls(attacks: Sequence[Mapping[str, Any]]) -> Markup:
    """What each attack found, beside what it finds on texts that the model has never seen."""
    rows = [
        (attack["name"].replace("_", " "), float(attack["figure"]), attack.get("control"))
        for attack in attacks
        if isinstance(attack.get("figure"), (int, float)) and attack["figure"] >= 0
    ]
    return plots.bars("Attacks beside their controls", rows, name="on the unlearned texts", other="on unseen texts")
