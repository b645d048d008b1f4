"""Draws the trajectory of a job, and where people's numbers rank before and after it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.client.answers import VersionAnswer


def _draw_into_files(cache: Path) -> None:
    """Set matplotlib up, before its first import, to draw into files alone."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache))
    import matplotlib as mpl

    mpl.use("Agg")


def plot_trajectory(history: Sequence[Mapping[str, float]], version: VersionAnswer, path: Path) -> None:
    """Draw epochs 0 (before) to the last, and write a PNG.

    Args:
        history: The answer of `GET /v1/jobs/{id}/history`.
        version: The answer of `GET /v1/models/{name}/versions/{v}`.
        path: The PNG.
    """
    _draw_into_files(path.parent / "cache")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    metrics = version["metrics"]
    before, limits, utility = metrics["before"], metrics["limits"], metrics["utility"]
    epochs = [0, *(entry["epoch"] for entry in history)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, label, colour in (("ma", "MA", "tab:blue"), ("el", "EL", "tab:orange")):
        left.plot(epochs, [before[name], *(e[name] for e in history)], "o-", color=colour, label=f"{label}, forget set")
        left.axhline(limits[name], color=colour, linestyle="--", linewidth=1, label=f"{label}, held-out mean")
    left.set(title="Memorisation of the forget set", xlabel="epoch", ylabel="EL, MA", ylim=(-0.02, 1.02))
    baseline = utility["heldout_perplexity_before"]
    right.plot(epochs, [baseline, *(e["perplexity"] for e in history)], "o-", color="tab:green", label="held-out text")
    budget = baseline * utility["max_ratio"]
    right.axhline(budget, color="tab:red", linestyle="--", linewidth=1, label="budget")
    right.set(title="Utility", xlabel="epoch", ylabel="perplexity", ylim=(0, budget * 1.15))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{version['model']}, version {version['version']}: before epoch 1 and after each epoch")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_ranks(names: Sequence[str], ranks: Mapping[str, Sequence[int]], candidates: int, path: Path) -> None:
    """Draw the rank of each person's number among random ones, and write a PNG.

    Args:
        names: The people.
        ranks: Label -> the rank of each person's number; 1 is the likeliest. The last label is on top.
        candidates: Random numbers beside each one.
        path: The PNG.
    """
    _draw_into_files(path.parent / "cache")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.5 * len(names)), layout="constrained")
    for index, (label, of_label) in enumerate(ranks.items()):
        marker, colour = ("X", "tab:red") if index == 0 else ("o", "tab:blue")
        axes.scatter(of_label, range(len(names)), s=90, marker=marker, color=colour, label=label, zorder=2 + index)
    axes.axvline((candidates + 2) / 2, color="grey", linestyle="--", linewidth=1, label="unknown, on average")
    axes.set(
        title=f"Where the true telephone number ranks among {candidates} random ones of its format",
        xlabel="rank by likelihood (1: the model's first choice)",
        xlim=(-0.03 * candidates, 1.03 * candidates),
        ylim=(len(names) - 0.5, -0.5),
        yticks=range(len(names)),
    )
    axes.set_yticklabels(names)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
