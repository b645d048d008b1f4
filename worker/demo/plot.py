"""Draws the trajectory of a job: EL, MA and perplexity at each epoch, with the held-out means and the budget."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.client.answers import VersionAnswer


def plot_trajectory(history: Sequence[Mapping[str, float]], version: VersionAnswer, path: Path) -> None:
    """Draw epochs 0 (before) to the last, and write a PNG.

    Args:
        history: The answer of `GET /v1/jobs/{id}/history`.
        version: The answer of `GET /v1/models/{name}/versions/{v}`.
        path: The PNG.
    """
    os.environ.setdefault("MPLCONFIGDIR", str(path.parent / "cache"))
    import matplotlib as mpl

    mpl.use("Agg")
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
