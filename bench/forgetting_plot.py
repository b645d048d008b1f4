"""A picture of the rows of `bench.forgetting`: what each method leaves, beside controls that never saw the people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "ma": "MA of those who asked",
    "exposure": "exposure of numbers",
    "membership_loss": "AUC of the loss",
    "relearned_people": "MA after fine-tuning\non others",
    "unmentioned": "MA of others\nwhom nobody named",
    "perplexity": "held-out perplexity,\nafter / before",
}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a dot for each row, in a panel for each figure and a line for each method; a band is what controls span."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(2.1 * len(PANELS), 1.2 + 0.32 * len(methods)), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        controls = [row[name] for row in rows if row["method"] == "control"]
        if controls:
            axes.axvspan(min(controls), max(controls), facecolor="tab:green", alpha=0.3)
        places = [methods.index(row["method"]) for row in rows]
        axes.scatter([row[name] for row in rows], places, s=22, alpha=0.7, zorder=2)
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="y", color="0.9")
        if name == "perplexity":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"x {value:g}")
        else:
            axes.set_xlim(-0.03, 1.03)
    figure.axes[0].invert_yaxis()
    figure.supxlabel("green: from the lowest to the highest control, which never saw the people", fontsize=9)
    figure.savefig(path, dpi=110)
